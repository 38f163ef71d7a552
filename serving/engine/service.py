"""`fmaas.GenerationService` over gRPC: messages in, jobs to the engine, messages out."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from llm_detox.generation.tokens import TokenDetail
from serving.engine import proto
from serving.engine.jobs import ERROR, NOT_FINISHED, Engine, Job, Update
from serving.engine.metrics import Metrics
from serving.engine.tokenization import Tokenization, Tokenizing
from serving.engine.validation import InvalidRequest, Limits, Parameters, check_prefix, parameters

log = logging.getLogger(__name__)

_DECODER_ONLY = 0
_IDLE_SECONDS = 0.05


@dataclass(eq=False, slots=True)
class Served:
    """A loaded model as calls meet it; `calls` is how many are at it."""

    folder: str
    tokenization: Tokenization
    engine: Engine
    limits: Limits
    calls: int = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    async def generates(self) -> bool:
        """Whether a token can be generated now."""
        queue = asyncio.Queue[Update]()
        prepared = [(self.tokenization.encode("liveness"), Parameters(max_new_tokens=1))]
        with self.call(), self.submitted(prepared, [queue], stream=False):
            return (await queue.get()).reason != ERROR

    @contextmanager
    def submitted(self, prepared: Sequence[tuple[list[int], Parameters]], queues: Sequence[asyncio.Queue[Update]],
                  *, stream: bool) -> Iterator[None]:
        """Jobs in the engine whose news come to the queues; on leaving, what is unfinished is cancelled."""
        loop = asyncio.get_running_loop()
        jobs = [Job(ids, p, stream, _to(queue, loop)) for (ids, p), queue in zip(prepared, queues, strict=True)]
        self.engine.submit(jobs)
        try:
            yield
        finally:
            for job in jobs:
                self.engine.cancel(job)

    async def idle(self) -> None:
        """Return when the last call has ended."""
        while self.calls:
            await asyncio.sleep(_IDLE_SECONDS)

    def details(self, pb: Any, tokens: Sequence[TokenDetail]) -> list[Any]:
        """fmaas.TokenInfo messages."""
        name = self.tokenization.vocabulary.name
        return [pb.TokenInfo(text=name(t.token), logprob=t.logprob, rank=t.rank,
                             top_tokens=[pb.TokenInfo.TopToken(text=name(i), logprob=value) for i, value in t.top])
                for t in tokens]


class GenerationService:
    """The four calls. Every method takes the request message and grpc.aio's context.

    `served` may be replaced at any time: calls that have begun end with the model that they began with.
    """

    def __init__(self, served: Served, metrics: Metrics, *, max_concurrent_requests: int) -> None:
        self.served, self._metrics = served, metrics
        self._free = max_concurrent_requests
        self._pb = proto.messages()
        self._reasons = {number: name for name, number in self._pb.StopReason.items()}
        self._tokenizing = Tokenizing()

    def handlers(self) -> Any:
        """What a grpc.aio server registers."""
        pb = self._pb
        calls = {
            "Generate": (grpc.unary_unary_rpc_method_handler, self.generate, pb.BatchedGenerationRequest),
            "GenerateStream": (grpc.unary_stream_rpc_method_handler, self.stream, pb.SingleGenerationRequest),
            "Tokenize": (grpc.unary_unary_rpc_method_handler, self.tokenize, pb.BatchedTokenizeRequest),
            "ModelInfo": (grpc.unary_unary_rpc_method_handler, self.model_info, pb.ModelInfoRequest),
        }
        return grpc.method_handlers_generic_handler(proto.SERVICE, {
            name: make(call, request_deserializer=functools.partial(_decode, request),
                       response_serializer=lambda message: message.SerializeToString())
            for name, (make, call, request) in calls.items()
        })

    async def generate(self, request: Any, context: Any) -> Any:
        """Generate: all inputs of the request, together."""
        count = len(request.requests)
        kind = "single" if count == 1 else "batch"
        self._metrics.requests.labels(kind).inc()
        if count == 0:
            return self._pb.BatchedGenerationResponse()
        served = self.served
        with self._places(count), served.call():
            started = time.monotonic()
            prepared = await self._prepare(served, request, [item.text for item in request.requests])
            queues = [asyncio.Queue[Update]() for _ in prepared]
            with served.submitted(prepared, queues, stream=False):
                updates = [await queue.get() for queue in queues]
            responses = [self._answer(served, item.text, ids, p, update)
                         for item, (ids, p), update in zip(request.requests, prepared, updates, strict=True)]
            for (ids, _), update in zip(prepared, updates, strict=True):
                self._finished(kind, len(ids), update, started)
            return self._pb.BatchedGenerationResponse(responses=responses)

    async def stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """GenerateStream: first what is known of the input, then a message for each piece of text."""
        self._metrics.requests.labels("stream").inc()
        served = self.served
        with self._places(1), served.call():
            if not request.HasField("request"):
                raise InvalidRequest("missing request")
            started = time.monotonic()
            text = request.request.text
            [(ids, p)] = prepared = await self._prepare(served, request, [text])
            yield self._pb.GenerationResponse(input_token_count=len(ids), seed=p.seed or 0,
                                              text=text if p.input_text else "")
            queue = asyncio.Queue[Update]()
            with served.submitted(prepared, [queue], stream=True):
                reason = NOT_FINISHED
                while reason == NOT_FINISHED:
                    update = await queue.get()
                    reason = update.reason
                    yield self._piece(served, ids, p, update)
            self._finished("stream", len(ids), update, started)

    async def tokenize(self, request: Any, context: Any) -> Any:
        """Tokenize: token counts, and the tokens and their character offsets where asked; truncation keeps the end."""
        self._metrics.tokenize.inc()
        return await self._tokenizing.response(self.served.tokenization, request, self._pb)

    async def model_info(self, request: Any, context: Any) -> Any:
        """ModelInfo: the kind of the model and its limits."""
        limits = self.served.limits
        return self._pb.ModelInfoResponse(model_kind=_DECODER_ONLY, max_new_tokens=limits.max_new_tokens,
                                          max_sequence_length=limits.max_sequence_length)

    async def healthy(self) -> bool:
        """Whether generation works: the last step did, or a token can be generated now."""
        return self.served.engine.healthy or await self.served.generates()

    async def _prepare(self, served: Served, request: Any,
                       texts: Sequence[str]) -> list[tuple[list[int], Parameters]]:
        """Check a request and tokenize its inputs."""
        check_prefix(request)
        self._metrics.inputs.inc(len(texts))
        p = parameters(request.params, served.limits)
        refusal = served.engine.refusal(p)
        if refusal is not None:
            raise InvalidRequest(refusal)
        prepared = []
        for text in texts:
            ids = await self._tokenizing.ids(served.tokenization, text, p.truncate_input_tokens, served.limits)
            prepared.append((ids, p.for_input(len(ids), served.limits)))
            self._metrics.input_tokens.observe(len(ids))
        return prepared

    @contextmanager
    def _places(self, count: int) -> Any:
        """So many of the places for concurrent inputs."""
        if count > self._free:
            self._metrics.failure.labels("conc_limit").inc()
            raise Overloaded("Model is overloaded")
        self._free -= count
        try:
            yield
        finally:
            self._free += count

    def _answer(self, served: Served, text: str, ids: list[int], p: Parameters, update: Update) -> Any:
        if update.reason == ERROR:
            raise GenerationFailed(update.error)
        return self._pb.GenerationResponse(
            input_token_count=len(ids), generated_token_count=update.count,
            text=(text if p.input_text else "") + update.text, stop_reason=update.reason,
            stop_sequence=update.stop_sequence, seed=p.seed or 0, tokens=served.details(self._pb, update.tokens),
            input_tokens=served.details(self._pb, update.input_tokens or []))

    def _piece(self, served: Served, ids: list[int], p: Parameters, update: Update) -> Any:
        if update.reason == ERROR:
            raise GenerationFailed(update.error)
        if update.input_tokens is not None:
            return self._pb.GenerationResponse(input_token_count=len(ids),
                                               input_tokens=served.details(self._pb, update.input_tokens))
        return self._pb.GenerationResponse(
            generated_token_count=update.count, text=update.text, stop_reason=update.reason,
            stop_sequence=update.stop_sequence, tokens=served.details(self._pb, update.tokens),
            seed=(p.seed or 0) if update.reason != NOT_FINISHED else 0)

    def _finished(self, kind: str, inputs: int, update: Update, started: float) -> None:
        seconds, reason = time.monotonic() - started, self._reasons[update.reason]
        self._metrics.success.labels(reason, kind).inc()
        self._metrics.seconds.observe(seconds)
        self._metrics.generated_tokens.observe(update.count)
        log.info("%s request: %d input tokens, %d generated, %s, %.3f s", kind, inputs, update.count, reason, seconds)


class Undecodable(Exception):
    """The bytes of a request are no message of its type."""


class Overloaded(Exception):
    """More requests at once than the server takes."""


class GenerationFailed(Exception):
    """The model could not finish a request."""

    def __str__(self) -> str:
        return f"Request failed during generation: {super().__str__()}"


def _decode(kind: Any, data: bytes) -> Any:
    """The message, or the reason why there is none: gRPC's own answer to an exception here is UNKNOWN."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        return Undecodable(f"failed to decode Protobuf message: {error}")


def _to(queue: asyncio.Queue[Update], loop: asyncio.AbstractEventLoop) -> Callable[[Update], None]:
    def deliver(update: Update) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, update)
    return deliver
