"""The section of the serving engine: a process that is asked over gRPC and HTTP, one request after the other."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.golden.commands import run
from tests.golden.store import Store

_SERVICE = "fmaas.GenerationService"
_PROMPT = "the quick brown"
_READY_SECONDS = 120
_DETAILS = {"generated_tokens": True, "input_tokens": True, "token_logprobs": True, "token_ranks": True,
            "top_n_tokens": 2}
_SAMPLED: dict[str, Any] = {"method": "SAMPLE", "stopping": {"max_new_tokens": 24}}

# Name -> the request's parameters.
_CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seed": {**_SAMPLED, "sampling": {"seed": 1}},
    "another seed": {**_SAMPLED, "sampling": {"seed": 2**40 + 5}},
    "temperature": {**_SAMPLED, "sampling": {"seed": 1, "temperature": 0.6}},
    "top k": {**_SAMPLED, "sampling": {"seed": 1, "top_k": 5}},
    "top p": {**_SAMPLED, "sampling": {"seed": 1, "top_p": 0.7}},
    "typical p": {**_SAMPLED, "sampling": {"seed": 1, "typical_p": 0.3}},
    "top k, top p and temperature": {
        **_SAMPLED, "sampling": {"seed": 3, "top_k": 40, "top_p": 0.9, "temperature": 1.4}},
    "repetition penalty": {"decoding": {"repetition_penalty": 1.8}, "stopping": {"max_new_tokens": 30}},
    "sampled with a repetition penalty": {**_SAMPLED, "sampling": {"seed": 4}, "decoding": {"repetition_penalty": 1.3}},
    "length penalty": {"decoding": {"length_penalty": {"start_index": 3, "decay_factor": 1.6}},
                       "stopping": {"max_new_tokens": 40}},
    "least length": {"decoding": {"length_penalty": {"start_index": 0, "decay_factor": 10.0}},
                     "stopping": {"max_new_tokens": 60, "min_new_tokens": 20}},
    "truncation": {"truncate_input_tokens": 2, "response": {"input_tokens": True, "input_text": True}},
    "details": {"response": _DETAILS, "stopping": {"max_new_tokens": 6}},
    "details of sampled tokens": {"method": "SAMPLE", "sampling": {"seed": 6, "top_k": 9, "temperature": 0.8},
                                  "response": _DETAILS, "stopping": {"max_new_tokens": 5}},
}
_STREAMED = ("greedy", "seed", "length penalty", "truncation", "details", "details of sampled tokens")
_REFUSED: dict[str, dict[str, Any]] = {
    "temperature": {"method": "SAMPLE", "sampling": {"temperature": 0.01}},
    "top p": {"method": "SAMPLE", "sampling": {"top_p": 1.5}},
    "too many tokens": {"stopping": {"max_new_tokens": 5000}},
    "too many stop sequences": {"stopping": {"stop_sequences": list("abcdefg")}},
    "details of nothing": {"response": {"token_logprobs": True}},
    "guided": {"decoding": {"format": "JSON"}},
}
_BATCH = (_PROMPT, "you are", "the train to the city leaves at noon", "naïve café")


def serving(store: Store) -> None:
    """Sampling with seeds, stop sequences, penalties, details and refusals, and what the HTTP side says."""
    with _engine(Path("models/served")) as engine:
        store.value("unary", {name: engine.generate([_PROMPT], params) for name, params in _CASES.items()})
        store.value("stream", {name: engine.stream(_PROMPT, _CASES[name]) for name in _STREAMED})
        store.value("stop", _stopped(engine))
        store.value("batch", {"greedy": engine.generate(_BATCH, {}),
                              "seed": engine.generate(_BATCH, {**_SAMPLED, "sampling": {"seed": 9}})})
        store.value("refused", {name: engine.refusal([_PROMPT], params) for name, params in _REFUSED.items()}
                    | {"too long": engine.refusal(["a " * 400], {})})
        store.value("others", {
            "tokenize": engine.call("Tokenize", {"requests": [{"text": text} for text in _BATCH],
                                                 "return_tokens": True, "return_offsets": True}),
            "model info": engine.call("ModelInfo", {"model_id": "any"})})
        store.value("asked", _asked(engine))
        store.value("http", {path: engine.get(path) for path in ("/health", "/nothing")}
                    | {"/metrics": _families(engine.get("/metrics")[1])})


def _stopped(engine: Engine) -> dict[str, Any]:
    """Stop sequences out of a text that is drawn without them, so that they are met; some lie across tokens."""
    text = engine.generate([_PROMPT], _SAMPLED | {"sampling": {"seed": 1}})["responses"][0]["text"]
    answers = {}
    for place in (slice(5, 7), slice(20, 24), slice(31, 32)):
        for include in (True, False):
            stopping = {"max_new_tokens": 24, "stop_sequences": [text[place], "never seen"],
                        "include_stop_sequence": include}
            params = _SAMPLED | {"sampling": {"seed": 1}, "stopping": stopping}
            answers[f"{text[place]!r} {'shown' if include else 'hidden'}"] = {
                "unary": engine.generate([_PROMPT], params), "stream": engine.stream(_PROMPT, params)}
    return answers


def _asked(engine: Engine) -> dict[str, Any]:
    """What the command line gives of the engine."""
    words = ("ask", _PROMPT, "--fmaas", f"127.0.0.1:{engine.grpc_port}", "--max-new-tokens", "16", "--sample", "--seed",
             "5")
    return {"json": json.loads(run(*words, "--top-p", "0.8", "--json")), "text": run(*words),
            "stream": run(*words, "--temperature", "0.7", "--stream", "--stop", "e")}


def _families(exposition: str) -> list[str]:
    """The names and types of the metrics, and the labels of each sample without its value."""
    samples = {re.sub(r" \S+$", "", line) for line in exposition.splitlines()
               if line.startswith("# TYPE") or (line.startswith("tgi_") and "_bucket{" not in line)}
    return sorted(samples)


@dataclass(frozen=True)
class Engine:
    """A running engine: its message types come from its own reflection."""

    channel: grpc.Channel
    pool: DescriptorPool
    port: int
    grpc_port: int

    def generate(self, texts: tuple[str, ...] | list[str], params: dict[str, Any]) -> Any:
        """`Generate`: the response as JSON."""
        return self.call("Generate", {"requests": [{"text": text} for text in texts], "params": params})

    def stream(self, text: str, params: dict[str, Any]) -> list[Any]:
        """`GenerateStream`: its messages as JSON."""
        return list(self._messages("GenerateStream", {"request": {"text": text}, "params": params}))

    def refusal(self, texts: list[str], params: dict[str, Any]) -> dict[str, str]:
        """The status with which `Generate` refuses."""
        try:
            self.generate(texts, params)
        except grpc.RpcError as error:
            return {"code": error.code().name, "details": error.details()}
        raise AssertionError(f"accepted: {params}")

    def call(self, method: str, request: dict[str, Any]) -> Any:
        """A unary call."""
        [answer] = self._messages(method, request)
        return answer

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def _messages(self, method: str, request: dict[str, Any]) -> Iterator[Any]:
        described = self.pool.FindServiceByName(_SERVICE).methods_by_name[method]
        kinds = {"request_serializer": lambda message: message.SerializeToString(),
                 "response_deserializer": GetMessageClass(described.output_type).FromString}
        message = GetMessageClass(described.input_type)(**request)
        name = f"/{_SERVICE}/{method}"
        answers = (self.channel.unary_stream(name, **kinds)(message, timeout=60) if described.server_streaming
                   else [self.channel.unary_unary(name, **kinds)(message, timeout=60)])
        for answer in answers:
            yield MessageToDict(answer, preserving_proto_field_name=True)


@contextmanager
def _engine(model: Path) -> Iterator[Engine]:
    """An engine on free ports of this machine; it has ended on leaving."""
    grpc_port, port = _free_ports(2)
    command = [sys.executable, "-m", "serving.engine", "--model-name", str(model), "--host", "127.0.0.1",
               "--threads", "1", "--max-new-tokens", "200", "--grpc-port", str(grpc_port), "--port", str(port)]
    log = Path("engine.log")
    with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=sink, env=os.environ.copy()) as process:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
                _wait_until_ready(process, port, log)
                yield Engine(channel, DescriptorPool(ProtoReflectionDescriptorDatabase(channel)), port, grpc_port)
        finally:
            process.kill()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the engine did not get ready:\n{log.read_text('utf-8')}")
