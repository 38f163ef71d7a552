"""The launcher's arguments, by the names that TGIS gave them; each is also an environment variable in upper case."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llm_detox.errors import UsageError
from llm_detox.plugins import PREFIX

# Arguments of the TGIS launcher that have no meaning here; accepted, so that its deployments start unchanged.
_IGNORED = (
    "revision", "deployment_framework", "batch_safety_margin", "max_waiting_tokens", "shard_uds_path", "master_addr",
    "master_port", "otlp_endpoint", "otlp_service_name",
)
_SHORT = {"port": ("-p",)}


@dataclass(frozen=True, slots=True)
class Settings:
    """How one engine runs. Sizes are in tokens unless the name says otherwise."""

    model_name: str
    host: str
    backend: str = "auto"
    dtype: str | None = None
    port: int = 3000
    grpc_port: int = 8033
    max_concurrent_requests: int = 512
    max_sequence_length: int | None = None
    max_new_tokens: int = 1024
    max_batch_size: int = 32
    max_prefill_padding: float = 0.2
    max_prefill_tokens: int = 2048
    max_message_bytes: int = 16 * 2**20
    memory_fraction: float = 0.5
    default_include_stop_seqs: bool = True
    output_special_tokens: bool = False
    json_output: bool = False
    tls_cert_path: str | None = None
    tls_key_path: str | None = None
    tls_client_ca_cert_path: str | None = None
    shutdown_grace_seconds: float = 30.0
    client_seconds: float = 30.0
    end_with_stdin: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_concurrent_requests", "max_new_tokens", "max_batch_size", "max_prefill_tokens"):
            _require(getattr(self, name) >= 1, name, "must be at least 1")
        if self.max_sequence_length is not None:
            _require(self.max_sequence_length >= 2, "max_sequence_length", "must be at least 2 (1 input + 1 output)")
        _require(0 <= self.max_prefill_padding <= 1, "max_prefill_padding", "must be in [0, 1]")
        _require(0 < self.memory_fraction <= 1, "memory_fraction", "must be in (0, 1]")
        _require(self.shutdown_grace_seconds >= 0, "shutdown_grace_seconds", "must not be negative")
        _require(self.client_seconds > 0, "client_seconds", "must be more than 0")
        for name in ("port", "grpc_port"):
            _require(0 <= getattr(self, name) < 65536, name, "must be a port number")
        _require((self.tls_cert_path is None) == (self.tls_key_path is None), "tls_cert_path",
                 "must come together with tls_key_path")
        _require(self.tls_client_ca_cert_path is None or self.tls_cert_path is not None, "tls_client_ca_cert_path",
                 "needs tls_cert_path and tls_key_path")


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the command line, then the environment, then the defaults.

    Raises:
        UsageError: a value has the wrong type or is out of range. (A wrong option ends the process, as argparse does.)
    """
    given: dict[str, Any] = {k: v for k, v in vars(_parser().parse_args(arguments)).items() if v is not None}
    known = {field.name: str(field.type) for field in fields(Settings)}
    for name in (*known, "dtype_str", "num_shard", "quantize", "num_gpus"):
        value = environment.get("BIND_HOST" if name == "host" else name.upper(), "")
        if value and name not in given:
            given[name] = value
    if "model_name" not in given:
        raise UsageError("no model is given", place="serving engine", remedy="--model-name FOLDER, or set MODEL_NAME")
    _drop_what_tgis_had(given)
    given.setdefault("host", _default_host(environment))
    return Settings(**{name: _convert(name, known[name], value) for name, value in given.items()})


def _default_host(environment: Mapping[str, str]) -> str:
    """In a pod the probes and the other containers must reach the ports; on a laptop nobody else should."""
    return "0.0.0.0" if "KUBERNETES_SERVICE_HOST" in environment else "127.0.0.1"  # noqa: S104


def _drop_what_tgis_had(given: dict[str, Any]) -> None:
    for name in _IGNORED:
        given.pop(name, None)
    dtype_str = given.pop("dtype_str", None)
    if dtype_str is not None and given.setdefault("dtype", dtype_str) != dtype_str:
        raise UsageError("dtype and dtype_str are both given, with different values", place="serving engine",
                         remedy="give one of them")
    fraction = given.pop("cuda_process_memory_fraction", None)
    if fraction is not None:
        given.setdefault("memory_fraction", fraction)
    for name in ("num_shard", "num_gpus"):
        if str(given.pop(name, "1")) != "1":
            raise UsageError("the transformers back end runs on one device", place=name,
                             remedy="leave it at 1; several devices need the vLLM runtime")
    if given.pop("quantize", None):
        raise UsageError("quantisation while loading is not supported", place="quantize",
                         remedy="leave it out, or serve a model that is saved quantised")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.engine", description=__doc__)
    for field in fields(Settings):
        flags = (*_SHORT.get(field.name, ()), f"--{field.name.replace('_', '-')}")
        if "bool" in str(field.type):
            parser.add_argument(*flags, nargs="?", const="true", default=None, metavar="true|false")
        else:
            parser.add_argument(*flags, default=None)
    for name in (*_IGNORED, "dtype_str", "num_shard", "quantize", "cuda_process_memory_fraction"):
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, help=argparse.SUPPRESS)
    return parser


def _convert(name: str, kind: str, value: Any) -> Any:
    try:
        if "bool" in kind:
            return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        if "int" in kind:
            return int(value)
        if "float" in kind:
            return float(value)
    except (KeyError, ValueError):
        raise UsageError(f"{value!r} is no {kind.split(' ')[0]}", place=name, remedy="see --help") from None
    if name == "backend" and value not in ("auto", "transformers", "vllm") and not value.startswith(PREFIX):
        raise UsageError(f"{value!r} is no back end", place=name, remedy="auto, transformers, vllm or plugin:NAME")
    return value


def _require(condition: bool, name: str, rule: str) -> None:
    if not condition:
        raise UsageError(f"{name} {rule}", place="serving engine", remedy=f"--{name.replace('_', '-')}")
