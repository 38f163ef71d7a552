"""Texts to ids, at a cost that depends on what the model can take and not on what a caller sends."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from llm_detox.generation.tokens import Vocabulary
from serving.engine.locality import Locality, locality
from serving.engine.validation import InvalidRequest, Limits

MAX_TOKENIZED_CHARACTERS = 2**20
_INLINE_CHARACTERS = 4000
_FIRST_WINDOW = 4096
_CHARACTERS_PER_TOKEN = 8
_SPECIAL_TOKENS = 16  # more than any template puts before a text


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How texts become ids; `bos` starts a text that has none."""

    vocabulary: Vocabulary
    bos: int
    local: Locality | None = None

    @classmethod
    def of(cls, vocabulary: Vocabulary, bos: int) -> Tokenization:
        """With what is known of the vocabulary's tokenizer."""
        return cls(vocabulary, bos, locality(vocabulary.backend))

    def check(self, text: str, truncate: int, limits: Limits) -> None:
        """Refuse what cannot fit, from its length alone.

        Raises:
            InvalidRequest: however the text is tokenized, it has too many tokens.
        """
        if self.local is None or 0 < truncate < limits.max_sequence_length:
            return
        least = self.local.least_tokens(text)
        if least >= limits.max_sequence_length:
            raise InvalidRequest(f"input tokens (at least {least}) plus prefix length (0) must be < "
                                 f"{limits.max_sequence_length}")

    def encode(self, text: str, truncate: int = 0) -> list[int]:
        """Ids of a text with its special tokens; truncation keeps the end, and a leading special token.

        Of a long text only the end is tokenized, where its place shows that the tokens are the same (see `locality`).

        Raises:
            InvalidRequest: truncation asks for the end of a text that is too long, and there is no place to cut it.
        """
        encoded = self._end(text, truncate) or self._encoded(text)
        ids = list(encoded.ids) or [self.bos]
        if 0 < truncate < len(ids):
            kept = 1 if encoded.special_tokens_mask[0] and truncate > 1 else 0
            ids = ids[:kept] + ids[len(ids) - truncate + kept:]
        return ids

    def _end(self, text: str, truncate: int) -> Any:
        """The encoding of an end of the text with more than so many tokens; None where the whole is needed."""
        if self.local is None or truncate == 0:
            return None
        window = max(_FIRST_WINDOW, _CHARACTERS_PER_TOKEN * truncate)
        while window < len(text):
            furthest = max(2 * window, MAX_TOKENIZED_CHARACTERS)
            end = self.local.end(text, window, furthest)
            if end is None and len(text) > furthest:
                raise InvalidRequest(f"the input cannot be truncated: in the last {furthest} of its {len(text)} "
                                     "characters no space follows a letter or digit; send only its end")
            if end is None:
                return None
            encoded = self._encoded(end)
            if len(encoded.ids) >= truncate + _SPECIAL_TOKENS:
                return encoded
            window = 2 * max(window, len(end))
        return None

    def _encoded(self, text: str) -> Any:
        # For a single text, `encode` would hold the interpreter all the while.
        [encoded] = self.vocabulary.backend.encode_batch_fast([text])
        return encoded


class Tokenizing:
    """Tokenizes for calls: short texts at once, long ones in threads, so that they do not hold up the others."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenizer")

    async def ids(self, tokenization: Tokenization, text: str, truncate: int, limits: Limits) -> list[int]:
        """See `Tokenization.check` and `Tokenization.encode`."""
        tokenization.check(text, truncate, limits)
        if len(text) < _INLINE_CHARACTERS:
            return tokenization.encode(text, truncate)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, tokenization.encode, text, truncate)

    async def response(self, tokenization: Tokenization, request: Any, pb: Any) -> Any:
        """fmaas.BatchedTokenizeResponse: counts, tokens and character offsets where asked; truncation keeps the end.

        Raises:
            InvalidRequest: the texts are too long.
        """
        if sum(len(item.text) for item in request.requests) > MAX_TOKENIZED_CHARACTERS:
            raise InvalidRequest(f"texts to tokenize must have at most {MAX_TOKENIZED_CHARACTERS} characters together")
        loop = asyncio.get_running_loop()
        responses = [await loop.run_in_executor(self._pool, _tokenized, tokenization.vocabulary.backend, item.text,
                                                request, pb) for item in request.requests]
        return pb.BatchedTokenizeResponse(responses=responses)


def _tokenized(backend: Any, text: str, request: Any, pb: Any) -> Any:
    [encoded] = backend.encode_batch([text])
    total = len(encoded.ids)
    first = max(0, total - request.truncate_input_tokens) if request.truncate_input_tokens else 0
    response = pb.TokenizeResponse(token_count=total - first)
    if request.return_tokens:
        response.tokens.extend(encoded.tokens[first:])
    if request.return_offsets:
        for start, end in encoded.offsets[first:]:
            response.offsets.add(start=start, end=end)
    return response
