"""How tokens are to be chosen, and what becomes of them: text without broken characters, ended by a stop sequence.

One detokeniser for whole continuations and for those that grow token by token: what the pieces add up to is what
decoding all ids at once gives, less broken characters at the very end. Imports no torch.
"""

from __future__ import annotations

import codecs
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llm_detox.errors import DetoxError

_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """What a request asks of its sampler; the defaults ask nothing.

    Attributes:
        temperature: 0 takes the most likely token, and the next four values then do not count.
        top_k, top_p, typical_p: which tokens may be drawn; 0, 1 and 1 keep all.
        seed: None draws anew each time.
        repetition_penalty: on tokens of the prompt and of the continuation.
        length_penalty: after so many tokens the end gets likelier by this factor with each.
        min_new_tokens: before them no token ends the sequence.
        logprobs, ranks, top_n: which details of tokens are wanted, and of how many other candidates.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    length_penalty: tuple[int, float] | None = None
    min_new_tokens: int = 0
    logprobs: bool = False
    ranks: bool = False
    top_n: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(slots=True)
class TokenDetail:
    """One token with what was asked about it; `top` holds (id, logprob) of the best candidates."""

    token: int
    logprob: float = 0.0
    rank: int = 0
    top: list[tuple[int, float]] = field(default_factory=list)


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

    @classmethod
    def of(cls, tokenizer: Any, *, keep_special: bool = False) -> Vocabulary:
        """The vocabulary of a tokenizer of transformers.

        Raises:
            DetoxError: the tokenizer has no fast form.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DetoxError("the tokenizer has no fast form (tokenizer.json)", place=str(tokenizer.name_or_path),
                             remedy="save it with `AutoTokenizer.from_pretrained(...).save_pretrained(...)` once")
        return cls(backend, keep_special=keep_special)

    def detokenizer(self) -> Detokenizer:
        """A fresh one for one continuation."""
        return _ByteLevel(self) if self.byte_level else _Difference(self)

    def text(self, ids: Iterable[int]) -> str:
        """A whole continuation at once: what the pieces of a detokenizer add up to."""
        if self.byte_level:
            content = b"".join(self.token_bytes(token) for token in ids if not self.hidden(token))
            return content.decode("utf-8", "replace").rstrip(_REPLACEMENT)
        return self.decode([*self.anchor, *ids])[len(self.decode(self.anchor)):].rstrip(_REPLACEMENT)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids as the tokenizer itself gives it; some drop a first space."""
        return str(self.backend.decode(list(ids), skip_special_tokens=not self.keep_special))

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
        content = self._bytes.get(token)
        if content is None:
            name, table = self.name(token), byte_of_character()
            try:
                content = bytes([table[character] for character in name])
            except KeyError:  # an added token stands for its own text
                content = name.encode()
            self._bytes[token] = content
        return content


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
        self._shown = vocabulary.decode(self._context)
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        if self._vocabulary.hidden(token):
            return ""
        self._pending.append(token)
        text = self._vocabulary.decode(self._context + self._pending)
        if text.endswith(_REPLACEMENT):
            return ""
        return self._take(text)

    def flush(self) -> str:
        if not self._pending:
            return ""
        return self._take(self._vocabulary.decode(self._context + self._pending)).rstrip(_REPLACEMENT)

    def _take(self, text: str) -> str:
        new = text[len(self._shown):]
        self._context = [*self._vocabulary.anchor, *self._pending]
        self._pending = []
        self._shown = self._vocabulary.decode(self._context)
        return new


class StopText:
    """The text of one continuation, watched for stop sequences.

    A stop sequence may begin in one token and end in another. When it is not to be shown, the end of the text that
    could become one is held back until it is clear.

    Args:
        sequences: the stop sequences; the first of them to begin in the text wins.
        include: whether a matched sequence stays in the text.
    """

    def __init__(self, sequences: tuple[str, ...], *, include: bool) -> None:
        self._sequences, self._include = sequences, include
        self.text = ""
        self._sent = 0

    def add(self, piece: str, *, match: bool) -> str | None:
        """Append a piece; the stop sequence that it completes, after which the text is final, or None."""
        before = len(self.text)
        self.text += piece
        if not (piece and match and self._sequences):
            return None
        matches = [(position, sequence) for sequence in self._sequences
                   if (position := self.text.find(sequence, max(0, before - len(sequence) + 1))) >= 0]
        if not matches:
            return None
        position, sequence = min(matches, key=lambda item: item[0])
        self.text = self.text[: position + (len(sequence) if self._include else 0)]
        return sequence

    def ready(self, *, final: bool) -> str:
        """The text not yet handed out that can be: all of it when final."""
        end = len(self.text) if final or self._include else len(self.text) - self._held()
        piece = self.text[self._sent:end]
        self._sent = max(end, self._sent)
        return piece

    def _held(self) -> int:
        """How many characters at the end could be the beginning of a stop sequence."""
        longest = 0
        for sequence in self._sequences:
            for size in range(min(len(sequence) - 1, len(self.text) - self._sent), longest, -1):
                if sequence.startswith(self.text[-size:]):
                    longest = size
                    break
        return longest


@functools.cache
def byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable bytes stand for themselves, the others for code points from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
