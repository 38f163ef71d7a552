"""Text of others on a terminal: what would move the cursor, set the title or turn the writing around is written out.

A server's answer, a file's name or a key of a recipe may hold such characters by chance or on purpose.
"""

from __future__ import annotations

import json
import re
from typing import Any

_CONTROLS = "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"  # all but tab and newline
_DIRECTIONS = "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"  # Unicode's Bidi_Control
_UNPRINTABLE = "\\u2028\\u2029\\ud800-\\udfff"  # separators, and halves of surrogate pairs
_UNSAFE = re.compile(f"[{_CONTROLS}{_DIRECTIONS}{_UNPRINTABLE}]")


def visible(text: str) -> str:
    """The text with control and direction characters written out, such as `\\x1b`; newlines and tabs stay.

    Each character is treated for itself, so that the pieces of a stream may be shown one by one.
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def visible_json(value: Any) -> str:
    """The value as JSON on one line: readable, exact when parsed, and without such characters in it."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))
