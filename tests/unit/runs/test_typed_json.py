"""Dataclasses survive the way through a file, with their keys in the order of the fields."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llm_detox.runs.typed_json import OPTIONAL, Number, plain, read_json, write_json


@dataclass(frozen=True)
class Part:
    value: Number
    count: int


@dataclass(frozen=True)
class Whole:
    title: str | None
    parts: dict[str, Part]
    pairs: list[tuple[float, int]]
    judge: Part | None = field(default=None, metadata=OPTIONAL)


WHOLE = Whole("ä", {"a": Part(0.5, 2)}, [(0.25, 3)])


def test_what_is_written_is_read_as_the_same(tmp_path: Path) -> None:
    for compact in (False, True):
        write_json(tmp_path / "whole.json", WHOLE, compact=compact)
        assert read_json(tmp_path / "whole.json", Whole) == WHOLE


def test_keys_are_the_fields_in_their_order_and_what_was_not_measured_has_none() -> None:
    assert list(plain(WHOLE)) == ["title", "parts", "pairs"]
    assert list(plain(Whole(None, {}, [], Part(1.0, 1)))) == ["title", "parts", "pairs", "judge"]
    assert plain(Whole(None, {}, []))["title"] is None, "a plain None is a value"


def test_what_is_no_number_is_null_in_the_file_and_nan_again(tmp_path: Path) -> None:
    write_json(tmp_path / "part.json", Part(math.nan, 1))
    assert json.loads((tmp_path / "part.json").read_text("utf-8"))["value"] is None
    assert math.isnan(read_json(tmp_path / "part.json", Part).value)


@pytest.mark.parametrize("text", ["{", '{"value": 0.5}', '{"value": "much", "count": 1}', "[]"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "part.json").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "part.json", Part)
