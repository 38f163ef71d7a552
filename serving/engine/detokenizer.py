"""Token ids to text, one token at a time, with no broken characters at the borders.

What the pieces add up to is what decoding all ids at once gives, less broken characters at the very end.
"""

from __future__ import annotations

import codecs
import functools
from typing import Any, Protocol

_REPLACEMENT = "�"


class Detokenizer(Protocol):
    """Turns the ids of one continuation into text."""

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""

    def flush(self) -> str:
        """What is left at the end. Unfinished and broken characters are dropped, as TGIS does."""


class Vocabulary:
    """What detokenizers need to know of a fast tokenizer.

    Args:
        backend: a `tokenizers.Tokenizer`.
        keep_special: whether special tokens (end of sequence and the like) show up in the text.
    """

    def __init__(self, backend: Any, *, keep_special: bool = False) -> None:
        self.backend = backend
        self.keep_special = keep_special
        self.special = {id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special}
        self.byte_level = type(backend.decoder).__name__ == "ByteLevel"
        self._bytes: dict[int, bytes] = {}

    def detokenizer(self) -> Detokenizer:
        """A fresh one for one continuation."""
        return _ByteLevel(self) if self.byte_level else _Difference(self)

    def hidden(self, token: int) -> bool:
        return not self.keep_special and token in self.special

    def name(self, token: int) -> str:
        """The token as the vocabulary spells it; empty for an id without an entry."""
        return self.backend.id_to_token(token) or ""

    @functools.cached_property
    def anchor(self) -> tuple[int, ...]:
        """Ids put before a continuation, so that decoders that treat the first token apart keep its space."""
        return tuple(self.backend.encode("A", add_special_tokens=False).ids)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a byte-level token stands for."""
        found = self._bytes.get(token)
        if found is None:
            name, table = self.name(token), _byte_of_character()
            try:
                found = bytes([table[character] for character in name])
            except KeyError:  # an added token stands for its own text
                found = name.encode()
            self._bytes[token] = found
        return found


class _ByteLevel:
    """For byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): tokens are bytes, so UTF-8 is decoded incrementally."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._broken = ""  # kept until something whole follows, as at the end they are dropped

    def push(self, token: int) -> str:
        if self._vocabulary.hidden(token):
            return ""
        text = self._broken + self._decoder.decode(self._vocabulary.token_bytes(token))
        whole = text.rstrip(_REPLACEMENT)
        self._broken = text[len(whole):]
        return whole

    def flush(self) -> str:
        return ""


class _Difference:
    """For every other decoder: the text with the new ids, less the text without them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._context = list(vocabulary.anchor)
        self._shown = self._decode(self._context)
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        if self._vocabulary.hidden(token):
            return ""
        self._pending.append(token)
        text = self._decode(self._context + self._pending)
        if text.endswith(_REPLACEMENT):
            return ""
        return self._take(text)

    def flush(self) -> str:
        if not self._pending:
            return ""
        return self._take(self._decode(self._context + self._pending)).rstrip(_REPLACEMENT)

    def _take(self, text: str) -> str:
        new = text[len(self._shown):]
        self._context = self._pending
        self._pending = []
        self._context = [*self._vocabulary.anchor, *self._context]
        self._shown = self._decode(self._context)
        return new

    def _decode(self, ids: list[int]) -> str:
        return str(self._vocabulary.backend.decode(ids, skip_special_tokens=not self._vocabulary.keep_special))


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable bytes stand for themselves, the others for code points from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
