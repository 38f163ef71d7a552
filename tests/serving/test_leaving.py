"""A client that goes takes its work with it: the engine's place and the runtime's thread are free for others."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest

from llm_detox.client import GenerationError
from tests.serving.conftest import NAME, Stack
from tests.serving.running import STREAM, UNARY, metrics_of, total, wait_for

# Each token is slow: all candidates are sorted, and its details are told.
SLOW: dict[str, Any] = {
    "max_new_tokens": 230, "min_new_tokens": 230, "decoding_method": "SAMPLING", "typical_p": 0.99, "top_p": 0.99,
    "generated_tokens": True, "token_logprobs": True, "token_ranks": True}
CLIENTS = 16


def _unary_over_rest(stack: Stack) -> None:
    body = {"model_id": NAME, "inputs": "the quick", "parameters": SLOW}
    with suppress(httpx.TimeoutException), httpx.Client(trust_env=False, timeout=0.4) as client:
        client.post(f"{stack.urls['rest']}{UNARY}", json=body)


def _stream_over_rest(stack: Stack) -> None:
    body = {"model_id": NAME, "inputs": "the quick", "parameters": SLOW}
    connection = HTTPConnection(stack.urls["rest"].removeprefix("http://"), timeout=30)
    connection.request("POST", STREAM, json.dumps(body), {"content-type": "application/json"})
    assert b"data" in connection.getresponse().read(200)
    connection.close()


def _unary(protocol: str) -> Callable[[Stack], None]:
    def leave(stack: Stack) -> None:
        with stack.client(protocol, timeout=0.4) as client, suppress(GenerationError):
            client.generate("the quick", **SLOW)
    return leave


def _stream(protocol: str) -> Callable[[Stack], None]:
    def leave(stack: Stack) -> None:
        with stack.client(protocol) as client:
            chunks: Any = client.stream("the quick", **SLOW)
            next(chunks), next(chunks)
            chunks.close()
    return leave


@pytest.mark.parametrize("leave", [
    pytest.param(_unary_over_rest, id="rest-unary"), pytest.param(_stream_over_rest, id="rest-stream"),
    *(pytest.param(make(protocol), id=f"{protocol}-{name}")
      for protocol in ("grpc", "fmaas") for name, make in (("unary", _unary), ("stream", _stream))),
])
def test_a_client_that_goes_frees_its_place(stack: Stack, leave: Callable[[Stack], None]) -> None:
    for protocol in ("grpc", "fmaas"):
        with stack.client(protocol) as warm:
            warm.generate("a", max_new_tokens=1)
    asked, ended = (total(metrics_of(stack.urls["engine"]), name)
                    for name in ("tgi_request_count_total", "tgi_request_success_total"))
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda _: leave(stack), range(CLIENTS)))
    wait_for(lambda: total(metrics_of(stack.urls["engine"]), "tgi_batch_current_size") == 0)
    after = metrics_of(stack.urls["engine"])
    assert total(after, "tgi_request_count_total") == asked + CLIENTS
    assert total(after, "tgi_request_success_total") == ended, "requests that nobody waits for ran to their end"


def test_streams_that_are_left_do_not_use_up_the_runtime(stack: Stack) -> None:
    """Caikit serves REST with a hundred threads; each stream that was left used to keep one."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda _: _stream_over_rest(stack), range(110)))
    answer = httpx.post(f"{stack.urls['rest']}{UNARY}", timeout=30, trust_env=False, content=json.dumps(
        {"model_id": NAME, "inputs": "the quick", "parameters": {"max_new_tokens": 2}}),
        headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
