"""The contract of the whole topology: the real Caikit runtime in front of the engine, asked as users do."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from llm_detox.client import GenerationError
from tests.serving.conftest import NAME, Stack, assert_greedy, greedy

CAIKIT = ["rest", "grpc"]
ALL = ["rest", "grpc", "fmaas"]
PROMPTS = ["the quick brown fox", "naïve café ☕ 日本語", "you are", "thank you for the lovely dinner, it was"]


@pytest.fixture(scope="module")
def expected(stack: Stack) -> dict[str, tuple[list[str], str]]:
    return greedy(stack.artifacts, PROMPTS, new_tokens=24)


@pytest.mark.parametrize("protocol", ALL)
def test_greedy_answers_are_those_of_transformers(
    stack: Stack, expected: dict[str, tuple[list[str], str]], protocol: str
) -> None:
    with stack.client(protocol) as client:
        assert_greedy(client, expected, new_tokens=24)
        for prompt, (_, text) in expected.items():
            chunks = list(client.stream(prompt, max_new_tokens=24))
            assert "".join(chunk.text for chunk in chunks) == text
            assert [chunk.finish_reason == "NOT_FINISHED" for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
            assert all(a.generated_tokens <= b.generated_tokens for a, b in pairwise(chunks))


@pytest.mark.parametrize("protocol", CAIKIT)
def test_only_the_published_model_answers(stack: Stack, protocol: str) -> None:
    for name in ("other", "models", "../models", f"{NAME}/artifacts", str(stack.artifacts)):
        with stack.client(protocol, name) as client:
            for call in (lambda client=client: client.generate("a"), lambda client=client: list(client.stream("a"))):
                with pytest.raises(GenerationError) as caught:
                    call()
                assert caught.value.code == "NOT_FOUND"
    with stack.client(protocol, "") as client, pytest.raises(GenerationError) as caught:
        client.generate("a")
    assert caught.value.code == "INVALID_ARGUMENT"


def test_no_header_sends_a_request_elsewhere(stack: Stack) -> None:
    body = {"model_id": NAME, "inputs": "the quick", "parameters": {"max_new_tokens": 2}}
    for _ in range(2):
        answer = httpx.post(f"{stack.urls['rest']}/api/v1/task/text-generation", json=body, timeout=30,
                            headers={"x-route-info": "127.0.0.1:9"}, trust_env=False)
        assert answer.status_code == 200, answer.text
    with stack.client("grpc") as client:
        connection = client._transport._connection  # type: ignore[attr-defined]
        plain = connection.metadata
        connection.metadata = lambda **values: [*plain(**values), ("x-route-info", "127.0.0.1:9")]
        assert client.generate("the quick", max_new_tokens=2).generated_tokens == 2


def test_models_cannot_be_put_in_or_removed_over_the_network(stack: Stack) -> None:
    url = f"{stack.urls['rest']}/management/models"
    files = [{"filename": "config.yml", "data": "bmFtZTogeA=="}]
    put = httpx.post(url, json={"model_id": "evil", "model_files": files}, timeout=30, trust_env=False)
    gone = httpx.delete(url, params={"model_id": NAME}, timeout=30, trust_env=False)
    assert put.status_code >= 400, put.text
    assert gone.status_code >= 400, gone.text
    assert not any(path.name == "evil" for path in stack.folder.rglob("evil"))
    with stack.client("rest") as client:
        assert client.generate("a", max_new_tokens=1).generated_tokens == 1


SAME = [
    {"max_new_tokens": 3}, {"max_new_tokens": 12, "min_new_tokens": 12}, {"repetition_penalty": 1.5},
    {"decoding_method": "SAMPLING", "seed": 7, "temperature": 0.9, "top_k": 20, "top_p": 0.8},
    {"decoding_method": "SAMPLING", "seed": 7, "typical_p": 0.7}, {"preserve_input_text": True},
    {"truncate_input_tokens": 3}, {"stop_sequences": ["e"], "include_stop_sequence": True},
    {"stop_sequences": ["e"], "include_stop_sequence": False},
    {"exponential_decay_length_penalty": (2, 1.5), "max_new_tokens": 30},
    {"generated_tokens": True, "token_logprobs": True, "token_ranks": True, "input_tokens": True},
    {"max_time": 30.0},
]


@pytest.mark.parametrize("parameters", SAME, ids=lambda one: "-".join(one))
def test_every_parameter_means_the_same_on_every_way(stack: Stack, parameters: dict[str, Any]) -> None:
    answers = {}
    for protocol in ALL:
        with stack.client(protocol) as client:
            answers[protocol] = client.generate("the quick brown fox jumps", **parameters)
            chunks = list(client.stream("the quick brown fox jumps", **parameters))
        answer = answers[protocol]
        assert "".join(chunk.text for chunk in chunks) == answer.text
        assert chunks[-1].generated_tokens == answer.generated_tokens
        assert chunks[-1].finish_reason == answer.finish_reason
    reference = answers["fmaas"]
    for protocol in CAIKIT:
        answer = answers[protocol]
        assert (answer.text, answer.generated_tokens, answer.finish_reason, answer.input_token_count) == (
            reference.text, reference.generated_tokens, reference.finish_reason, reference.input_token_count)
        assert [one.text for one in answer.tokens] == [one.text for one in reference.tokens]
        for ours, theirs in zip(answer.tokens, reference.tokens, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
            assert ours.rank == theirs.rank


def test_parameters_have_effect(stack: Stack) -> None:
    prompt = "the quick brown fox jumps"
    with stack.client("grpc") as client:
        plain = client.generate(prompt, max_new_tokens=12)
        assert client.generate(prompt, max_new_tokens=12, preserve_input_text=True).text == prompt + plain.text
        stop = plain.text[4:6]
        stopped = client.generate(prompt, max_new_tokens=12, stop_sequences=[stop], include_stop_sequence=False)
        assert stopped.finish_reason == "STOP_SEQUENCE"
        assert stopped.text == plain.text[:plain.text.index(stop)]
        drawn = {client.generate(prompt, max_new_tokens=12, decoding_method="SAMPLING", seed=seed).text
                 for seed in (1, 1, 2, 3)}
        assert len(drawn) == 3
        detailed = client.generate(prompt, max_new_tokens=4, generated_tokens=True, token_logprobs=True,
                                   token_ranks=True)
        assert len(detailed.tokens) == 4
        assert all(one.rank == 1 and (one.logprob or 0) <= 0 for one in detailed.tokens)
        assert client.generate(prompt, max_new_tokens=1, truncate_input_tokens=2).input_token_count == 2


WRONG = [
    {"max_new_tokens": 5, "min_new_tokens": 6}, {"decoding_method": "SAMPLING", "top_p": 1.5},
    {"decoding_method": "SAMPLING", "temperature": 0.01}, {"stop_sequences": ["a"] * 7},
    {"max_new_tokens": 100_000}, {"repetition_penalty": -1.0}, {"stop_sequences": [""]},
]


@pytest.mark.parametrize("parameters", WRONG, ids=lambda one: "-".join(one))
def test_wrong_values_are_refused_on_every_way_with_a_reason(stack: Stack, parameters: dict[str, Any]) -> None:
    for protocol in ALL:
        with stack.client(protocol) as client:
            for call in (lambda client=client: client.generate("a", **parameters),
                         lambda client=client: list(client.stream("a", **parameters))):
                with pytest.raises(GenerationError) as caught:
                    call()
                assert caught.value.code == "INVALID_ARGUMENT", protocol
                assert len(caught.value.message) > 20


@pytest.mark.parametrize("parameters", [{"temperature": 0.5}, {"seed": 3}, {"top_k": 5}, {"top_p": 0.5}],
                         ids=lambda one: "-".join(one))
def test_caikit_refuses_sampling_values_with_greedy(stack: Stack, parameters: dict[str, Any]) -> None:
    for protocol in CAIKIT:
        with stack.client(protocol) as client, pytest.raises(GenerationError, match="greedy") as caught:
            client.generate("a", decoding_method="GREEDY", **parameters)
        assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(("body", "status"), [
    ({"inputs": "a"}, 400), ({"model_id": NAME}, 400), ({"model_id": NAME, "inputs": 3}, 422),
    ({"model_id": NAME, "inputs": "a", "parameters": {"max_new_tokens": "many"}}, 422),
    ({"model_id": NAME, "inputs": "a", "parameters": {"max_tokens": 1}}, 422), ("not json", 422),
])
def test_malformed_rest_requests_are_refused(stack: Stack, body: Any, status: int) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    for path in ("text-generation", "server-streaming-text-generation"):
        answer = httpx.post(f"{stack.urls['rest']}/api/v1/task/{path}", content=content, timeout=30, trust_env=False,
                            headers={"content-type": "application/json"})
        if answer.status_code == 200:  # the stream was open before the fault was seen
            assert path.startswith("server-streaming")
            assert answer.text.startswith("event: error")
            assert f'"code": {status}' in answer.text
        else:
            assert answer.status_code == status, answer.text


@pytest.mark.parametrize("protocol", CAIKIT)
def test_more_than_the_limit_is_refused(stack: Stack, protocol: str) -> None:
    with stack.client(protocol) as client:
        with pytest.raises(GenerationError) as caught:
            client.generate("word " * (4 * 2**20), max_new_tokens=1, truncate_input_tokens=8)
        assert caught.value.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
        assert client.generate("after it", max_new_tokens=1).generated_tokens == 1


def test_a_body_past_the_limit_is_refused_even_if_its_length_is_not_announced(stack: Stack) -> None:
    def pieces() -> Any:
        for _ in range(20):
            yield b" " * 2**20

    answer = httpx.post(f"{stack.urls['rest']}/api/v1/task/text-generation", content=pieces(), timeout=60,
                        headers={"content-type": "application/json"}, trust_env=False)
    assert answer.status_code == 413


@pytest.mark.parametrize("protocol", ALL)
def test_too_long_an_input_is_refused_with_the_limit(stack: Stack, protocol: str) -> None:
    with stack.client(protocol) as client, pytest.raises(GenerationError, match="token") as caught:
        client.generate("the quick brown fox " * 400)
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("protocol", ALL)
def test_a_stream_that_is_left_frees_its_place(stack: Stack, protocol: str) -> None:
    with stack.client(protocol) as client:
        for _ in range(3):
            chunks = client.stream("the quick", max_new_tokens=200)
            for _ in range(3):
                next(chunks)
            chunks.close()  # type: ignore[attr-defined]
        assert client.generate("the quick", max_new_tokens=2).generated_tokens == 2


@pytest.mark.parametrize("protocol", ALL)
def test_a_deadline_ends_the_call(stack: Stack, protocol: str) -> None:
    with stack.client(protocol) as warm:
        warm.generate("a", max_new_tokens=1)
    with stack.client(protocol, timeout=0.05) as client, pytest.raises(GenerationError) as caught:
        client.generate("the quick", max_new_tokens=230, min_new_tokens=230)
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_everything_listens_on_loopback_only(stack: Stack) -> None:
    ports = {int(url.rpartition(":")[2]) for url in stack.urls.values()}
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            pytest.skip("this system has no /proc/net")
        for line in Path(table).read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and int(port, 16) in ports:
                listening.append((address, int(port, 16)))
    assert {port for _, port in listening} == ports
    # 127.0.0.1, plain or mapped into IPv6.
    assert {address for address, _ in listening} <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_the_state_file_is_private_and_holds_no_secret(stack: Stack) -> None:
    path = stack.folder / "deployment.json"
    assert path.stat().st_mode & 0o077 == 0
    assert not any(word in path.read_text().lower() for word in ("secret", "access_key", "token"))


def test_reflection_and_health_are_there(stack: Stack) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(stack.urls["grpc"].removeprefix("grpc://")) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert httpx.get(f"{stack.urls['rest']}/health", timeout=10, trust_env=False).text == "OK"


class _Scorer:
    """Gives every text the same score."""

    def score(self, texts: list[str]) -> list[float]:
        return [0.5 for _ in texts]


def test_smoke_asks_on_every_way_and_scores_the_answer(
    stack: Stack, expected: dict[str, tuple[list[str], str]], tmp_path: Path, repository: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from llm_detox.recipe.files import load_recipe
    from llm_detox.runs.folders import read_manifest
    from llm_detox.scoring import load
    from llm_detox.serve.smoke import smoke

    monkeypatch.setattr(load, "load_scorer", lambda spec: _Scorer())
    prompt = PROMPTS[0]
    recipe = load_recipe(repository / "recipes/smollm2-demo.yaml",
                         [f"deploy.prompt={prompt}", "deploy.max_new_tokens=24", f"deploy.name={NAME}"])
    result = smoke(recipe, deployment=stack.folder, output=tmp_path / "smoke")
    assert result.text == expected[prompt][1]
    assert result.toxicity == 0.5
    assert [(one.protocol, one.mode) for one in result.answers] == [
        ("rest", "unary"), ("rest", "stream"), ("grpc", "unary"), ("grpc", "stream")]
    assert read_manifest(tmp_path / "smoke")["result"] == json.loads(json.dumps(asdict(result)))
