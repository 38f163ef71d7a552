"""OpenAI-compatible servers through the same client: what is sent, what is read, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_detox.client import GenerationError, TextGenerationClient
from llm_detox.client.openai import OpenAi
from llm_detox.client.types import Parameters
from tests.helpers.answering import http_server, openai, reply

TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
PIECES = ["one", " two", " thr\u2028ee ☕"]


@pytest.mark.parametrize("prompt", ["a text", TALK], ids=["text", "conversation"])
def test_whole_and_streamed_answers_are_the_same_with_the_servers_counts(prompt: Any) -> None:
    with http_server(openai(PIECES)) as url, TextGenerationClient(f"openai+{url}", "m") as client:
        answer = client.generate(prompt, max_new_tokens=3)
        chunks = list(client.stream(prompt, max_new_tokens=3))
    assert (answer.text, answer.generated_tokens, answer.input_token_count) == ("".join(PIECES), 3, 5)
    assert answer.finish_reason == "MAX_TOKENS"
    assert [chunk.text for chunk in chunks] == PIECES
    assert [chunk.finish_reason for chunk in chunks] == ["NOT_FINISHED", "NOT_FINISHED", "MAX_TOKENS"]
    assert (chunks[-1].generated_tokens, chunks[-1].input_token_count) == (3, 5)


def test_a_server_that_counts_nothing_is_understood() -> None:
    with http_server(openai(PIECES, usage=False)) as url, TextGenerationClient(f"openai+{url}", "m") as client:
        assert client.generate("a").generated_tokens == 0
        assert "".join(chunk.text for chunk in client.stream("a")) == "".join(PIECES)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/gateway/v1", "/gateway"])
def test_the_address_may_hold_what_documentation_shows(suffix: str) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def answer(handler: Any) -> None:
        seen.append((handler.path, handler.asked()))
        openai(["x"])(handler)

    with http_server(answer) as url, TextGenerationClient(f"openai+{url}{suffix}", "org/m") as client:
        client.generate("a")
        client.generate(TALK)
    prefix = "/gateway" if "gateway" in suffix else ""
    assert [path for path, _ in seen] == [f"{prefix}/v1/completions", f"{prefix}/v1/chat/completions"]
    assert seen[0][1] == {"model": "org/m", "prompt": "a"}, "what is not given is left to the server"
    assert seen[1][1] == {"model": "org/m", "messages": TALK}


def body(prompt: Any = "a", **parameters: Any) -> dict[str, Any]:
    return OpenAi().request("", prompt, Parameters.of(parameters), stream=False)[1]


def test_parameters_go_by_the_names_of_the_api_and_of_vllm() -> None:
    assert body(max_new_tokens=7, min_new_tokens=2, truncate_input_tokens=9, stop_sequences=("x", "y"),
                include_stop_sequence=False, repetition_penalty=1.5) == {
        "prompt": "a", "max_tokens": 7, "min_tokens": 2, "truncate_prompt_tokens": 9, "stop": ["x", "y"],
        "include_stop_str_in_output": False, "repetition_penalty": 1.5}
    assert body(decoding_method="SAMPLING", temperature=0.5, top_k=3, top_p=0.9, seed=0) == {
        "prompt": "a", "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 0}
    assert body(decoding_method="GREEDY") == {"prompt": "a", "temperature": 0}
    assert body(preserve_input_text=True, generated_tokens=True) == {"prompt": "a", "echo": True, "logprobs": 1}
    assert body(TALK, generated_tokens=True) == {"messages": TALK, "logprobs": True}
    assert body(token_ranks=False, input_tokens=False, max_new_tokens=1) == {"prompt": "a", "max_tokens": 1}


@pytest.mark.parametrize("given", [
    {"typical_p": 0.5}, {"max_time": 1.0}, {"exponential_decay_length_penalty": (1, 1.1)}, {"input_tokens": True},
    {"token_ranks": True}, {"decoding_method": "GREEDY", "temperature": 0.5}, {"decoding_method": "GREEDY", "seed": 1},
], ids=lambda one: "-".join(one))
def test_what_cannot_be_said_is_refused_and_not_dropped(given: dict[str, Any]) -> None:
    seen: list[str] = []
    with (http_server(lambda handler: seen.append(handler.path)) as url,
          TextGenerationClient(f"openai+{url}", "m") as client):
        for call in (lambda: client.generate("a", **given), lambda: list(client.stream("a", **given))):
            with pytest.raises(GenerationError, match=list(given)[-1]) as caught:
                call()
            assert caught.value.code == "INVALID_ARGUMENT"
    assert not seen


@pytest.mark.parametrize(("choice", "reason"), [
    ({"finish_reason": "stop"}, "EOS_TOKEN"), ({"finish_reason": "stop", "stop_reason": "x"}, "STOP_SEQUENCE"),
    ({"finish_reason": "stop", "stop_reason": 2}, "EOS_TOKEN"), ({"finish_reason": "length"}, "MAX_TOKENS"),
    ({"finish_reason": "abort"}, "CANCELLED"), ({"finish_reason": "content_filter"}, "CONTENT_FILTER"),
])
def test_why_an_answer_ended(choice: dict[str, Any], reason: str) -> None:
    assert OpenAi().generation({"choices": [{"text": "x", **choice}]}).finish_reason == reason


def test_token_details_of_texts_and_of_conversations() -> None:
    text = {"text": "ab", "finish_reason": "length", "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-0.5, None]}}
    chat = {"message": {"content": "ab"}, "finish_reason": "length",
            "logprobs": {"content": [{"token": "a", "logprob": -0.5}, {"token": "b"}]}}
    for choice in (text, chat):
        tokens = OpenAi().generation({"choices": [choice]}).tokens
        assert [(token.text, token.logprob, token.rank) for token in tokens] == [("a", -0.5, None), ("b", None, None)]


@pytest.mark.parametrize(("status", "said", "code"), [
    (400, b'{"error": {"message": "too long", "type": "BadRequestError", "code": 400}}', "INVALID_ARGUMENT"),
    (404, b'{"object": "error", "message": "too long: no such model", "code": 404}', "NOT_FOUND"),
    (401, b'{"error": "too long a token"}', "UNAUTHENTICATED"), (429, b'{"detail": "too long a queue"}',
                                                                 "RESOURCE_EXHAUSTED"),
    (501, b'{"error": {"message": "too long ago"}}', "UNIMPLEMENTED"),
])
def test_errors_keep_their_words(status: int, said: bytes, code: str) -> None:
    with (http_server(lambda handler: reply(handler, status, said)) as url,
          TextGenerationClient(f"openai+{url}", "m", retries=0) as client):
        for call in (lambda: client.generate("a"), lambda: list(client.stream("a"))):
            with pytest.raises(GenerationError, match="too long") as caught:
                call()
            assert caught.value.code == code


@pytest.mark.parametrize(("tail", "code"), [
    ('data: {"error": {"message": "engine gone", "code": 503}}\n\ndata: [DONE]\n\n', "UNAVAILABLE"),
    ('data: {"error": {"message": "engine gone"}}\n\n', "INTERNAL"), ("", "UNAVAILABLE"), ("data: [DONE]\n\n",
                                                                                          "UNAVAILABLE"),
    ('data: {"choices": 3}\n\n', "INTERNAL"),
])
def test_a_stream_that_fails_or_breaks_off_is_an_error_behind_what_came(tail: str, code: str) -> None:
    first = json.dumps({"choices": [{"text": "one", "finish_reason": None}]})
    text = f"data: {first}\n\n{tail}".encode()
    with (http_server(lambda handler: reply(handler, 200, text, "text/event-stream")) as url,
          TextGenerationClient(f"openai+{url}", "m") as client):
        chunks = client.stream("a")
        assert next(chunks).text == "one"
        with pytest.raises(GenerationError) as caught:
            next(chunks)
        assert caught.value.code == code


@pytest.mark.parametrize("said", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"finish_reason": "stop"}]}'])
def test_another_kind_of_server_is_noticed(said: bytes) -> None:
    with (http_server(lambda handler: reply(handler, 200, said)) as url,
          TextGenerationClient(f"openai+{url}", "m") as client,
          pytest.raises(GenerationError, match="is this an OpenAI-compatible server")):
        client.generate("a")
