"""What Caikit asks the engine for a client ends with the client, and what the engine says is passed on in its words.

Caikit itself lets the engine go on, and a stream over REST that is left keeps one of its hundred threads for ever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

_asking = threading.local()


class EngineCalls:
    """The calls to the engine that one client's request makes. They end when the client goes."""

    def __init__(self) -> None:
        self._calls: list[Any] = []
        self._over, self._lock = False, threading.Lock()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Calls that this thread makes inside the block belong to the request."""
        _asking.calls = self
        try:
            yield
        finally:
            _asking.calls = None

    def add(self, call: Any) -> None:
        with self._lock:
            self._calls.append(call)
            over = self._over
        if over:
            call.cancel()

    def abort(self) -> None:
        """End them; what has ended stays as it is. Caikit's aborters call this when a client has gone."""
        with self._lock:
            self._over, calls = True, list(self._calls)
        for call in calls:
            call.cancel()


class Pieces:
    """A stream's messages, fetched in whichever thread asks for them."""

    def __init__(self, items: Any, calls: EngineCalls) -> None:
        self._items, self._calls = iter(items), calls
        self.abort = calls.abort

    def __iter__(self) -> Pieces:
        return self

    def __next__(self) -> Any:
        with self._calls.current():
            return next(self._items)


def end_with_the_client() -> None:
    """Tie each call to the engine to the client's request that it is made for."""
    from caikit.runtime.http_server import http_server
    from caikit.runtime.servicers.global_predict_servicer import GlobalPredictServicer
    from caikit_tgis_backend.load_balancing_proxy import GRPCLoadBalancerProxy
    from caikit_tgis_backend.protobufs import generation_pb2_grpc

    plain_predict = GlobalPredictServicer.predict_model

    def predict(self: Any, *args: Any, aborter: Any = None, output_streaming: Any = None, **options: Any) -> Any:
        calls = EngineCalls()
        if aborter is not None:
            aborter.set_context(calls)  # in place of Caikit's own way, an exception thrown into the thread
        with calls.current():
            answer = plain_predict(self, *args, output_streaming=output_streaming, **options)
        return Pieces(answer, calls) if output_streaming else answer

    GlobalPredictServicer.predict_model = predict
    http_server.async_wrap_iter = fetched

    plain_proxy = GRPCLoadBalancerProxy.__init__

    def proxy(self: Any, *args: Any, channel_options: Any = None, **options: Any) -> None:
        # Long inputs come back with their tokens; an engine that was away is found again soon.
        more = [("grpc.max_receive_message_length", -1), ("grpc.max_reconnect_backoff_ms", 2000)]
        plain_proxy(self, *args, channel_options=[*(channel_options or ()), *more], **options)

    GRPCLoadBalancerProxy.__init__ = proxy
    stub: Any = generation_pb2_grpc.GenerationServiceStub
    plain_stub = stub.__init__

    def init(self: Any, channel: Any) -> None:
        plain_stub(self, channel)
        self.Generate, self.Tokenize = _unary(self.Generate), _unary(self.Tokenize)
        self.GenerateStream = _stream(self.GenerateStream)

    stub.__init__ = init


async def fetched(items: Any, pool: Any = None) -> AsyncIterator[Any]:
    """The pieces of a stream for the event loop; those not yet fetched are given up when nobody listens any more."""
    loop, end = asyncio.get_running_loop(), object()
    try:
        while (item := await loop.run_in_executor(pool, next, items, end)) is not end:
            yield item
    finally:
        items.abort()


def _unary(plain: Any) -> Callable[..., Any]:
    import grpc

    def call(request: Any, **options: Any) -> Any:
        running = _noted(plain.future(request, **options))
        try:
            return running.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            _explain(error)
            raise
    return call


def _stream(plain: Any) -> Callable[..., Iterator[Any]]:
    import grpc

    def call(request: Any, **options: Any) -> Iterator[Any]:
        try:
            yield from _noted(plain(request, **options))
        except grpc.RpcError as error:
            _explain(error)
            raise
    return call


def _noted(call: Any) -> Any:
    calls: EngineCalls | None = getattr(_asking, "calls", None)
    if calls is not None:
        calls.add(call)
    return call


def _explain(error: Any) -> None:
    """Raise what Caikit has no word for, or the wrong one."""
    import grpc
    from caikit.runtime.types.caikit_runtime_exception import CaikitRuntimeException

    codes = grpc.StatusCode
    if isinstance(error, grpc.FutureCancelledError):
        raise CaikitRuntimeException(codes.CANCELLED, "the client has gone") from error
    gone = (codes.UNAVAILABLE, codes.CANCELLED, codes.ABORTED, codes.DATA_LOSS)  # over REST, streams would say 500
    if error.code() in gone or (error.code() is codes.UNKNOWN and "Stream removed" in error.details()):
        raise CaikitRuntimeException(codes.UNAVAILABLE, f"the engine has gone: {error.details()}") from error
    if error.code() is codes.RESOURCE_EXHAUSTED and "larger than max" not in error.details():
        raise CaikitRuntimeException(error.code(), error.details()) from error
