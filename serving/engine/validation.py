"""From the request's protobuf parameters to checked values; errors carry the words that TGIS uses."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, replace
from typing import Any

from llm_detox.generation.tokens import SamplerSettings

MAX_STOP_SEQUENCES = 6
MAX_STOP_SEQUENCE_BYTES = 240
MAX_TOP_N_TOKENS = 5
DEFAULT_MAX_NEW_TOKENS = 20


class InvalidRequest(ValueError):
    """The request breaks a rule; the text goes to the client with INVALID_ARGUMENT."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server allows: lengths in tokens."""

    max_sequence_length: int
    max_new_tokens: int
    include_stop_sequence: bool = True


@dataclass(frozen=True, slots=True)
class Parameters(SamplerSettings):
    """One request's parameters, checked: how tokens are chosen, when it ends, and what the answer holds."""

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    max_is_token_limit: bool = False
    deadline: float | None = None  # on the clock of time.monotonic()
    stop_sequences: tuple[str, ...] = ()
    include_stop_sequence: bool = True
    truncate_input_tokens: int = 0
    input_text: bool = False
    input_tokens: bool = False
    generated_tokens: bool = False

    def for_input(self, input_length: int, limits: Limits) -> Parameters:
        """These parameters for an input of so many tokens: a seed is drawn, the length is bounded.

        Raises:
            InvalidRequest: the input, or the input with the least output, is too long.
        """
        if input_length >= limits.max_sequence_length:
            raise InvalidRequest(
                f"input tokens ({input_length}) plus prefix length (0) must be < {limits.max_sequence_length}")
        if input_length + self.min_new_tokens > limits.max_sequence_length:
            raise InvalidRequest(f"input tokens ({input_length}) plus prefix length (0) plus min_new_tokens "
                                 f"({self.min_new_tokens}) must be <= {limits.max_sequence_length}")
        own = self
        if not own.greedy and own.seed is None:
            own = replace(own, seed=random.SystemRandom().getrandbits(32))
        if input_length + own.max_new_tokens > limits.max_sequence_length:
            own = replace(own, max_new_tokens=limits.max_sequence_length - input_length, max_is_token_limit=True)
        return own


def parameters(message: Any, limits: Limits) -> Parameters:
    """Read `fmaas.Parameters`.

    Raises:
        InvalidRequest: a value is out of range, or asks for what the server does not have.
    """
    _check_guided(message.decoding)
    stopping, decoding, response = message.stopping, message.decoding, message.response
    length = decoding.length_penalty if decoding.HasField("length_penalty") else None
    include = stopping.include_stop_sequence if stopping.HasField("include_stop_sequence") else None
    read = Parameters(
        **(_sampling(message.sampling) if message.method == 1 else {}),
        repetition_penalty=decoding.repetition_penalty or 1.0,
        length_penalty=(length.start_index, length.decay_factor) if length else None,
        max_new_tokens=stopping.max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, limits.max_new_tokens),
        min_new_tokens=stopping.min_new_tokens,
        deadline=time.monotonic() + stopping.time_limit_millis / 1000 if stopping.time_limit_millis else None,
        stop_sequences=tuple(stopping.stop_sequences),
        include_stop_sequence=limits.include_stop_sequence if include is None else include,
        truncate_input_tokens=message.truncate_input_tokens,
        input_text=response.input_text,
        input_tokens=response.input_tokens,
        generated_tokens=response.generated_tokens,
        logprobs=response.token_logprobs,
        ranks=response.token_ranks,
        top_n=response.top_n_tokens,
    )
    _check(read, limits)
    return read


def _sampling(message: Any) -> dict[str, Any]:
    return {
        "temperature": message.temperature or 1.0,
        "top_k": message.top_k,
        "top_p": message.top_p or 1.0,
        # TGIS takes what is not positive as off.
        "typical_p": 1.0 if message.typical_p <= 0 else message.typical_p,
        "seed": message.seed if message.HasField("seed") else None,
    }


def _check(read: Parameters, limits: Limits) -> None:
    rules = (
        (read.greedy or 0.05 <= read.temperature < math.inf, "temperature must be >= 0.05"),
        (0.0 < read.top_p <= 1.0, "top_p must be > 0.0 and <= 1.0"),
        (read.typical_p <= 1.0, "typical_p must be <= 1.0"),
        (read.top_k < 2**31, "top_k must be strictly positive"),
        (read.max_new_tokens <= limits.max_new_tokens, f"max_new_tokens must be <= {limits.max_new_tokens}"),
        (read.min_new_tokens <= read.max_new_tokens, "min_new_tokens must be <= max_new_tokens"),
        (0.0 < read.repetition_penalty < math.inf, "repetition_penalty must be > 0.0"),
        (read.length_penalty is None or 1.0 <= read.length_penalty[1] <= 10.0,
         "length_penalty must be >= 1.0 and <= 10.0"),
        (len(read.stop_sequences) <= MAX_STOP_SEQUENCES
         and all(0 < len(text.encode()) <= MAX_STOP_SEQUENCE_BYTES for text in read.stop_sequences),
         f"can specify at most {MAX_STOP_SEQUENCES} non-empty stop sequences, "
         f"each not more than {MAX_STOP_SEQUENCE_BYTES} UTF8 bytes"),
        (read.input_tokens or read.generated_tokens or not (read.logprobs or read.ranks or read.top_n),
         "must request input and/or generated tokens to request extra token detail"),
        (read.top_n <= MAX_TOP_N_TOKENS, f"top_n_tokens ({read.top_n}) must be <= {MAX_TOP_N_TOKENS}"),
    )
    for holds, words in rules:
        if not holds:
            raise InvalidRequest(words)


def _check_guided(decoding: Any) -> None:
    kind = decoding.WhichOneof("guided")
    if kind is not None and not (kind == "format" and decoding.format == 0):
        raise InvalidRequest(f"guided decoding ({kind}) is not supported by this server")


def check_prefix(message: Any) -> None:
    """Refuse prompt prefixes and adapters: this server has none.

    Raises:
        InvalidRequest: `prefix_id` or `adapter_id` is set.
    """
    for field, name in (("prefix_id", "prompt prefix"), ("adapter_id", "adapter")):
        value = getattr(message, field)
        if value:
            raise InvalidRequest(f"can't retrieve {name} with id '{value}': {name} \"{value}\" not found")
