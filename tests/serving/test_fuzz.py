"""Whatever bytes arrive, engine and runtime refuse or answer, and both still answer correctly afterwards.

The fast suite tries some; `make test-slow` tries many more (LLM_DETOX_FUZZ_EXAMPLES each).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_detox import processes
from llm_detox.serve.deployment import read_state
from tests.serving.conftest import NAME, Stack, assert_greedy, greedy
from tests.serving.engine.running import SERVICE, pb
from tests.serving.fuzzing import JSON, by_message, by_schema, damaged
from tests.serving.running import STREAM, UNARY

FEW, MANY = 25, int(os.environ.get("LLM_DETOX_FUZZ_EXAMPLES", "2000"))
AMOUNTS = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=[pytest.mark.slow,
                                                                           pytest.mark.timeout(7200)])]
SECONDS = 30.0
NLP = "caikit.runtime.Nlp.NlpService"
METHODS = ["TextGenerationTaskPredict", "ServerStreamingTextGenerationTaskPredict", "TokenizationTaskPredict"]
LONGEST_SECONDS = 2**32 / 1000
REFUSALS = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND}


@pytest.fixture(scope="module", autouse=True)
def _both_still_answer_correctly(stack: Stack) -> Iterator[None]:
    ours = read_state(stack.folder).processes
    expected = greedy(stack.artifacts, ["the quick brown fox", "naïve ☕"], new_tokens=16)
    threads = {one.name: _threads(one.pid) for one in ours}
    yield
    for one in ours:
        assert processes.is_running(one), processes.last_lines(one.log)
        # Caikit starts its hundred threads as they are needed.
        assert _threads(one.pid) <= max(threads[one.name], 40) + 110, one.name
    for protocol in ("rest", "grpc", "fmaas"):
        with stack.client(protocol) as client:
            assert_greedy(client, expected, new_tokens=16)
    assert httpx.get(f"{stack.urls['rest']}/health", timeout=10, trust_env=False).text == "OK"
    assert httpx.get(f"{stack.urls['engine']}/health", timeout=10, trust_env=False).status_code == 200


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _tried(amount: int, given_: Any, check: Callable[[Any], None]) -> None:
    """Run the check on so many examples, the same ones each time."""

    @settings(max_examples=amount, database=None, derandomize=True, deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(given_)
    def run(example: Any) -> None:
        check(example)

    run()


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.urls["rest"], timeout=SECONDS, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def bodies(http: httpx.Client) -> dict[str, st.SearchStrategy[Any]]:
    """REST path -> bodies that the runtime's own OpenAPI document allows."""
    document = http.get("/openapi.json").json()
    found = {}
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if path.startswith("/api/v1/task/"):
            found[path] = by_schema(content["application/json"]["schema"], document)
    assert {UNARY, STREAM} <= set(found)
    return found


def _bounded(path: str, body: Any) -> Any:
    """Most bodies should reach the model, and none should keep it for long."""
    if isinstance(body, dict):
        body = {**body, "model_id": NAME}
        if "tokenization" not in path and isinstance(body.get("parameters"), dict):
            given = body["parameters"].get("max_time")
            if not isinstance(given, int | float) or 0.2 < given < LONGEST_SECONDS:
                body["parameters"]["max_time"] = 0.2
    return body


def _post(http: httpx.Client, path: str, content: bytes) -> None:
    answer = http.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404, 413, 422), (content, answer.status_code, answer.text)
    for line in answer.text.splitlines():
        if line.startswith("data: {\"details\""):
            assert json.loads(line[6:]).get("code", 400) in (400, 404, 422), (content, line)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_bodies_that_the_openapi_document_allows(
    http: httpx.Client, bodies: dict[str, st.SearchStrategy[Any]], amount: int
) -> None:
    for path, strategy in bodies.items():
        _tried(amount, strategy, lambda body, path=path: _post(
            http, path, json.dumps(_bounded(path, body)).encode()))


@pytest.mark.parametrize("amount", AMOUNTS)
def test_bodies_that_it_does_not_allow(
    http: httpx.Client, bodies: dict[str, st.SearchStrategy[Any]], amount: int
) -> None:
    for path in (UNARY, STREAM):
        _tried(amount, JSON, lambda body, path=path: _post(http, path, json.dumps(body).encode()))
        _tried(amount, JSON, lambda value, path=path: _post(http, path, json.dumps(
            {"model_id": NAME, "inputs": "a", "parameters": value}).encode()))
        whole = bodies[path].map(lambda body, path=path: json.dumps(_bounded(path, body)).encode())
        _tried(amount, damaged(whole), lambda content, path=path: _post(http, path, content))


@pytest.mark.parametrize("amount", AMOUNTS)
def test_bytes_that_are_hardly_http(stack: Stack, amount: int) -> None:
    port = int(stack.urls["rest"].rpartition(":")[2])
    body = json.dumps({"model_id": NAME, "inputs": "a", "parameters": {"max_new_tokens": 1}})
    request = (f"POST {UNARY} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
               f"Connection: close\r\n\r\n{body}").encode()

    def send(data: bytes) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
            connection.settimeout(0.05)
            try:
                connection.sendall(data)
                connection.recv(100)
            except OSError:  # refused in its own way, or it waits for more
                pass

    _tried(amount, damaged(st.just(request)) | st.binary(max_size=200), send)


@pytest.fixture(scope="module")
def caikit(stack: Stack) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Method -> its message class and a call that takes bytes."""
    from google.protobuf import message_factory
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(stack.urls["grpc"].removeprefix("grpc://")) as channel:
        service = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(NLP)
        found = {}
        for name in METHODS:
            make = channel.unary_stream if name.startswith("Server") else channel.unary_unary
            kind = message_factory.GetMessageClass(service.FindMethodByName(name).input_type)
            found[name] = (kind, make(f"/{NLP}/{name}"))
        yield found


def _code(call: Any, payload: bytes, streams: bool, metadata: Any = ()) -> grpc.StatusCode:
    try:
        answer = call(payload, timeout=SECONDS, metadata=metadata)
        if streams:
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _short(message: Any) -> bytes:
    if "max_time" in message.DESCRIPTOR.fields_by_name and not message.max_time > LONGEST_SECONDS:
        message.max_time = 0.2
    data: bytes = message.SerializeToString()
    return data


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("name", METHODS)
def test_messages_to_the_runtime(caikit: dict[str, tuple[Any, Any]], name: str, amount: int) -> None:
    kind, call = caikit[name]
    messages = by_message(kind).map(_short)

    def send(payload: bytes) -> None:
        code = _code(call, payload, name.startswith("Server"), (("mm-model-id", NAME),))
        assert code in REFUSALS, (payload, code)

    _tried(amount, messages, send)
    _tried(amount, damaged(messages) | st.binary(max_size=80), send)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_names_of_models(caikit: dict[str, tuple[Any, Any]], amount: int) -> None:
    kind, call = caikit[METHODS[0]]
    payload = kind(text="a", max_new_tokens=1).SerializeToString()
    names = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60) | st.sampled_from(
        ["", "..", "../models", "/", f"{NAME}/artifacts", NAME.upper()])

    def send(model: str) -> None:
        code = _code(call, payload, False, (("mm-model-id", model),))
        assert code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT), (model, code)

    _tried(amount, names.filter(lambda name: name.strip() != NAME), send)


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("name", ["Generate", "GenerateStream", "Tokenize", "ModelInfo"])
def test_messages_to_the_engine(stack: Stack, name: str, amount: int) -> None:
    kind = {"Generate": pb.BatchedGenerationRequest, "GenerateStream": pb.SingleGenerationRequest,
            "Tokenize": pb.BatchedTokenizeRequest, "ModelInfo": pb.ModelInfoRequest}[name]
    messages = by_message(kind).map(lambda message: _limited(message).SerializeToString())
    with grpc.insecure_channel(stack.urls["fmaas"].removeprefix("fmaas://")) as channel:
        streams = name == "GenerateStream"
        call = (channel.unary_stream if streams else channel.unary_unary)(f"{SERVICE}/{name}")

        def send(payload: bytes) -> None:
            code = _code(call, payload, streams)
            assert code in REFUSALS, (payload, code)

        _tried(amount, messages, send)
        _tried(amount, damaged(messages) | st.binary(max_size=80), send)


def _limited(message: Any) -> Any:
    if "params" in message.DESCRIPTOR.fields_by_name and message.HasField("params"):
        message.params.stopping.time_limit_millis = 200
    return message
