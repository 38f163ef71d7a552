"""Each parameter, text and size through the real Caikit runtime, whole and streamed, over REST and gRPC."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from llm_detox.client.types import Chunk, Generation
from tests.serving.conftest import NAME, Stack, greedy
from tests.serving.running import STREAM, UNARY

CAIKIT = ["rest", "grpc"]
ALL = ["rest", "grpc", "fmaas"]
PROMPT = "the quick brown fox jumps"
DRAW = {"decoding_method": "SAMPLING", "seed": 11, "max_new_tokens": 24}
# Parameter -> what it is tried with, and what it is compared to: the answers must differ.
EFFECTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "max_new_tokens": ({"max_new_tokens": 3}, {}),
    "min_new_tokens": ({"min_new_tokens": 30, "max_new_tokens": 40, "exponential_decay_length_penalty": (0, 10.0)},
                       {"max_new_tokens": 40, "exponential_decay_length_penalty": (0, 10.0)}),
    "truncate_input_tokens": ({"truncate_input_tokens": 2}, {}),
    "decoding_method": ({**DRAW, "temperature": 2.0}, {"max_new_tokens": 24}),
    "seed": (DRAW, {**DRAW, "seed": 12}),
    "temperature": ({**DRAW, "temperature": 3.0}, {**DRAW, "temperature": 0.05}),
    "top_k": ({**DRAW, "top_k": 1}, DRAW),
    "top_p": ({**DRAW, "top_p": 1e-6}, DRAW),
    "typical_p": ({**DRAW, "typical_p": 0.2}, DRAW),
    "repetition_penalty": ({"repetition_penalty": 5.0}, {}),
    "max_time": ({"max_new_tokens": 230, "min_new_tokens": 230, "max_time": 0.05}, {"max_new_tokens": 230}),
    "exponential_decay_length_penalty": ({"max_new_tokens": 60, "exponential_decay_length_penalty": (2, 10.0)},
                                         {"max_new_tokens": 60}),
    "stop_sequences": ({"stop_sequences": ["e", "a", "o", "i"]}, {}),
    "include_stop_sequence": ({"stop_sequences": ["e", "a", "o", "i"], "include_stop_sequence": False},
                              {"stop_sequences": ["e", "a", "o", "i"], "include_stop_sequence": True}),
    "preserve_input_text": ({"preserve_input_text": True}, {}),
    "input_tokens": ({"input_tokens": True}, {}),
    "generated_tokens": ({"generated_tokens": True}, {}),
    "token_logprobs": ({"generated_tokens": True, "token_logprobs": True}, {"generated_tokens": True}),
    "token_ranks": ({"generated_tokens": True, "token_ranks": True}, {"generated_tokens": True}),
}


def test_no_parameter_of_the_runtime_is_left_out(stack: Stack) -> None:
    document = httpx.get(f"{stack.urls['rest']}/openapi.json", timeout=30, trust_env=False).json()
    for path in (UNARY, STREAM):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        name = body["properties"]["parameters"]["$ref"].rpartition("/")[2]
        assert set(document["components"]["schemas"][name]["properties"]) == set(EFFECTS)


def _seen(answer: Generation) -> Any:
    return answer.text, answer.generated_tokens, answer.input_token_count, answer.tokens, answer.input_tokens


def _joined(chunks: list[Chunk]) -> Any:
    tokens = tuple(token for chunk in chunks for token in chunk.tokens)
    inputs = tuple(token for chunk in chunks for token in chunk.input_tokens)
    return ("".join(chunk.text for chunk in chunks), chunks[-1].generated_tokens,
            max(chunk.input_token_count for chunk in chunks), tokens, inputs)


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("protocol", CAIKIT)
def test_every_parameter_has_its_effect_whole_and_streamed(stack: Stack, protocol: str, name: str) -> None:
    given, other = EFFECTS[name]
    with stack.client(protocol) as client:
        seen = _seen(client.generate(PROMPT, **given))
        assert seen != _seen(client.generate(PROMPT, **other))
        if name != "max_time":  # how far it comes in that time differs
            assert _joined(list(client.stream(PROMPT, **given))) == seen


@pytest.mark.parametrize("protocol", ALL)
def test_characters_are_whole_in_every_piece_of_a_stream(stack: Stack, protocol: str) -> None:
    beyond = ""
    with stack.client(protocol) as client:
        for seed in range(1, 5):
            drawn = {**DRAW, "seed": seed, "temperature": 3.0, "max_new_tokens": 60}
            pieces = [chunk.text for chunk in client.stream("naïve ☕ 日本語 🙂", **drawn)]
            assert "".join(pieces) == client.generate("naïve ☕ 日本語 🙂", **drawn).text
            for piece in pieces:
                piece.encode()  # no half of a surrogate pair
            beyond += "".join(pieces)
    assert any(ord(character) > 127 for character in beyond)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("protocol", CAIKIT)
def test_a_stop_sequence_across_tokens_ends_answer_and_stream(stack: Stack, protocol: str, include: bool) -> None:
    with stack.client(protocol) as client:
        full = client.generate(PROMPT, max_new_tokens=40, generated_tokens=True)
        border = len("".join(token.text for token in full.tokens[:12]).replace("Ġ", " "))
        stop = full.text[border - 2 : border + 2]
        stopping = {"max_new_tokens": 40, "stop_sequences": ["never seen", stop], "include_stop_sequence": include}
        expected = full.text[: full.text.index(stop) + (len(stop) if include else 0)]
        answer = client.generate(PROMPT, **stopping)
        chunks = list(client.stream(PROMPT, **stopping))
    assert (answer.text, answer.finish_reason) == (expected, "STOP_SEQUENCE")
    assert ("".join(chunk.text for chunk in chunks), chunks[-1].finish_reason) == (expected, "STOP_SEQUENCE")


def test_requests_at_the_same_time_get_the_tokens_of_transformers(stack: Stack) -> None:
    prompts = [f"{start} {end}" for start in ("the fox", "you are", "☕", "a fine day for a walk in")
               for end in ("runs", "the dog and the train to the city", "x", "")]
    expected = greedy(stack.artifacts, prompts, new_tokens=20)
    clients = {protocol: stack.client(protocol) for protocol in ALL}

    def ask(number: int) -> tuple[str, str]:
        prompt, client = prompts[number % len(prompts)], clients[ALL[number % len(ALL)]]
        if number % 2:
            return prompt, client.generate(prompt, max_new_tokens=20).text
        return prompt, "".join(chunk.text for chunk in client.stream(prompt, max_new_tokens=20))

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(4 * len(prompts))))
    for client in clients.values():
        client.close()
    assert [answer for answer in answers if answer[1] != expected[answer[0]][1]] == []


@pytest.mark.parametrize(("protocol", "streaming"), [("grpc", False), *(
    pytest.param(protocol, streaming, marks=pytest.mark.slow)  # tokenising that much takes seconds
    for protocol in ALL for streaming in (False, True) if (protocol, streaming) != ("grpc", False))])
def test_more_than_four_mebibytes_go_there_and_come_back(stack: Stack, protocol: str, streaming: bool) -> None:
    text = "word ☕ " * 500_000
    assert len(text.encode()) > 4.2 * 2**20
    given = {"max_new_tokens": 2, "truncate_input_tokens": 8, "preserve_input_text": True}
    with stack.client(protocol) as client:
        if streaming:
            chunks = list(client.stream(text, **given))
            found, count = "".join(chunk.text for chunk in chunks), max(chunk.input_token_count for chunk in chunks)
        else:
            answer = client.generate(text, **given)
            found, count = answer.text, answer.input_token_count
    assert found.startswith(text)
    assert count == 8


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON", None])
def test_json_is_taken_however_it_is_announced(stack: Stack, kind: str | None) -> None:
    body = json.dumps({"model_id": NAME, "inputs": "naïve", "parameters": {"max_new_tokens": 1}}).encode()
    answer = httpx.post(f"{stack.urls['rest']}{UNARY}", content=body, timeout=30, trust_env=False,
                        headers={"content-type": kind} if kind else {})
    assert answer.status_code == 200, answer.text


def test_other_media_types_are_refused(stack: Stack) -> None:
    answer = httpx.post(f"{stack.urls['rest']}{UNARY}", content=b"a: 1", timeout=30, trust_env=False,
                        headers={"content-type": "application/yaml"})
    assert answer.status_code == 415


@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty", "max_time"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "-1"])
def test_numbers_that_are_none_are_the_callers_mistake(stack: Stack, name: str, value: str) -> None:
    body = (f'{{"model_id": "{NAME}", "inputs": "a", "parameters": {{"decoding_method": "SAMPLING", '
            f'"max_new_tokens": 1, "{name}": {value}}}}}')
    answer = httpx.post(f"{stack.urls['rest']}{UNARY}", content=body, timeout=30, trust_env=False,
                        headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text


