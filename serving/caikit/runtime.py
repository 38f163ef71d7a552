"""Start the Caikit runtime for exactly one model, in front of a TGIS-compatible engine.

    python serving/caikit/runtime.py --model-dir FOLDER --model-id NAME --engine localhost:8033

Runs in Caikit's own environment, so it imports nothing of ours. Every option is also an environment variable in
upper case with `CAIKIT_` before it (CAIKIT_MODEL_ID). What it adds to the plain `python -m caikit.runtime`:

- the model answers to the id given, whatever its folder is called, and to no other;
- the header `x-route-info`, with which a caller could send a model's requests to any host, has no effect;
- models cannot be put in or removed over the network;
- it listens on the address given (Caikit itself always takes all addresses), and refuses request bodies past a limit;
- what a client asked for ends with the client: Caikit itself lets the engine go on, and a stream over REST that is left
  keeps one of its hundred threads for ever;
- an overloaded engine is RESOURCE_EXHAUSTED (429), which may be repeated, and not the caller's mistake.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CONFIG = Path(__file__).with_name("caikit.yml")
_MIB = 2**20
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def main() -> None:
    """Write the configuration, put the guards in place, and run until SIGTERM."""
    options = _parser().parse_args()
    work = Path(options.work_dir or tempfile.mkdtemp(prefix="caikit-")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    config = work / "caikit-local.yaml"  # JSON is YAML
    config.write_text(json.dumps(overlay(options, work)), "utf-8")
    os.environ["CONFIG_FILES"] = f"{_CONFIG},{config}"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import caikit.runtime.__main__ as runtime  # reads CONFIG_FILES when imported

    guard(options.host, options.max_message_mib * _MIB, options.model_id)
    end_with_the_client()
    describe_and_refuse()
    runtime.main()


def overlay(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """What this start adds to `caikit.yml`; links the model into a folder in which it has its id as name."""
    models = work / "models"
    models.mkdir(exist_ok=True)
    link = models / options.model_id
    link.unlink(missing_ok=True)
    link.symlink_to(Path(options.model_dir).absolute(), target_is_directory=True)  # may be a link that moves on
    connection = {"hostname": options.engine, "ca_cert_file": options.engine_ca,
                  "client_cert_file": options.engine_cert, "client_key_file": options.engine_key,
                  "hostname_override": options.engine_hostname}
    # Named by the path under which Caikit knows the model: known from the start, no request can replace it.
    engines = {str(link / "artifacts"): {name: value for name, value in connection.items() if value}}
    backend = {"type": "TGIS", "config": {"remote_models": engines, "connect_timeout": 5}}
    limit = options.max_message_mib * _MIB
    return {
        "model_management": {"initializers": {"default": {"type": "LOCAL", "config": {"backend_priority": [backend]}}}},
        "runtime": {
            "local_models_dir": str(models),
            "http": {"enabled": options.http_port > 0, "port": options.http_port,
                     "server_shutdown_grace_period_seconds": options.grace_seconds},
            "grpc": {"enabled": options.grpc_port > 0, "port": options.grpc_port,
                     "server_shutdown_grace_period_seconds": options.grace_seconds,
                     "options": {"grpc.max_receive_message_length": limit}},
            "metrics": {"enabled": options.metrics_port > 0, "port": options.metrics_port},
            "tls": {"server": {"cert": options.tls_cert or "", "key": options.tls_key or ""},
                    "client": {"cert": options.tls_client_ca or ""}},
        },
    }


def guard(host: str, max_bytes: int, model_id: str) -> None:
    """Bind to `host` only, and close what a caller must not reach."""
    import grpc
    import uvicorn
    from caikit.runtime.model_management.model_manager import ModelManager
    from caikit.runtime.servicers.global_predict_servicer import GlobalPredictServicer
    from caikit.runtime.types.caikit_runtime_exception import CaikitRuntimeException
    from caikit_tgis_backend.tgis_backend import TGISBackend

    def refuse(*_: Any, **__: Any) -> None:
        raise CaikitRuntimeException(grpc.StatusCode.PERMISSION_DENIED, "this runtime serves one model; it stays")

    ModelManager.deploy_model = ModelManager.undeploy_model = refuse
    TGISBackend.get_route_info = classmethod(lambda cls, context: None)

    # Metrics are kept for each model id: ids that callers make up would fill the memory.
    plain = GlobalPredictServicer._handle_predict_exceptions
    GlobalPredictServicer._handle_predict_exceptions = lambda self, asked, name: (
        plain(self, asked if asked == model_id else "unknown", name))

    server: Any = uvicorn.Config
    plain_init = server.__init__

    def init(self: Any, app: Any, **settings: Any) -> None:
        plain_init(self, BodyLimit(app, max_bytes), **{**settings, "host": host})

    server.__init__ = init
    _bind_grpc(host)


def _bind_grpc(host: str) -> None:
    import grpc

    plain_server = grpc.server
    address = f"[{host}]" if ":" in host else host

    def server(*args: Any, **options: Any) -> Any:
        made = plain_server(*args, **options)
        for name in ("add_insecure_port", "add_secure_port"):
            plain = getattr(made, name)
            setattr(made, name, lambda where, *rest, plain=plain: plain(where.replace("[::]", address), *rest))
        return made

    grpc.server = server


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
    import grpc
    from caikit.runtime.http_server import http_server
    from caikit.runtime.servicers.global_predict_servicer import GlobalPredictServicer
    from caikit.runtime.types.caikit_runtime_exception import CaikitRuntimeException
    from caikit_tgis_backend.load_balancing_proxy import GRPCLoadBalancerProxy
    from caikit_tgis_backend.protobufs import generation_pb2_grpc

    plain_predict = GlobalPredictServicer.predict_model

    def predict(self: Any, *args: Any, aborter: Any = None, output_streaming: Any = None, **options: Any) -> Any:
        for name, value in options.items():
            if isinstance(value, float) and not math.isfinite(value):  # Caikit's own checks let some of them pass
                raise CaikitRuntimeException(grpc.StatusCode.INVALID_ARGUMENT, f"{name} must be a finite number")
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


def describe_and_refuse() -> None:
    """/openapi.json names all parameters, and a refusal may quote what is no JSON."""
    from caikit.runtime.http_server import http_server
    from fastapi.exceptions import RequestValidationError

    plain_patch, plain_read = http_server.RuntimeHTTPServer._patch_openapi_spec, http_server.pydantic_from_request

    def patch(self: Any) -> None:
        plain_patch(self)
        description = self.app.openapi_schema
        self.app.openapi = lambda: description  # newer releases of FastAPI make it anew, without what Caikit put in

    async def read(kind: Any, request: Any) -> Any:
        try:
            return await plain_read(kind, request)
        except RequestValidationError as error:
            raise RequestValidationError(_sayable(error.errors())) from None

    http_server.RuntimeHTTPServer._patch_openapi_spec, http_server.pydantic_from_request = patch, read


def _sayable(value: Any) -> Any:
    """The value with words for what JSON has none for."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {str(name): _sayable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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


def _json_by_its_plain_name(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Caikit knows `application/json` in these letters only, and fails where no type is given."""
    kind = next((value for name, value in headers if name == b"content-type"), b"application/json")
    if kind.partition(b";")[0].strip().lower() != b"application/json":
        return headers
    return [*(one for one in headers if one[0] != b"content-type"), (b"content-type", b"application/json")]


class BodyLimit:
    """ASGI middleware: 413 for bodies past the limit, whether or not their length is announced."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self._app, self._max = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headers"] = _json_by_its_plain_name(scope["headers"])
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max:
            await self._refuse(send)
            return
        seen, answered = 0, False

        async def limited() -> MutableMapping[str, Any]:
            nonlocal seen, answered
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max:
                if not answered:
                    answered = True
                    await self._refuse(send)
                return {"type": "http.disconnect"}
            return message

        async def once(message: MutableMapping[str, Any]) -> None:
            if not answered:
                await send(message)

        try:
            await self._app(scope, limited, once)
        except Exception:
            if not answered:  # else it only learned that its request is over
                raise

    async def _refuse(self, send: Send) -> None:
        body = json.dumps({"details": f"the request is larger than {self._max} bytes", "code": 413}).encode()
        await send({"type": "http.response.start", "status": 413, "headers": [
            (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
            (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": body})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])

    def option(name: str, default: str | int | None, text: str) -> None:
        value = os.environ.get(f"CAIKIT_{name.upper().replace('-', '_')}") or default
        parser.add_argument(f"--{name}", default=value, help=text, type=int if isinstance(default, int) else str,
                            required=value is None and name in ("model-dir", "model-id"))

    option("model-dir", None, "what `llm-detox convert` wrote: config.yml and artifacts/")
    option("model-id", None, "the name that requests give")
    option("engine", "localhost:8033", "host:port of the engine's gRPC")
    option("engine-ca", None, "CA file for the engine's certificate")
    option("engine-cert", None, "certificate to show to the engine")
    option("engine-key", None, "its key")
    option("engine-hostname", None, "the name in the engine's certificate, where it is not its host")
    option("host", "0.0.0.0", "address to listen on")  # noqa: S104  in a pod the kubelet and the Service must reach it
    option("http-port", 8080, "REST; 0 for none")
    option("grpc-port", 8085, "gRPC; 0 for none")
    option("metrics-port", 8086, "Prometheus, always plain HTTP on all addresses; 0 for none")
    option("tls-cert", None, "server certificate")
    option("tls-key", None, "its key")
    option("tls-client-ca", None, "clients must show a certificate of this CA")
    option("max-message-mib", 16, "largest request in MiB")
    option("grace-seconds", 20, "how long open requests may go on after SIGTERM")
    option("work-dir", None, "for the configuration; a temporary folder by default")
    return parser


if __name__ == "__main__":
    main()
