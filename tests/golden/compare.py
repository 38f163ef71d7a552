"""Compares a capture with the stored one: byte for byte on the machine that recorded it, elsewhere number by number.

Another processor or another torch rounds differently. There a decimal number may differ by a relative 1e-4 (or in the
last digit that a text shows), and digests are not compared; texts, counts and the order of everything are the same.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RELATIVE, ABSOLUTE = 1e-4, 1e-5
DIGESTS = "digests.json"
# Caikit's id of a model is made of the model's weights.
_ID_OF_WEIGHTS = re.compile(r"^tracking_id: .*$", re.MULTILINE)
# The share of pairs with a reward margin over zero. At the first step all margins are zero, but for rounding.
_SIGNS_OF_ROUNDING = "reward_accuracy"
_NUMBER = re.compile(r"[-+]?\d+\.\d+(?:e[-+]?\d+)?")
_ROUNDED_DECIMALS = 4
_SHOWN_LINES, _SHOWN_WIDTH = 40, 400


def differences(expected: Path, actual: Path, *, exactly: bool) -> list[str]:
    """What differs between two folders of outputs, in words; empty where nothing does."""
    names = {folder: {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
             for folder in (expected, actual)}
    problems = [f"{name} is missing" for name in sorted(names[expected] - names[actual])]
    problems += [f"{name} is new" for name in sorted(names[actual] - names[expected])]
    for name in sorted(names[expected] & names[actual]):
        before, after = ((folder / name).read_text("utf-8") for folder in (expected, actual))
        if before != after and (exactly or not alike(name, before, after)):
            problems.append("\n".join([f"{name} differs:", *_shown(before, after)]))
    return problems


def _shown(before: str, after: str) -> Iterator[str]:
    lines = list(difflib.unified_diff(before.split("\n"), after.split("\n"), "expected", "actual", n=1, lineterm=""))
    yield from (line[:_SHOWN_WIDTH] for line in lines[:_SHOWN_LINES])
    if len(lines) > _SHOWN_LINES:
        yield f"and {len(lines) - _SHOWN_LINES} lines more"


def alike(name: str, before: str, after: str) -> bool:
    """Whether two contents of the file are the same but for rounding."""
    if Path(name).name == DIGESTS:
        return list(json.loads(before)) == list(json.loads(after))
    if name.endswith(".jsonl"):
        return _same(*([json.loads(line) for line in text.split("\n") if line] for text in (before, after)))
    if name.endswith(".json"):
        return _same(json.loads(before), json.loads(after))
    return _same_text(_ID_OF_WEIGHTS.sub("", before), _ID_OF_WEIGHTS.sub("", after))


def _same(before: Any, after: Any) -> bool:
    if type(before) is not type(after):
        return False
    if isinstance(before, dict):
        return list(before) == list(after) and all(
            name == _SIGNS_OF_ROUNDING or _same(before[name], after[name]) for name in before)
    if isinstance(before, list):
        return len(before) == len(after) and all(_same(one, other) for one, other in zip(before, after, strict=True))
    if isinstance(before, float):
        return math.isclose(before, after, rel_tol=RELATIVE, abs_tol=max(ABSOLUTE, _rounding(before))) or (
            math.isnan(before) and math.isnan(after))
    return _same_text(before, after) if isinstance(before, str) else bool(before == after)


def _same_text(before: str, after: str) -> bool:
    """Whether texts are the same but for rounded decimal numbers, as verdicts and tables have them."""
    return _NUMBER.split(before) == _NUMBER.split(after) and all(
        math.isclose(float(one), float(other), rel_tol=RELATIVE, abs_tol=_last_digit(one))
        for one, other in zip(_NUMBER.findall(before), _NUMBER.findall(after), strict=True))


def _rounding(value: float) -> float:
    """What one in the last digit counts of a value that was rounded to four digits or more; 0.5 is no rounded share."""
    decimals = len(repr(value).partition(".")[2])
    return _last_digit(repr(value)) if decimals >= _ROUNDED_DECIMALS else 0.0


def _last_digit(number: str) -> float:
    """What one in the last digit of a written number counts, and a little for its own rounding."""
    mantissa, _, exponent = number.partition("e")
    return 1.01 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
