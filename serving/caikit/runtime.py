"""Start the Caikit runtime for exactly one model, in front of a TGIS-compatible engine.

    python serving/caikit/runtime.py --model-dir FOLDER --model-id NAME --engine localhost:8033

Runs in Caikit's own environment, so it imports nothing of ours. Every option is also an environment variable in
upper case with `CAIKIT_` before it (CAIKIT_MODEL_ID). What it adds to the plain `python -m caikit.runtime`:

- the model answers to the id given, whatever its folder is called, and to no other;
- the header `x-route-info`, with which a caller could send a model's requests to any host, has no effect;
- models cannot be put in or removed over the network;
- it listens on the address given (Caikit itself always takes all addresses), and refuses request bodies past a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
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

    guard(options.host, options.max_message_mib * _MIB)
    runtime.main()


def overlay(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """What this start adds to `caikit.yml`; links the model into a folder in which it has its id as name."""
    models = work / "models"
    models.mkdir(exist_ok=True)
    link = models / options.model_id
    link.unlink(missing_ok=True)
    link.symlink_to(Path(options.model_dir).resolve(), target_is_directory=True)
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


def guard(host: str, max_bytes: int) -> None:
    """Bind to `host` only, and close what a caller must not reach."""
    import grpc
    import uvicorn
    from caikit.runtime.model_management.model_manager import ModelManager
    from caikit.runtime.types.caikit_runtime_exception import CaikitRuntimeException
    from caikit_tgis_backend.tgis_backend import TGISBackend

    def refuse(*_: Any, **__: Any) -> None:
        raise CaikitRuntimeException(grpc.StatusCode.PERMISSION_DENIED, "this runtime serves one model; it stays")

    ModelManager.deploy_model = ModelManager.undeploy_model = refuse
    TGISBackend.get_route_info = classmethod(lambda cls, context: None)

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


class BodyLimit:
    """ASGI middleware: 413 for bodies past the limit, whether or not their length is announced."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self._app, self._max = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
