"""Start the Caikit runtime for exactly one model, in front of a TGIS-compatible engine.

    python serving/caikit/runtime.py --model-dir FOLDER --model-id NAME --engine localhost:8033

Runs in Caikit's own environment, so it imports nothing but the files beside it. Every option is also an environment
variable in upper case with `CAIKIT_` before it (CAIKIT_MODEL_ID). What it adds to the plain `python -m caikit.runtime`:

- the model answers to the id given, whatever its folder is called, and to no other;
- the header `x-route-info`, with which a caller could send a model's requests to any host, has no effect;
- it listens on the address given (Caikit itself always takes all addresses), and offers the calls and paths on two
  lists; so models cannot be put in or removed over the network (`grpc_edge.py`, `http_edge.py`);
- where it is told that the model is protected, REST and gRPC are on loopback, behind the pod's proxy that asks for
  tokens; gRPC for others is on a port of its own, where clients show a certificate;
- it can compare the model with its published checksums before it listens (`checksums.py`);
- clients that are slow to send or to read lose their connection, and keep nobody else waiting (the same files);
- what a client asked for ends with the client (`engine_calls.py`);
- requests that Caikit stumbles over are refused, and long lines are cut in the log (`request_rules.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.caikit import checksums
    from serving.caikit.engine_calls import end_with_the_client
    from serving.caikit.grpc_edge import MutualTls, guard_grpc
    from serving.caikit.http_edge import PatientProtocol, RestEdge
    from serving.caikit.lifeline import end_with_stdin
    from serving.caikit.request_rules import check_requests, cut_long_lines, describe_and_refuse
else:  # in a pod these files lie alone in a folder
    import checksums
    from engine_calls import end_with_the_client
    from grpc_edge import MutualTls, guard_grpc
    from http_edge import PatientProtocol, RestEdge
    from lifeline import end_with_stdin
    from request_rules import check_requests, cut_long_lines, describe_and_refuse

_CONFIG = Path(__file__).with_name("caikit.yml")
_MIB = 2**20
_LOOPBACK = "127.0.0.1"


def main() -> None:
    """Write the configuration, put the guards in place, and run until SIGTERM."""
    options = _parser().parse_args()
    if options.end_with_stdin == "true":
        end_with_stdin()
    if options.checksums != "off":
        checksums.require(Path(options.model_dir), options.version or "")
    work = Path(options.work_dir or tempfile.mkdtemp(prefix="caikit-")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    config = work / "caikit-local.yaml"  # JSON is YAML
    config.write_text(json.dumps(overlay(options, work)), "utf-8")
    os.environ["CONFIG_FILES"] = f"{_CONFIG},{config}"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import caikit.runtime.__main__ as runtime  # reads CONFIG_FILES when imported

    guard(options.model_id)
    host = host_of(options)
    guard_rest(host, options.max_message_mib * _MIB, options.client_seconds)
    guard_grpc(host, options.client_seconds, mutual_tls(options))
    end_with_the_client()
    check_requests()
    describe_and_refuse()
    cut_long_lines()
    runtime.main()


def host_of(options: argparse.Namespace) -> str:
    """The address for REST and gRPC: loopback where the model is protected, by our word or by the platform's.

    A token is asked for by the proxy beside this process, which comes over loopback, as the probes do.
    """
    return _LOOPBACK if "true" in (options.protected, options.enable_auth) else str(options.host)


def mutual_tls(options: argparse.Namespace) -> MutualTls | None:
    """The port for gRPC clients that show a certificate; None where none is wanted."""
    if not options.mtls_port:
        return None
    files = (options.mtls_cert, options.mtls_key, options.mtls_client_ca)
    if None in files:
        raise SystemExit("mtls-port needs mtls-cert, mtls-key and mtls-client-ca")
    return MutualTls(options.host, options.mtls_port, *(Path(one).read_bytes() for one in files))


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


def guard(model_id: str) -> None:
    """One model, which stays, and which no header sends elsewhere."""
    import grpc
    from caikit.runtime.model_management.model_manager import ModelManager
    from caikit.runtime.servicers.global_predict_servicer import GlobalPredictServicer
    from caikit.runtime.servicers.info_servicer import InfoServicer
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

    plain_info = InfoServicer._get_models_info

    def models_info(self: Any, model_ids: Any = None) -> Any:
        answer = plain_info(self, model_ids)
        for model in answer.models:
            model.model_path = None  # which folders there are is nobody's business
        return answer

    InfoServicer._get_models_info = models_info


def guard_rest(host: str, max_bytes: int, client_seconds: float) -> None:
    """Have Caikit serve REST on `host` only, behind a `RestEdge`, to clients that talk and listen."""
    import uvicorn

    PatientProtocol.client_seconds = client_seconds
    server: Any = uvicorn.Config
    plain_init = server.__init__

    def init(self: Any, app: Any, **settings: Any) -> None:
        edge = RestEdge(app, max_bytes, client_seconds)
        plain_init(self, edge, **{**settings, "host": host, "http": PatientProtocol, "ws": "none"})

    server.__init__ = init


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
    option("protected", "false", "true: REST and gRPC on loopback only, for the pod's proxy that asks for tokens")
    option("enable-auth", "false", "the same, from OpenShift AI's annotation")
    option("mtls-port", 0, "gRPC for clients that show a certificate, also where the model is protected; 0 for none")
    option("mtls-cert", None, "server certificate of that port")
    option("mtls-key", None, "its key")
    option("mtls-client-ca", None, "the authority of the clients' certificates")
    option("checksums", "off", "required: compare the model with its published checksums before listening")
    option("version", None, "the version that was asked for, whose checksums they must be")
    option("max-message-mib", 16, "largest request in MiB")
    option("client-seconds", 30, "how long a client may take to send a request, or to take a piece of an answer")
    option("end-with-stdin", "false", "true: end with standard input, which the process that started this one holds")
    option("grace-seconds", 20, "how long open requests may go on after SIGTERM")
    option("work-dir", None, "for the configuration; a temporary folder by default")
    return parser


if __name__ == "__main__":
    main()
