"""What is known of a text before it is tokenized: how many tokens it has at least, and where it can be cut so that its
end has the tokens that it has in the whole text.

Both follow from a tokenizer's parts, for these: byte-level BPE (GPT-2, Llama 3, Qwen 2, SmolLM) and BPE over characters
with a fallback to bytes (Llama 2, Mistral, Gemma). Every byte or character of a text then is in one token, so that the
longest token bounds their number from below. A cut is before a space (or a line's end) that follows a letter or digit:
no token and no piece of the pre-tokenizer's patterns has a letter or digit before white space, none of them looks back,
and no normalizer joins the two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = frozenset(  # of Llama 3 and of Qwen 2
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + _REST for digits in (r"\p{N}{1,3}", r"\p{N}"))
_SPACE_MARK = "▁"
_NFC_SHRINKS = 4  # in bytes of UTF-8, at most: 7 bytes of U+1FBE U+0308 U+0301 become 2


@dataclass(frozen=True, slots=True)
class Locality:
    """What is known of one tokenizer.

    Args:
        longest: of a token, in bytes (or in characters, where `in_bytes` is not set).
        in_bytes: how lengths are counted.
        cuts: the white space before which a text may be cut.
        drops_space: whether the cut's space itself is left out, as the normalizer puts one before every text.
    """

    longest: int
    in_bytes: bool
    cuts: str
    drops_space: bool = False

    def least_tokens(self, text: str) -> int:
        """No text of this length has fewer tokens."""
        size = len(text.encode("utf-8", "surrogatepass")) if self.in_bytes else len(text)
        return -(-size // self.longest)

    def end(self, text: str, characters: int, furthest: int) -> str | None:
        """The end of a text that has the same tokens alone; it has at least so many characters.

        Args:
            text: the whole.
            characters: how many the end must have.
            furthest: how many it may have.

        Returns:
            None where there is no place to cut.
        """
        place = len(text) - characters
        first = max(1, len(text) - furthest)
        while place >= first:
            if text[place] in self.cuts and text[place - 1].isalnum():
                return text[place + self.drops_space:]
            place -= 1
        return None


def locality(backend: Any) -> Locality | None:
    """What is known of a `tokenizers.Tokenizer`; None where a part of it is not one of those above."""
    added = backend.get_added_tokens_decoder().values()
    if type(backend.model).__name__ != "BPE" or any(
            token.lstrip or token.rstrip or token.single_word or any(map(str.isspace, token.content))
            for token in added):
        return None
    contents = {token.content for token in added}
    plain = [token for token in backend.get_vocab() if token not in contents]
    normalizers, splitters = _parts(backend.normalizer, "normalizers"), _parts(
        backend.pre_tokenizer, "pretokenizers")
    return _byte_level(normalizers, splitters, plain, contents) or _by_character(
        backend.model, normalizers, splitters, plain, contents)


def _parts(component: Any, inner: str) -> list[dict[str, Any]]:
    """The settings of a normalizer or pre-tokenizer, in order."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    return state[inner] if state["type"] == "Sequence" else [state]


def _byte_level(normalizers: list[dict[str, Any]], splitters: list[dict[str, Any]], plain: list[str],
                added: set[str]) -> Locality | None:
    from llm_detox.generation.tokens import byte_of_character

    shrinks = {"": 1, "NFC": _NFC_SHRINKS}.get(",".join(part["type"] for part in normalizers))
    last = splitters[-1] if splitters else {}
    if shrinks is None or last.get("type") != "ByteLevel" or not set(byte_of_character()) <= set(plain):
        return None
    if not all(part["type"] in ("ByteLevel", "Digits") or _is_known_split(part) for part in splitters):
        return None
    if not (last["use_regex"] or any(_is_known_split(part) for part in splitters)):
        return None
    longest = max(*map(len, plain), *(len(content.encode()) for content in added), 1)
    return Locality(longest * shrinks, True, " " if last["add_prefix_space"] else " \n")


def _is_known_split(part: dict[str, Any]) -> bool:
    return (part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]
            and part["pattern"].get("Regex") in _PATTERNS)


def _by_character(model: Any, normalizers: list[dict[str, Any]], splitters: list[dict[str, Any]], plain: list[str],
                  added: set[str]) -> Locality | None:
    bytes_ = {f"<0x{byte:02X}>" for byte in range(256)}
    if not model.byte_fallback or not bytes_ <= set(plain):
        return None
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE_MARK}
    prepends = {"type": "Prepend", "prepend": _SPACE_MARK}
    marks = [part for part in splitters if part["type"] == "Metaspace" and part["replacement"] == _SPACE_MARK]
    if normalizers not in ([], [replaces], [prepends, replaces]) or splitters != marks or not (normalizers or marks):
        return None
    if any(_SPACE_MARK in token.lstrip(_SPACE_MARK) for token in plain):
        return None
    longest = max(*(len(token) for token in plain if token not in bytes_), *map(len, added), 1)
    return Locality(longest, False, " ", drops_space=prepends in normalizers)
