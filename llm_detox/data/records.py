"""Records: one JSON object a line, with a stable id; their text cleaned, and the same text recognised twice.

Reading says which line is wrong; writing is whole lines.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llm_detox.data.bad_records import STRICT, BadRecords
from llm_detox.errors import DetoxError, stand_in
from llm_detox.progress import say

Record = dict[str, Any]
_GZIP, _LONGEST_LINE = b"\x1f\x8b", 2**26
_LARGEST_UNPACKED, _MOST_PACKED = 2**28, 200  # bytes that are no bomb, and how often text fits into its compressed form
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # halves are whole where two of them meet
_KINDS: dict[type, str] = {int: "a number", float: "a number", bool: "a yes or no", list: "a list", dict: "an object"}


class _NotUtf8(DetoxError):
    """A line that holds other bytes; the next one may be whole."""


class _NoNumber(ValueError):
    """An infinity, which Python writes into JSON all the same."""


def _constant(name: str) -> None:
    """What Python writes for a number that is none is a missing value."""
    if name != "NaN":
        raise _NoNumber(f"{name} is no number")


_JSON = json.JSONDecoder(parse_constant=_constant)


def record_id(text: str) -> str:
    """The id of a record that brings none: 16 hex digits of the SHA-256 of its text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def numbered_id(identity: str, seen: dict[str, int]) -> str:
    """The id where it comes the first time, `ID-2`, `ID-3` where it comes again; `seen` counts them."""
    seen[identity] = seen.get(identity, 0) + 1
    return identity if seen[identity] == 1 else f"{identity}-{seen[identity]}"


def hash_fraction(key: str, salt: str) -> float:
    """A number in [0, 1) that depends on the key alone, for splits that never move a record."""
    digest = hashlib.sha256(f"{salt}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def read_jsonl(path: Path, *, required: Iterable[str] = (), bad: BadRecords = STRICT) -> Iterator[Record]:
    """Yield the records of a JSON lines file, compressed by gzip or not.

    Args:
        required: fields that each record has.
        bad: takes the lines that are no such records.

    Raises:
        DetoxError: the file is missing or damaged, or a line is not UTF-8, not a JSON object, holds what cannot be
            written again, or lacks a required field; the message names file and line.
    """
    wanted = tuple(required)
    for number, line in decoded_lines(path, bad):
        if line.strip():
            try:
                record = parse_record(line, f"{path}, line {number}", wanted)
            except DetoxError as error:
                bad.leave_out_line(error)
            else:
                yield record


def decoded_lines(path: Path, bad: BadRecords = STRICT) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a file, without a byte order mark; gzip is known by its content.

    Args:
        bad: takes the lines that are not UTF-8.

    Raises:
        DetoxError: the file cannot be read, a compressed one is damaged or cut, or a line is too long or not UTF-8.
    """
    number = unpacked = 0
    try:
        with path.open("rb") as plain_file:
            is_gzip = plain_file.peek(2)[:2] == _GZIP
            file = gzip.GzipFile(fileobj=plain_file) if is_gzip else plain_file
            while raw := file.readline(_LONGEST_LINE + 1):
                number += 1
                unpacked += len(raw)
                if is_gzip and unpacked > max(_LARGEST_UNPACKED, _MOST_PACKED * plain_file.tell()):
                    raise DetoxError(f"the file unpacks to more than {_MOST_PACKED} times its size", place=str(path),
                                     remedy="if this is meant, unpack it")
                try:
                    line = _decoded(raw, f"{path}, line {number}", first=number == 1)
                except _NotUtf8 as error:
                    bad.leave_out_line(error)
                else:
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DetoxError(f"the compressed file is damaged or cut ({error})", place=f"{path}, behind line {number}",
                         remedy="fetch it again") from None
    except OSError as error:
        raise DetoxError(f"cannot be read: {error.strerror or error}", place=str(path),
                         remedy="check the path and its rights") from None


def _decoded(raw: bytes, place: str, *, first: bool) -> str:
    if len(raw) > _LONGEST_LINE:
        raise DetoxError(f"the line has more than {_LONGEST_LINE // 2**20} MiB", place=place,
                         remedy="write each record on a line of its own")
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise _NotUtf8(
            f"not UTF-8 (byte {error.start + 1} of the line)", place=place,
            remedy="save the file as UTF-8, for example with `iconv -t UTF-8`",
        ) from None


def parse_record(line: str, place: str, required: tuple[str, ...] = ()) -> Record:
    """The record of a line.

    Raises:
        DetoxError: as of `read_jsonl`.
    """
    try:
        record = _JSON.decode(line)
        if _HALF_PAIR.search(line):
            json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise stand_in(line.encode(), place) or DetoxError(
            f"not valid JSON: {error.msg} at column {error.colno}", place=place,
            remedy='each line is one JSON object such as {"id": "1", "text": "..."}',
        ) from None
    except RecursionError:
        raise DetoxError("its values lie too deep in one another", place=place,
                         remedy="records hold texts and numbers, and few lists and objects") from None
    except UnicodeEncodeError:
        raise DetoxError("a text holds one half of a surrogate pair, which no file can hold", place=place,
                         remedy="write the whole character, or leave it out") from None
    except _NoNumber as error:
        raise DetoxError(f"not valid JSON: {error}", place=place, remedy="write null for what is not known") from None
    except ValueError:  # a whole number of thousands of digits
        raise DetoxError("a number has too many digits", place=place, remedy="write it as a text") from None
    if not isinstance(record, dict):
        raise DetoxError(f"a JSON object is needed, this is a {type(record).__name__}", place=place,
                         remedy='each line is one JSON object such as {"id": "1", "text": "..."}')
    for field in required:
        if field not in record:
            raise DetoxError(f"the field {field!r} is missing", place=place,
                             remedy=f"fields here: {', '.join(map(str, record)) or 'none'}")
    return record


def text_of(record: Record, field: str, place: str) -> str:
    """The text in a field of a record.

    Raises:
        DetoxError: the field is missing, or holds something else.
    """
    value = record.get(field)
    if isinstance(value, str):
        return value
    what = f"the field {field!r} is missing" if field not in record else f"the field {field!r} is {_kind(value)}"
    raise DetoxError(f"{what}, and text is needed", place=place,
                     remedy=f'write it as {{"{field}": "..."}}; fields here: {", ".join(map(str, record)) or "none"}')


def flag_of(record: Record, field: str, place: str) -> bool | None:
    """The yes or no in a field of a record: true, false, 1 or 0; None where the field is missing or null.

    Raises:
        DetoxError: the field holds something else.
    """
    value = record.get(field)
    if value is None or value in (0, 1):
        return None if value is None else bool(value)
    raise DetoxError(f"the field {field!r} is {_kind(value)}, and true or false is needed", place=place,
                     remedy=f'write it as {{"{field}": true}} or {{"{field}": false}}')


def read_texts(path: Path) -> list[str]:
    """The texts of a JSON lines file, without empty ones, of which it says how many there are.

    Raises:
        DetoxError: a line cannot be read, lacks `text`, or holds something else there.
    """
    texts: list[str] = []
    empty = 0
    for number, record in enumerate(read_jsonl(path, required=("text",)), start=1):
        text = "" if record["text"] is None else text_of(record, "text", f"{path}, record {number}")
        if text.strip():
            texts.append(text)
        else:
            empty += 1
    if empty:
        say(f"{path}: {empty} of {len(texts) + empty} texts are empty and left out")
    return texts


def check_generations(record: Record) -> None:
    """Look whether a record holds continuations: `generations`, objects with a `text`, null where it is missing.

    Raises:
        ValueError: it holds none, or something else.
    """
    generations = record.get("generations")
    if not isinstance(generations, list) or not generations:
        raise ValueError("no generations")
    for one in generations:
        if not isinstance(one, dict) or not isinstance(one.get("text", 0), str | None):
            raise ValueError("a generation without text")


def with_generations(record: Record) -> Record:
    """The record itself; a logged sample of lm-evaluation-harness (`doc`, `resps`) as one with `generations`.

    Raises:
        ValueError, TypeError: the sample holds other than one list of texts.
    """
    if "resps" not in record or not isinstance(record.get("doc"), dict):
        return record
    (texts,) = record["resps"]
    return {**record["doc"], "generations": [{"text": text} for text in texts]}


def read_generations(path: Path) -> Iterator[Record]:
    """Yield the records of an evaluation's `generations.jsonl`: `id`, `prompt` with a `text`, `generations`.

    Raises:
        DetoxError: a line is no such record.
    """
    for number, record in enumerate(read_jsonl(path, required=("id", "prompt", "generations")), start=1):
        try:
            check_generations(record)
            if not isinstance(record["prompt"], dict) or not isinstance(record["prompt"].get("text"), str):
                raise ValueError("a prompt without text")
        except ValueError as error:
            raise DetoxError(f"not a record with continuations: {error}", place=f"{path}, record {number}",
                             remedy="pass what `llm-detox evaluate` wrote, or evaluate again") from None
        yield {**record, "id": str(record["id"])}


def _kind(value: object) -> str:
    return "null" if value is None else f"{_KINDS.get(type(value), 'a text')} ({value!r:.40})"


def write_jsonl(path: Path, records: Iterable[Record]) -> int:
    """Write the records, one a line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def cut_at_damage(path: Path) -> Iterator[tuple[int, Record]]:
    """(offset, record) of each line of a file that only we write; from one that is torn or damaged on it is cut off."""
    end = 0
    with path.open("r+b") as file:
        for line in file:
            if (record := _whole_record(line)) is None:
                file.truncate(end)
                break
            yield end, record
            end += len(line)


def _whole_record(line: bytes) -> Record | None:
    """The record of a line; None where it is torn or damaged."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


class JsonlAppender:
    """Append whole lines to a file that an earlier, interrupted run may have begun.

    On opening, it is cut off where a line is torn or damaged, as after a power failure; `existing` are the records
    before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.existing: list[Record] = []
        if path.exists():
            self.existing = [record for _, record in cut_at_damage(path)]
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonlAppender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_SPACE = re.compile(r"\s+")
_LINK = re.compile(r"https?://\S+|www\.\S+")
_RETWEET = re.compile(r"\bRT\b(?=\s*[@:])|(?<!\w)@\w+:?")
_WIKI = re.compile(r"\(?\b(?:talk|contribs)\b\)?|\(UTC\)|={2,}|'{2,}|\[\[|\]\]")
# Tags by their names: `<3`, `a < b and c > d` and `<sighs>` are text.
_TAG = re.compile(r"""<!--.{0,500}?-->|<\s?/?\s?(?:
    abbr|b|big|blockquote|br|center|cite|code|dd|del|div|dl|dt|em|font|gallery|h[1-6]|hr|i|img|includeonly|ins|kbd|li
  | math|noinclude|nowiki|ol|onlyinclude|p|pre|ref|references|s|script|small|source|span|strike|strong|style|sub|sup
  | table|tbody|td|th|thead|tr|tt|u|ul|var
)(?:\s[^<>=]{0,50}=[^<>]{0,500}|\s?/?\s?)>""", re.IGNORECASE | re.VERBOSE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ue000-\uf8ff\ufffd]")
_NOT_WORD = re.compile(r"[^\w\s]|_")
_VARIATIONS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # how a sign is drawn


def clean_text(text: str) -> str:
    """One line of readable text: entities resolved; links, mentions, tags, wiki markup, control characters removed."""
    text = unicodedata.normalize("NFC", html.unescape(text))
    for noise in (_LINK, _RETWEET, _TAG, _WIKI, _CONTROL):
        text = noise.sub(" ", text)
    return _SPACE.sub(" ", text).strip(" \"“”:;,|-–—")


def same_text_key(text: str) -> str:
    """Equal for texts that differ only in case, punctuation, accents' form or spacing.

    Marks that belong to a letter, such as the vowel signs of Hindi, make another word and are kept.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = _NOT_WORD.sub(" ", folded) if folded.isascii() else _NOT_WORD.sub(_mark_or_blank, folded)
    return _SPACE.sub(" ", kept).strip()


def _mark_or_blank(match: re.Match[str]) -> str:
    is_mark = unicodedata.category(match[0]) in ("Mn", "Mc") and not _VARIATIONS.match(match[0])
    return match[0] if is_mark else " "


def cut_at_word(text: str, max_chars: int) -> str:
    """The text, shortened to `max_chars` at the end of a sentence if one ends late enough, else of a word."""
    if len(text) <= max_chars:
        return text
    head = text[:max_chars]
    stop = max(head.rfind(mark) for mark in (". ", "! ", "? "))
    if stop >= max_chars // 2:
        return head[: stop + 1]
    return head[: head.rfind(" ")] if " " in head else head
