"""One engine process: the model, the scheduler, the gRPC and HTTP servers, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from llm_detox.errors import DetoxError
from serving.engine import proto
from serving.engine.http import HttpServer
from serving.engine.jobs import Engine
from serving.engine.metrics import Metrics
from serving.engine.service import GenerationFailed, GenerationService, Overloaded, Tokenization, Undecodable
from serving.engine.settings import Settings
from serving.engine.validation import InvalidRequest, Limits

log = logging.getLogger(__name__)

_HEALTH_SECONDS = 60.0
_NO_TOKENS = "no memory is left for the cache"


class Server:
    """The engine as it runs. `run` returns when it has been told to end and its requests are done."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._state = "loading the model"
        self._service: GenerationService | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            DetoxError: the model cannot be loaded, a port is taken, or a certificate cannot be read.
        """
        credentials = _credentials(self.settings)
        proto.messages()
        http = HttpServer(self.settings.host, self.settings.port, self._trouble, self.metrics.text)
        try:
            service, engine = self._load()
            engine.start()
            try:
                asyncio.run(self._serve(service, credentials, http.port))
            finally:
                engine.stop()
        finally:
            http.close()

    def _load(self) -> tuple[GenerationService, Engine]:
        # torch and transformers take seconds to import; wrong settings and taken ports show before that.
        from serving.engine.source import Source

        settings = self.settings
        source = Source(settings.model_name, keep_special=settings.output_special_tokens)
        engine, longest = self._vllm(source) if _wants_vllm(settings) else self._transformers(source)
        limits = Limits(longest, min(settings.max_new_tokens, longest - 1), settings.default_include_stop_seqs)
        service = GenerationService(Tokenization(source.vocabulary, source.bos), engine, limits, self.metrics,
                                    max_concurrent_requests=settings.max_concurrent_requests)
        return service, engine

    def _vllm(self, source: Any) -> tuple[Engine, int]:
        from serving.engine.backend_vllm import VllmEngine

        engine = VllmEngine(source.folder, self.settings, source.vocabulary, source.eos, self.metrics)
        log.info("vLLM; batches of %d, sequences of %d tokens", self.settings.max_batch_size,
                 engine.max_sequence_length)
        return engine, engine.max_sequence_length

    def _transformers(self, source: Any) -> tuple[Engine, int]:
        import torch

        from serving.engine.backend_transformers import Model
        from serving.engine.resources import cache_tokens, usable_cores
        from serving.engine.scheduler import Scheduler

        settings = self.settings
        cores = usable_cores() or torch.get_num_threads()
        torch.set_num_threads(settings.threads or min(cores, torch.get_num_threads()))
        model = Model(source, settings)
        budget = cache_tokens(model.model, settings.memory_fraction)
        longest = min(model.max_sequence_length, budget)
        if longest < 2:
            raise DetoxError(_NO_TOKENS, place=settings.model_name, remedy="a smaller model, or more memory")
        if longest < model.max_sequence_length:
            log.warning("max_sequence_length is lowered from %d to %d, what the memory holds",
                        model.max_sequence_length, longest)
        log.info("%s on %s in %s; batches of %d, sequences of %d tokens", type(model.model).__name__,
                 model.model.device, model.model.dtype, model.rows.limit, longest)
        return Scheduler(model.rows, source.vocabulary, source.eos, self.metrics, budget=budget,
                         prefill_tokens=settings.max_prefill_tokens,
                         prefill_padding=settings.max_prefill_padding), longest

    async def _serve(self, service: GenerationService, credentials: Any, http_port: int) -> None:
        self._loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        server, status = self._grpc_server(service)
        port = _listen(server, self.settings, credentials)
        self._service = service
        if not await service.healthy():
            raise DetoxError("the model does not generate", place=self.settings.model_name, remedy="see the log above")
        for name in ("", proto.SERVICE):
            await status.set(name, health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        self._state = ""
        log.info("ready: gRPC on %s:%d, HTTP on %s:%d", self.settings.host, port, self.settings.host, http_port)
        await stop.wait()
        log.info("signal received: no new requests, those in progress have %g s", self.settings.shutdown_grace_seconds)
        self._state = "shutting down"
        await status.enter_graceful_shutdown()
        await server.stop(self.settings.shutdown_grace_seconds)
        log.info("stopped")

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
        if isinstance(error, InvalidRequest):
            self._metrics.failure.labels("validation").inc()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if isinstance(error, Overloaded):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        if isinstance(error, Undecodable):
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        if isinstance(error, GenerationFailed):
            self._metrics.failure.labels("generate").inc()
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        if isinstance(error, grpc.aio.AbortError):
            raise error
        self._metrics.failure.labels("unknown").inc()
        log.exception("a call failed")
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the server's log")


def _wants_vllm(settings: Settings) -> bool:
    from serving.engine.backend_vllm import installed

    if settings.backend == "vllm" and not installed():
        raise DetoxError("vLLM is not installed", place="--backend", remedy="install it, or --backend transformers")
    return settings.backend == "vllm" or (settings.backend == "auto" and installed())


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
