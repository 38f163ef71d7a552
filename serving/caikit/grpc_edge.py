"""What reaches Caikit's gRPC port: the calls on a list and no others, and only while their clients talk and listen.

Caikit keeps a thread for each call. A client that opens calls and sends nothing, or reads nothing of an answer, would
keep all of them; here it loses its call.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

log = logging.getLogger(__name__)

_NLP = "/caikit.runtime.Nlp.NlpService"
OFFERED = frozenset({
    f"{_NLP}/TextGenerationTaskPredict", f"{_NLP}/ServerStreamingTextGenerationTaskPredict",
    f"{_NLP}/TokenizationTaskPredict",
    "/caikit.runtime.info.InfoService/GetModelsInfo", "/caikit.runtime.info.InfoService/GetRuntimeInfo",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
})
_THREADS = 256
_MOST_WAITING = 64  # of the threads, how many may wait for slow clients
_ALWAYS_SECONDS = 0.5  # what even the slowest of them may take
_TICK_SECONDS = 0.1


@dataclass(eq=False)
class _Wait:
    since: float
    cancel: Callable[[], object]


class Patience:
    """Ends calls whose clients keep the server waiting: for too long, or as the oldest of too many.

    Args:
        seconds: how long a client may take to send a request or to take a piece of an answer.
        most: how many clients may keep the server waiting at the same time.
    """

    def __init__(self, seconds: float, most: int = _MOST_WAITING) -> None:
        self._seconds, self._most = seconds, most
        self._waits: dict[_Wait, None] = {}  # in the order in which they began
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="patience", daemon=True).start()

    @contextmanager
    def waiting(self, cancel: Callable[[], object]) -> Iterator[None]:
        """The block waits for a client; `cancel` ends its call."""
        wait = _Wait(time.monotonic(), cancel)
        with self._lock:
            self._waits[wait] = None
        try:
            yield
        finally:
            with self._lock:
                self._waits.pop(wait, None)

    def _watch(self) -> None:
        while True:
            time.sleep(_TICK_SECONDS)
            for wait in self._too_long():
                wait.cancel()

    def _too_long(self) -> list[_Wait]:
        now = time.monotonic()
        with self._lock:
            surplus = len(self._waits) - self._most
            ended = [wait for number, wait in enumerate(self._waits)
                     if now - wait.since > (_ALWAYS_SECONDS if number < surplus else self._seconds)]
            for wait in ended:
                del self._waits[wait]
        return ended


class Gate(grpc.ServerInterceptor):  # type: ignore[misc]
    """Lets the offered calls in, each with `Patience`; to all others this server is one that does not have them."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details) if details.method in OFFERED else None
        return handler and self._patient(handler)

    def _patient(self, handler: Any) -> Any:
        """The same handler with its requests as a stream: so that it is called before they come."""
        behavior = (handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream)

        def call(requests: Iterator[Any], context: Any) -> Any:
            coming = self._each(requests, context)
            request = coming if handler.request_streaming else next(coming, None)
            if request is None:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call ended without a request")
            answer = behavior(request, context)
            return self._taken(answer, context) if handler.response_streaming else answer

        make = (grpc.stream_stream_rpc_method_handler if handler.response_streaming
                else grpc.stream_unary_rpc_method_handler)
        return make(call, handler.request_deserializer, handler.response_serializer)

    def _each(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        end = object()
        while True:
            with self._patience.waiting(context.cancel):
                request = next(requests, end)
            if request is end:
                return
            yield request

    def _taken(self, answers: Iterator[Any], context: Any) -> Iterator[Any]:
        for answer in answers:
            with self._patience.waiting(context.cancel):  # gRPC asks for the next one when this one is on its way
                yield answer


@dataclass(frozen=True)
class MutualTls:
    """A second port, for clients that show a certificate of an authority; the files' contents, PEM."""

    host: str
    port: int
    certificate: bytes
    key: bytes
    client_authority: bytes

    def add_to(self, server: Any) -> None:
        """Have a server that is not yet started listen there, too."""
        credentials = grpc.ssl_server_credentials([(self.key, self.certificate)], self.client_authority,
                                                  require_client_auth=True)
        server.add_secure_port(f"{_bracketed(self.host)}:{self.port}", credentials)


def guard_grpc(host: str, client_seconds: float, mutual_tls: MutualTls | None = None) -> None:
    """Have Caikit make servers that listen on `host` only, behind a `Gate`, with threads of their own.

    Args:
        host: the address for Caikit's own port.
        client_seconds: see `Patience`.
        mutual_tls: a second port beside it.
    """
    plain_server = grpc.server
    address = _bracketed(host)

    def server(*args: Any, interceptors: Any = (), **options: Any) -> Any:
        gate = Gate(Patience(client_seconds))
        options["thread_pool"] = ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc")
        made = plain_server(*args, interceptors=(gate, *interceptors), **options)
        for name in ("add_insecure_port", "add_secure_port"):
            plain = getattr(made, name)
            setattr(made, name, lambda where, *rest, plain=plain: plain(where.replace("[::]", address), *rest))
        if mutual_tls is not None:
            mutual_tls.add_to(made)
        _note_refused(made)
        return made

    grpc.server = server


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _note_refused(server: Any) -> None:
    """Say in the log which calls of Caikit's services this server does not offer."""
    plain = server.add_generic_rpc_handlers

    def add(handlers: Any) -> None:
        for handler in handlers:
            names = {name if isinstance(name, str) else name.decode() for name in handler._method_handlers}
            if names - OFFERED:
                log.info("not offered over gRPC: %s", " ".join(sorted(names - OFFERED)))
        plain(handlers)

    server.add_generic_rpc_handlers = add
