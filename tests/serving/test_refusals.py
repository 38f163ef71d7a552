"""What the runtime refuses as the caller's mistake, in few words, and what it writes to its log about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from llm_detox.client import GenerationError
from llm_detox.serve.deployment import read_state
from tests.serving.conftest import NAME, Stack
from tests.serving.running import STREAM, UNARY, wait_for

CAIKIT = ["rest", "grpc"]


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.urls["rest"], timeout=60, trust_env=False) as client:
        yield client


def _status(answer: httpx.Response) -> int:
    """Of an answer, or of the error that a stream which was open before tells."""
    if answer.status_code == 200 and answer.text.startswith("event: error"):
        data = next(line for line in answer.text.splitlines() if line.startswith("data:"))
        return int(json.loads(data.removeprefix("data:"))["code"])
    return answer.status_code


def _log(stack: Stack) -> Path:
    [log] = [one.log for one in read_state(stack.folder).processes if one.name == "caikit"]
    return Path(log)


def _written(stack: Stack, before: int) -> str:
    """What the log holds past that size, when it is no longer growing."""
    sizes = [before]

    def quiet() -> bool:
        sizes.append(_log(stack).stat().st_size)
        return sizes[-1] == sizes[-2] > before

    wait_for(quiet, every=0.5)
    return _log(stack).read_bytes()[before:].decode("utf-8", "replace")


@pytest.mark.parametrize("path", [UNARY, STREAM, "/api/v1/task/tokenization"])
def test_a_long_model_id_is_refused_and_not_logged(stack: Stack, http: httpx.Client, path: str) -> None:
    before = _log(stack).stat().st_size
    for body in ({"model_id": "m" * 2**20, "inputs": "a"}, {"model_id": "m" * 300, "inputs": "a"}):
        answer = http.post(path, json=body)
        assert _status(answer) == 400
        assert len(answer.content) < 1000
    written = _written(stack, before)
    assert len(written) < 20_000
    assert "Traceback" not in written
    assert "m" * 300 not in written


def test_a_long_model_id_is_refused_over_grpc(stack: Stack) -> None:
    before = _log(stack).stat().st_size
    with stack.client("grpc", "m" * 6000) as client:
        for call in (lambda: client.generate("a"), lambda: list(client.stream("a"))):
            with pytest.raises(GenerationError) as caught:
                call()
            assert caught.value.code == "INVALID_ARGUMENT"
            assert len(caught.value.message) < 300
    assert "m" * 300 not in _written(stack, before)


@pytest.mark.parametrize("body", [
    {"model_id": NAME, "inputs": "a", "parameters": {"max_new_tokens": "9" * 2**20}},
    {"model_id": NAME, "inputs": "a", "parameters": {"x" * 2**20: 1}},
    {"model_id": NAME, "inputs": ["a" * 2**20]},
    {"model_id": NAME, "inputs": "a", "parameters": {"decoding_method": "b" * 2**20}},
    {"model_id": NAME, "inputs": "a", "parameters": {f"x{number}": 1 for number in range(20_000)}},
    {"model_id": NAME, "inputs": "a", "parameters": {"stop_sequences": ["c" * 2**20]}},
], ids=["value", "name", "inputs", "enum", "many", "stop"])
def test_what_is_refused_comes_back_and_is_logged_in_few_words(
    stack: Stack, http: httpx.Client, body: dict[str, Any]
) -> None:
    before = _log(stack).stat().st_size
    for path in (UNARY, STREAM):
        answer = http.post(path, json=body)
        assert _status(answer) in (400, 422), answer.text[:500]
        assert len(answer.content) < 60_000
    written = _written(stack, before)
    assert len(written) < 30_000
    assert "Traceback" not in written


def test_names_of_unknown_models_are_logged_without_tracebacks(stack: Stack, http: httpx.Client) -> None:
    before = _log(stack).stat().st_size
    for path in (UNARY, STREAM):
        assert _status(http.post(path, json={"model_id": "other", "inputs": "a"})) == 404
    written = _written(stack, before)
    assert "other" in written
    assert "Traceback" not in written


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; x=y",
                                  "multipart/form-data; boundary=abc"])
@pytest.mark.parametrize("path", [UNARY, STREAM])
@pytest.mark.parametrize("body", [b"", b"--abc\r\nno form", b"\xff\xfe" * 50], ids=["empty", "broken", "bytes"])
def test_forms_that_are_none_are_the_callers_mistake(http: httpx.Client, path: str, kind: str, body: bytes) -> None:
    answer = http.post(path, content=body, headers={"content-type": kind})
    assert _status(answer) in (400, 422), (answer.status_code, answer.text)


def test_a_form_is_taken(http: httpx.Client) -> None:
    given = {"model_id": (None, NAME), "inputs": (None, "a"), "parameters.max_new_tokens": (None, "2")}
    answer = http.post(UNARY, files=given)
    assert answer.status_code == 200, answer.text
    assert answer.json()["generated_tokens"] == 2


@pytest.mark.parametrize("kind", ["", ";", "; charset=utf-8"])
def test_an_empty_content_type_is_json(http: httpx.Client, kind: str) -> None:
    body = json.dumps({"model_id": NAME, "inputs": "a", "parameters": {"max_new_tokens": 1}})
    answer = http.post(UNARY, content=body, headers={"content-type": kind})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("value", [1e308, 1e16, 4294968, -1e308, -1, 0])
@pytest.mark.parametrize("protocol", CAIKIT)
def test_times_that_no_request_can_have_are_refused(stack: Stack, protocol: str, value: float) -> None:
    _refused(stack, protocol, "max_time", max_time=value)


@pytest.mark.parametrize(("name", "more"), [
    ("max_new_tokens", {}), ("repetition_penalty", {}), ("temperature", {"decoding_method": "SAMPLING"}),
    ("top_p", {"decoding_method": "SAMPLING"})])
@pytest.mark.parametrize("protocol", CAIKIT)
def test_a_zero_does_not_silently_become_the_default(
    stack: Stack, protocol: str, name: str, more: dict[str, Any]
) -> None:
    _refused(stack, protocol, name, **{name: 0}, **more)


@pytest.mark.parametrize(("name", "more"), [
    ("min_new_tokens", {}), ("truncate_input_tokens", {}), ("top_k", {"decoding_method": "SAMPLING", "seed": 1}),
    ("typical_p", {"decoding_method": "SAMPLING", "seed": 1})])
@pytest.mark.parametrize("protocol", CAIKIT)
def test_a_zero_that_means_none_is_taken(stack: Stack, protocol: str, name: str, more: dict[str, Any]) -> None:
    with stack.client(protocol) as client:
        assert client.generate("a", **{name: 0}, **more).text == client.generate("a", **more).text


def _refused(stack: Stack, protocol: str, words: str, **parameters: Any) -> None:
    with stack.client(protocol) as client:
        for call in (lambda: client.generate("a", **parameters), lambda: list(client.stream("a", **parameters))):
            with pytest.raises(GenerationError, match=words) as caught:
                call()
            assert caught.value.code == "INVALID_ARGUMENT"


def test_a_message_that_is_none_has_a_short_answer(stack: Stack) -> None:
    with grpc.insecure_channel(stack.urls["grpc"].removeprefix("grpc://")) as channel:
        call = channel.unary_unary("/caikit.runtime.Nlp.NlpService/TextGenerationTaskPredict")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff" * 2**20, timeout=30, metadata=[("mm-model-id", NAME)])
    assert len(caught.value.details()) < 500
