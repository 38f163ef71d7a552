"""Which calls and paths the runtime offers: those on its two lists, whatever else the Caikit under it has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from llm_detox.serve.deployment import read_state
from tests.serving.conftest import NAME, Stack

WANTED = {
    "caikit.runtime.Nlp.NlpService": {"TextGenerationTaskPredict", "ServerStreamingTextGenerationTaskPredict",
                                      "TokenizationTaskPredict"},
    "caikit.runtime.info.InfoService": {"GetModelsInfo", "GetRuntimeInfo"},
    "grpc.health.v1.Health": {"Check"},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo"},
}
WANTED_PATHS = {"/api/v1/task/text-generation", "/api/v1/task/server-streaming-text-generation",
                "/api/v1/task/tokenization", "/health", "/info/version", "/info/models", "/openapi.json", "/docs",
                "/redoc"}
MODEL_MESH = ["loadModel", "unloadModel", "predictModelSize", "modelSize", "runtimeStatus"]


@pytest.fixture(scope="module")
def channel(stack: Stack) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(stack.urls["grpc"].removeprefix("grpc://")) as opened:
        yield opened


def _code(channel: grpc.Channel, method: str, payload: bytes = b"") -> grpc.StatusCode:
    try:
        channel.unary_unary(method)(payload, timeout=20, metadata=[("mm-model-id", NAME)])
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _string(number: int, value: str) -> bytes:
    """A protobuf field that holds a text."""
    return bytes([number << 3 | 2, len(value)]) + value.encode()


def _described(channel: grpc.Channel) -> dict[str, set[str]]:
    """Service -> its methods, as the server's reflection tells."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    return {name: set(pool.FindServiceByName(name).methods_by_name) for name in database.get_services()}


def _registered(stack: Stack) -> set[str]:
    """The methods that were registered with the server and are not offered, as its log tells."""
    [log] = [one.log for one in read_state(stack.folder).processes if one.name == "caikit"]
    words = "not offered over gRPC: "
    lines = [json.loads(line) for line in Path(log).read_text("utf-8").splitlines() if words in line]
    return {name for line in lines for name in line["message"].removeprefix(words).split()}


def test_every_method_of_the_grpc_port_is_wanted_or_refused(stack: Stack, channel: grpc.Channel) -> None:
    described = _described(channel)
    assert set(WANTED) - set(described) <= {"grpc.health.v1.Health"}, "a wanted service is gone"
    offered = {f"/{service}/{name}" for service, names in WANTED.items() for name in names}
    unwanted = {f"/{service}/{name}" for service, names in described.items() for name in names} - offered
    unwanted |= _registered(stack)
    assert {f"/mmesh.ModelRuntime/{name}" for name in MODEL_MESH} <= unwanted
    assert not unwanted & offered
    assert {method: _code(channel, method) for method in sorted(unwanted)} == dict.fromkeys(
        sorted(unwanted), grpc.StatusCode.UNIMPLEMENTED)
    answers = {method: _code(channel, method) for method in sorted(offered)}
    assert grpc.StatusCode.UNIMPLEMENTED not in answers.values(), answers


@pytest.mark.parametrize("name", MODEL_MESH)
def test_nobody_removes_adds_or_sizes_models_over_grpc(stack: Stack, channel: grpc.Channel, name: str) -> None:
    payload = _string(1, NAME if name == "unloadModel" else "evil")
    if name in ("loadModel", "predictModelSize"):
        payload += _string(2, "caikit") + _string(3, "/etc/passwd")
    assert _code(channel, f"/mmesh.ModelRuntime/{name}", payload) is grpc.StatusCode.UNIMPLEMENTED
    for protocol in ("rest", "grpc"):
        with stack.client(protocol) as client:
            assert client.generate("a", max_new_tokens=1).generated_tokens == 1


def test_every_path_of_the_rest_port_is_wanted_or_refused(stack: Stack) -> None:
    with httpx.Client(base_url=stack.urls["rest"], timeout=30, trust_env=False) as client:
        paths: dict[str, Any] = client.get("/openapi.json").json()["paths"]
        listed = {(method.upper(), path) for path, methods in paths.items() for method in methods}
        unwanted = {one for one in listed if one[1] not in WANTED_PATHS} | {
            ("POST", "/management/models"), ("DELETE", f"/management/models?model_id={NAME}"),
            ("POST", "/management/trainings"), ("GET", "/metrics"), ("POST", "/health"), ("GET", "/"),
            ("GET", "/health/"), ("GET", "//health")}
        assert {one: client.request(*one, json={}).status_code for one in unwanted} == dict.fromkeys(unwanted, 404)
        for path in ("/health", "/info/version", "/info/models", "/openapi.json", "/docs"):
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_the_folders_of_the_server_are_not_told(stack: Stack, channel: grpc.Channel, protocol: str) -> None:
    if protocol == "rest":
        answer = httpx.get(f"{stack.urls['rest']}/info/models", timeout=30, trust_env=False).content
    else:
        answer = channel.unary_unary("/caikit.runtime.info.InfoService/GetModelsInfo")(b"", timeout=20)
    assert NAME.encode() in answer
    assert str(stack.folder).encode() not in answer
    assert b"/models/" not in answer
