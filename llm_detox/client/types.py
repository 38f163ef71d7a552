"""What the protocols have in common: what requests take and answers hold, how a server is reached, what each offers."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from llm_detox.errors import DetoxError, UsageError

Message = Mapping[str, str]
Prompt = str | Sequence[Message]  # a text to continue, or a conversation: {"role": "user", "content": "..."}, ...


@dataclass(frozen=True, slots=True)
class Token:
    """A token's text, its log probability and its rank; None if it was not requested."""

    text: str
    logprob: float | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer. `finish_reason`: MAX_TOKENS, EOS_TOKEN, STOP_SEQUENCE, TIME_LIMIT, TOKEN_LIMIT, CANCELLED.

    Counts of tokens are 0 if the server does not report them.
    """

    text: str
    generated_tokens: int
    finish_reason: str
    input_token_count: int
    seed: int | None = None
    tokens: tuple[Token, ...] = ()
    input_tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer; `finish_reason` is NOT_FINISHED in all but the last.

    `generated_tokens` counts from the beginning of the answer. OpenAI-compatible servers report the counts at the end
    only, and before it they are 0.
    """

    text: str
    generated_tokens: int
    finish_reason: str
    input_token_count: int = 0
    seed: int | None = None
    tokens: tuple[Token, ...] = ()
    input_tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Generation parameters by their names in Caikit; None leaves a value to the server.

    `exponential_decay_length_penalty` is (start index, decay factor). `max_time` is in seconds. GREEDY takes no
    temperature, top_k, top_p, typical_p or seed.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    truncate_input_tokens: int | None = None
    decoding_method: Literal["GREEDY", "SAMPLING"] | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    max_time: float | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    stop_sequences: Sequence[str] | None = None
    seed: int | None = None
    preserve_input_text: bool | None = None
    input_tokens: bool | None = None
    generated_tokens: bool | None = None
    token_logprobs: bool | None = None
    token_ranks: bool | None = None
    include_stop_sequence: bool | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Parameters:
        """From keyword arguments; one stop sequence may stand there without a list around it.

        Raises:
            UsageError: there is no such parameter.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise UsageError(f"there is no generation parameter {name!r}", place="the request",
                                 remedy=f"one of {', '.join(sorted(known))}")
        stops = values.get("stop_sequences")
        return cls(**{**values, "stop_sequences": (stops,)} if isinstance(stops, str) else values)

    def given(self) -> dict[str, Any]:
        """The parameters that have a value."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


class GenerationError(DetoxError):
    """A request that did not bring an answer.

    Attributes:
        code: the gRPC status name, in every protocol.
        retry_after: seconds after which the server asks for another attempt, if it says so.
    """

    def __init__(self, code: str, message: str, *, place: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}", place=place, remedy=_REMEDIES.get(code, "look into the server's log"))
        self.code, self.retry_after = code, retry_after

    @property
    def may_be_repeated(self) -> bool:
        """Whether the same request can succeed a moment later.

        A generation changes nothing on the server, so that repeating one is always safe; but only a server that was
        not there or was full is asked again. One that fails on a request would fail on it again, or die of it twice,
        and a deadline that is over stays over.
        """
        return self.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


_REMEDIES = {
    "INVALID_ARGUMENT": "change the request as the message says",
    "NOT_FOUND": "ask for the model that is served, by the name it was deployed with",
    "UNAVAILABLE": "check the address, and that the server runs and has loaded the model",
    "DEADLINE_EXCEEDED": "allow more time, or ask for fewer tokens; or is this not the port of a model server?",
    "RESOURCE_EXHAUSTED": "send less at a time, or try again later",
    "UNAUTHENTICATED": "give a token or a client certificate",
    "PERMISSION_DENIED": "ask the server's owner for access",
}
NEXT_TURN = "\nUser:"  # without a template a model may continue with the user's next message
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


def plain_turns(messages: Sequence[Message]) -> str:
    """The prompt of a conversation for a model without a chat template: a line for each turn."""
    return "\n".join([f"{_NAMES[part['role']]}: {part['content']}" for part in messages] + ["Assistant:"])


class Conversation:
    """What was said so far.

    Args:
        render: makes a prompt of messages that end with the user's: a chat template, `plain_turns`, or `list` for a
            server that takes messages.
        system: the system prompt, if any.
    """

    def __init__(self, render: Callable[[Sequence[Message]], Prompt], system: str | None = None) -> None:
        self._render = render
        self._first = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []

    def ask(self, text: str) -> Prompt:
        """The prompt that asks this next. What is asked is kept once it has an answer."""
        self._asked = {"role": "user", "content": text}
        return self._render([*self._first, *self._turns, self._asked])

    def answered(self, text: str) -> None:
        """Keep the last question and its answer; an empty answer leaves both out."""
        if text.strip():
            self._turns += [self._asked, {"role": "assistant", "content": text.strip()}]

    def forget(self) -> None:
        """Start a new conversation."""
        self._turns.clear()

    def __len__(self) -> int:
        return len(self._turns)


@dataclass(frozen=True)
class Server:
    """The address of a server, and what proves identity. `token` is sent as a bearer token and never shown."""

    url: str
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise UsageError("a client certificate needs its key, and a key its certificate", place=self.url,
                             remedy="give both, or neither")
        for file in (self.ca_file, self.cert_file, self.key_file):
            if file is not None and not file.is_file():
                raise UsageError("no such file", place=str(file), remedy="give PEM files")

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    @property
    def target(self) -> str:
        """host:port."""
        return urlsplit(self.url).netloc

    @property
    def is_local(self) -> bool:
        """The environment's proxies are not used between two processes of one machine."""
        return urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")


class Deadline:
    """A point in time until which a call may last."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, never below a thousandth."""
        return max(self._end - time.monotonic(), 0.001)

    def check(self) -> None:
        """Raise TimeoutError if the time is over."""
        if time.monotonic() >= self._end:
            raise TimeoutError


class Transport(Protocol):
    """One protocol to one server. Prompts are conversations only if `takes_messages` says so."""

    takes_messages: bool

    def generate(self, model_id: str, prompt: Prompt, parameters: Parameters, deadline: Deadline) -> Generation: ...

    def stream(self, model_id: str, prompt: Prompt, parameters: Parameters,
               deadline: Deadline) -> Generator[Chunk]: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same, awaited."""

    takes_messages: bool

    async def generate(self, model_id: str, prompt: Prompt, parameters: Parameters,
                       deadline: Deadline) -> Generation: ...

    def stream(self, model_id: str, prompt: Prompt, parameters: Parameters,
               deadline: Deadline) -> AsyncGenerator[Chunk]: ...

    async def close(self) -> None: ...
