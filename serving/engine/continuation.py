"""One request's answer as its tokens come: text, details, and when it is done; the same for every back end."""

from __future__ import annotations

import time

from llm_detox.generation.tokens import StopText, TokenDetail, Vocabulary
from serving.engine.jobs import (
    EOS_TOKEN,
    ERROR,
    MAX_TOKENS,
    NOT_FINISHED,
    STOP_SEQUENCE,
    TIME_LIMIT,
    TOKEN_LIMIT,
    Job,
    Update,
)


class Continuation:
    """Takes tokens and delivers news to the job: each piece for a stream, all at the end otherwise.

    Args:
        job: the request.
        vocabulary: for text.
        eos: ids that end a sequence.
    """

    def __init__(self, job: Job, vocabulary: Vocabulary, eos: frozenset[int]) -> None:
        self.job, self.parameters = job, job.parameters
        self.count = 0
        self.reason = NOT_FINISHED
        self.stop_sequence = ""
        self._eos = eos
        self._tokens: list[TokenDetail] = []
        self._input_tokens: list[TokenDetail] | None = None
        self._detokenizer = vocabulary.detokenizer()
        self._text = StopText(job.parameters.stop_sequences, include=job.parameters.include_stop_sequence)

    def read_prompt(self, details: list[TokenDetail]) -> None:
        """Note the details of the input tokens."""
        self._input_tokens = details
        if self.job.stream:
            self.job.deliver(Update(input_tokens=self._input_tokens))
            self._input_tokens = None

    def accept(self, token: int, details: TokenDetail | None) -> None:
        """Take the next token, with its details where some are asked for, and see whether the request is done."""
        p = self.parameters
        self.count += 1
        if p.generated_tokens:
            self._tokens.append(details or TokenDetail(token))
        enough = self.count >= p.min_new_tokens
        ended = enough and token in self._eos
        piece = "" if ended else self._detokenizer.push(token)
        # Unlike TGIS, a stop sequence that the very last token completes counts as one, and is cut where asked.
        stop = self._text.add(piece, match=enough)
        self.reason = EOS_TOKEN if ended else self._reason(stop)
        if self.reason == STOP_SEQUENCE:
            self.stop_sequence = stop or ""
        elif self.reason != NOT_FINISHED:
            self._text.add(self._detokenizer.flush(), match=False)
        if self.job.stream or self.reason != NOT_FINISHED:
            self._send()

    def time_out(self) -> None:
        """End the request with what there is, as its time is over; nothing happens where it has ended."""
        if self.reason == NOT_FINISHED:
            self.reason = TIME_LIMIT
            self._text.add(self._detokenizer.flush(), match=False)
            self._send()

    def fail(self, error: Exception) -> None:
        """End the request with an error; nothing happens where it has ended."""
        if self.reason == NOT_FINISHED:
            self.reason = ERROR
            self.job.deliver(Update(count=self.count, reason=ERROR, error=f"{type(error).__name__}: {error}"))

    def _reason(self, stop: str | None) -> int:
        p = self.parameters
        if stop is not None:
            return STOP_SEQUENCE
        if self.count >= p.max_new_tokens:
            return TOKEN_LIMIT if p.max_is_token_limit else MAX_TOKENS
        if p.deadline is not None and time.monotonic() > p.deadline:
            return TIME_LIMIT
        return NOT_FINISHED

    def _send(self) -> None:
        text = self._text.ready(final=self.reason != NOT_FINISHED)
        tokens, self._tokens = self._tokens, []
        if text or tokens or self.reason != NOT_FINISHED:
            self.job.deliver(Update(text, tokens, self._input_tokens, self.count, self.reason, self.stop_sequence))
