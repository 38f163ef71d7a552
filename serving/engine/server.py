"""One engine process: the model, the scheduler, the gRPC and HTTP servers, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from llm_detox.errors import DetoxError
from serving.engine import proto
from serving.engine.http import HttpServer
from serving.engine.loading import load
from serving.engine.metrics import Metrics
from serving.engine.service import GenerationFailed, GenerationService, Overloaded, Undecodable
from serving.engine.settings import Settings
from serving.engine.validation import InvalidRequest

log = logging.getLogger(__name__)

_HEALTH_SECONDS = 60.0
_LONGEST_WORDS = 500  # gRPC takes 8 KiB, in which a character may take 12 bytes; past that, clients see another status
_DRAIN_SECONDS = 600.0  # how long calls may go on with a model that another one has followed


class Server:
    """The engine as it runs. `run` returns when it has been told to end and its requests are done."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._state = "loading the model"
        self._service: GenerationService | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGUSR1 loads the model anew, from wherever its name leads then.

        Raises:
            DetoxError: the model cannot be loaded, a port is taken, or a certificate cannot be read.
        """
        credentials = _credentials(self.settings)
        proto.messages()
        http = HttpServer(self.settings.host, self.settings.port, self._trouble, self.metrics.text,
                          self.settings.client_seconds)
        try:
            # OpenMP keeps a team of threads for each thread that computed; with more of them than cores, the
            # scheduler's team would sleep between any two products. A thread that has ended keeps none.
            served = asyncio.run(_apart(lambda: load(self.settings, self.metrics)))
            service = GenerationService(served, self.metrics,
                                        max_concurrent_requests=self.settings.max_concurrent_requests)
            try:
                asyncio.run(self._serve(service, credentials, http.port))
            finally:
                service.served.engine.stop()
        finally:
            http.close()

    async def _serve(self, service: GenerationService, credentials: Any, http_port: int) -> None:
        self._loop = asyncio.get_running_loop()
        stop, anew = asyncio.Event(), asyncio.Event()
        for number, event in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGUSR1, anew)):
            self._loop.add_signal_handler(number, event.set)
        server, status = self._grpc_server(service)
        port = _listen(server, self.settings, credentials)
        self._service = service
        if not await service.healthy():
            raise DetoxError("the model does not generate", place=self.settings.model_name, remedy="see the log above")
        for name in ("", proto.SERVICE):
            await status.set(name, health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        self._state = ""
        self.metrics.serves(service.served.folder)
        log.info("ready: gRPC on %s:%d, HTTP on %s:%d", self.settings.host, port, self.settings.host, http_port)
        renewing = asyncio.create_task(self._renew(service, anew))
        await stop.wait()
        renewing.cancel()
        log.info("signal received: no new requests, those in progress have %g s", self.settings.shutdown_grace_seconds)
        self._state = "shutting down"
        await status.enter_graceful_shutdown()
        await server.stop(self.settings.shutdown_grace_seconds)
        log.info("stopped")

    async def _renew(self, service: GenerationService, anew: asyncio.Event) -> None:
        """Load the model again whenever `anew` is set: new calls meet the new one, those that run keep the old one."""
        while True:
            await anew.wait()
            anew.clear()
            log.info("loading the model anew")
            try:
                new = await _apart(lambda: load(self.settings, self.metrics))
                if not await new.generates():
                    await _apart(new.engine.stop)
                    raise DetoxError("the model does not generate", place=new.folder, remedy="see the log above")
            except Exception as error:  # whatever is wrong with the new one, the old one goes on
                log.error("the new model is not taken, the old one goes on: %s", error,
                          exc_info=not isinstance(error, DetoxError))
                self.metrics.reload_failures.inc()
                continue
            old, service.served = service.served, new
            self.metrics.serves(new.folder)
            log.info("%s is served; %d calls end with the model before", new.folder, old.calls)
            with suppress(TimeoutError):
                await asyncio.wait_for(old.idle(), _DRAIN_SECONDS)
            await _apart(old.engine.stop)
            del old, new
            _release_memory()

    def _grpc_server(self, service: GenerationService) -> tuple[Any, Any]:
        server = grpc.aio.server(interceptors=[_Errors(self.metrics)], options=[
            ("grpc.so_reuseport", 0),  # else a second engine would share the port, unseen
            ("grpc.max_receive_message_length", self.settings.max_message_bytes),
        ])
        server.add_generic_rpc_handlers((service.handlers(),))
        status = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        _add_reflection(server)
        return server, status

    def _trouble(self) -> str | None:
        """Why the engine is not healthy; called on the HTTP server's threads."""
        if self._state or self._service is None or self._loop is None:
            return self._state or "unhealthy"
        check = asyncio.run_coroutine_threadsafe(self._service.healthy(), self._loop)
        try:
            return None if check.result(_HEALTH_SECONDS) else "unhealthy"
        except TimeoutError:
            check.cancel()
            return "Healthcheck timed-out"


async def _apart(work: Callable[[], Any]) -> Any:
    """The result of work in a thread that the process's end does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(set_: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_(value)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            set_, result = future.set_exception, error
        else:
            set_ = future.set_result
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, set_, result)

    threading.Thread(target=run, daemon=True).start()
    return await future


def _release_memory() -> None:
    from serving.engine.resources import release

    gc.collect()
    release()


class _Errors(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Turns our exceptions into the status codes that TGIS answers with."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.startswith(f"/{proto.SERVICE}/"):
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(handler.unary_stream), handler.request_deserializer, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary), handler.request_deserializer, handler.response_serializer)

    def _unary(self, call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(request: Any, context: Any) -> Any:
            try:
                if isinstance(request, Undecodable):
                    raise request
                return await call(request, context)
            except Exception as error:
                await self._abort(context, error)
        return guarded

    def _stream(self, call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def guarded(request: Any, context: Any) -> Any:
            if isinstance(request, Undecodable):
                await self._abort(context, request)
            pieces = call(request, context)
            try:
                async for piece in pieces:
                    yield piece
            except Exception as error:
                await self._abort(context, error)
            finally:
                await pieces.aclose()  # a cancelled call frees its place now, not when it is collected
        return guarded

    async def _abort(self, context: Any, error: Exception) -> None:
        words = str(error)[:_LONGEST_WORDS]
        if isinstance(error, InvalidRequest):
            self._metrics.failure.labels("validation").inc()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)
        if isinstance(error, Overloaded):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, words)
        if isinstance(error, Undecodable):
            await context.abort(grpc.StatusCode.INTERNAL, words)
        if isinstance(error, GenerationFailed):
            self._metrics.failure.labels("generate").inc()
            await context.abort(grpc.StatusCode.UNKNOWN, words)
        if isinstance(error, grpc.aio.AbortError):
            raise error
        self._metrics.failure.labels("unknown").inc()
        log.exception("a call failed")
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the server's log")


def _add_reflection(server: Any) -> None:
    """Reflection over our own pool and, for the health service, the default one."""
    pool = descriptor_pool.DescriptorPool()
    for name, source in (("generation.proto", proto.descriptors()), (health_pb2.DESCRIPTOR.name, None),
                         (reflection_pb2.DESCRIPTOR.name, None)):
        file = (source or descriptor_pool.Default()).FindFileByName(name)
        pool.AddSerializedFile(file.serialized_pb)
    names = (proto.SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool)


def _credentials(settings: Settings) -> Any:
    if settings.tls_cert_path is None or settings.tls_key_path is None:
        return None
    authority = settings.tls_client_ca_cert_path
    return grpc.ssl_server_credentials(
        [(_pem(settings.tls_key_path, "--tls-key-path"), _pem(settings.tls_cert_path, "--tls-cert-path"))],
        root_certificates=_pem(authority, "--tls-client-ca-cert-path") if authority else None,
        require_client_auth=authority is not None)


def _pem(path: str, option: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DetoxError(f"cannot be read: {error.strerror}", place=path, remedy=f"check {option}") from None
    if b"-----BEGIN " not in content:
        raise DetoxError("this is no PEM file", place=path, remedy=f"check {option}")
    return content


def _listen(server: Any, settings: Settings, credentials: Any) -> int:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError:
        raise DetoxError("cannot listen: the port is taken, or the certificate and key do not fit together",
                         place=address, remedy="choose another --grpc-port, or check the TLS files") from None
