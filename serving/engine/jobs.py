"""What passes between the service and an engine: requests one way, news of them the other. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llm_detox.generation.tokens import TokenDetail
from serving.engine.validation import Parameters

# The numbers of fmaas.StopReason.
NOT_FINISHED, MAX_TOKENS, EOS_TOKEN, CANCELLED, TIME_LIMIT, STOP_SEQUENCE, TOKEN_LIMIT, ERROR = range(8)


@dataclass(slots=True)
class Update:
    """News of a request: everything at the end, or, for a stream, what one token brought."""

    text: str = ""
    tokens: list[TokenDetail] = field(default_factory=list)
    input_tokens: list[TokenDetail] | None = None
    count: int = 0
    reason: int = NOT_FINISHED
    stop_sequence: str = ""
    error: str = ""


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way through the engine. `deliver` is called on the engine's thread."""

    ids: list[int]
    parameters: Parameters
    stream: bool
    deliver: Callable[[Update], None]
    cancelled: bool = False
    queued: float = field(default_factory=time.monotonic)
    passed_over: bool = False


class Engine(Protocol):
    """Generates text for jobs."""

    @property
    def healthy(self) -> bool:
        """Whether the last step worked; False before the first."""

    def start(self) -> None:
        """Begin to work."""

    def stop(self) -> None:
        """Cease; what is unfinished fails."""

    def refusal(self, parameters: Parameters) -> str | None:
        """Why the engine cannot follow these parameters; None where it can."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue requests; their news comes through `deliver`."""

    def cancel(self, job: Job) -> None:
        """Give the request's place to others. No further news of it need come."""
