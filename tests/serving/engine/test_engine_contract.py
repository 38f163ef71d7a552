"""The gRPC interface, field by field, against a running engine: values and the messages of a stream."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from transformers import AutoModelForCausalLM

from serving.engine.jobs import EOS_TOKEN, MAX_TOKENS, NOT_FINISHED, STOP_SEQUENCE, TIME_LIMIT, TOKEN_LIMIT
from tests.serving.engine.running import PROMPT, Engine, pb


def test_no_requests_give_no_responses(engine: Engine) -> None:
    assert list(engine.generate()) == []


def test_defaults_are_greedy_and_twenty_tokens(engine: Engine, reference: Any) -> None:
    [answer] = engine.generate(PROMPT)
    expected = reference(PROMPT, max_new_tokens=20)
    assert answer.text == reference.text_of(expected)
    assert answer.generated_token_count == 20
    assert answer.stop_reason == MAX_TOKENS
    assert answer.input_token_count == len(reference.tokenizer(PROMPT).input_ids)
    assert (answer.seed, answer.stop_sequence) == (0, "")
    assert not answer.tokens
    assert not answer.input_tokens


def test_a_batch_answers_in_order_with_one_response_an_input(engine: Engine, reference: Any) -> None:
    texts = ["you are", "the train to the city leaves at", "a"]
    answers = engine.generate(*texts, stopping={"max_new_tokens": 9})
    assert [a.text for a in answers] == [reference.text_of(reference(x, max_new_tokens=9)) for x in texts]


def test_sampling_in_a_batch_without_seed_gives_each_input_a_seed_of_its_own(engine: Engine) -> None:
    answers = engine.generate(*[PROMPT] * 5, method=1, stopping={"max_new_tokens": 16})
    assert len({a.seed for a in answers}) == 5
    assert len({a.text for a in answers}) > 1
    again = engine.generate(PROMPT, method=1, sampling={"seed": answers[2].seed}, stopping={"max_new_tokens": 16})
    assert again[0].text == answers[2].text


def test_sampling_parameters_are_ignored_when_greedy(engine: Engine) -> None:
    plain = engine.generate(PROMPT)[0]
    assert engine.generate(PROMPT, sampling={"temperature": 2.0, "top_k": 5, "seed": 3})[0] == plain


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 0.05, "top_k": 1}])
def test_sampling_from_one_candidate_is_greedy(engine: Engine, sampling: dict[str, Any]) -> None:
    greedy = engine.generate(PROMPT)[0]
    assert engine.generate(PROMPT, method=1, sampling={"seed": 5, **sampling})[0].text == greedy.text


def test_repetition_and_length_penalty_act_as_in_generate(engine: Engine, reference: Any) -> None:
    for decoding, options in (
        ({"repetition_penalty": 1.8}, {"repetition_penalty": 1.8}),
        ({"length_penalty": {"start_index": 3, "decay_factor": 1.6}}, {"exponential_decay_length_penalty": (3, 1.6)}),
    ):
        [answer] = engine.generate(PROMPT, decoding=decoding, stopping={"max_new_tokens": 40})
        expected = reference(PROMPT, max_new_tokens=40, **options)
        assert answer.generated_token_count == len(expected)
        assert answer.text == reference.text_of(expected)
    assert answer.stop_reason == EOS_TOKEN


def test_min_new_tokens_puts_off_the_end(engine: Engine, reference: Any) -> None:
    early = {"length_penalty": {"start_index": 0, "decay_factor": 10.0}}
    [soon] = engine.generate(PROMPT, decoding=early, stopping={"max_new_tokens": 60})
    [late] = engine.generate(PROMPT, decoding=early, stopping={"max_new_tokens": 60, "min_new_tokens": 30})
    assert soon.stop_reason == EOS_TOKEN
    assert soon.generated_token_count < 30 <= late.generated_token_count


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_stop_sequence_across_tokens_ends_the_text(engine: Engine, include: bool, streaming: bool) -> None:
    full = engine.generate(PROMPT, stopping={"max_new_tokens": 40})[0].text
    tokens = [t.text for t in engine.generate(PROMPT, stopping={"max_new_tokens": 40},
                                              response={"generated_tokens": True})[0].tokens]
    border = len("".join(tokens[:12]).replace("Ġ", " "))
    stop = full[border - 2 : border + 2]
    stopping = {"max_new_tokens": 40, "stop_sequences": [stop, "never seen"], "include_stop_sequence": include}
    end = full.index(stop)
    expected = full[: end + len(stop)] if include else full[:end]
    if streaming:
        messages = engine.stream(PROMPT, stopping=stopping)
        text, last = "".join(m.text for m in messages), messages[-1]
    else:
        last = engine.generate(PROMPT, stopping=stopping)[0]
        text = last.text
    assert text == expected
    assert (last.stop_reason, last.stop_sequence) == (STOP_SEQUENCE, stop)


def test_stop_sequences_are_shown_by_default(engine: Engine) -> None:
    full = engine.generate(PROMPT)[0].text
    [answer] = engine.generate(PROMPT, stopping={"stop_sequences": [full[5:7]]})
    assert answer.text == full[: full.index(full[5:7]) + 2]


def test_the_time_limit_ends_a_request_with_what_it_has(engine: Engine) -> None:
    stopping = {"max_new_tokens": 200, "min_new_tokens": 200, "time_limit_millis": 60}
    started = time.monotonic()
    [answer] = engine.generate(PROMPT, stopping=stopping)
    assert time.monotonic() - started < 5
    assert answer.stop_reason == TIME_LIMIT
    assert 1 <= answer.generated_token_count < 200
    assert answer.text
    assert engine.generate(PROMPT, stopping={**stopping, "time_limit_millis": 1})[0].generated_token_count >= 1


def test_truncation_keeps_the_end_of_the_input(engine: Engine) -> None:
    text = "the train to the city leaves at noon"
    asked = {"truncate_input_tokens": 3, "response": {"input_tokens": True, "input_text": True}}
    [answer] = engine.generate(text, **asked)
    [whole] = engine.generate(text, response={"input_tokens": True})
    assert answer.input_token_count == 3
    assert [t.text for t in answer.input_tokens] == [t.text for t in whole.input_tokens][-3:]
    assert answer.text.startswith(text)
    assert engine.generate(text, truncate_input_tokens=500)[0].input_token_count == whole.input_token_count


def test_the_sequence_limit_bounds_a_request_and_says_so(engine: Engine) -> None:
    limit = engine.call("ModelInfo", pb.ModelInfoRequest(model_id="any"), pb.ModelInfoResponse)
    assert (limit.model_kind, limit.max_sequence_length, limit.max_new_tokens) == (0, 256, 200)
    [answer] = engine.generate("a " * 150, stopping={"max_new_tokens": 200, "min_new_tokens": 1},
                               decoding={"length_penalty": {"start_index": 199, "decay_factor": 1.0}})
    if answer.stop_reason != EOS_TOKEN:
        assert answer.stop_reason == TOKEN_LIMIT
        assert answer.input_token_count + answer.generated_token_count == 256


def test_token_details(engine: Engine, reference: Any, engine_model: Path) -> None:
    details = {"generated_tokens": True, "input_tokens": True, "token_logprobs": True, "token_ranks": True,
               "top_n_tokens": 3}
    [answer] = engine.generate(PROMPT, response=details, stopping={"max_new_tokens": 6})
    tokenizer = reference.tokenizer
    ids = tokenizer(PROMPT).input_ids
    new = reference(PROMPT, max_new_tokens=6)
    model = AutoModelForCausalLM.from_pretrained(engine_model, dtype=torch.float32)
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids + new])).logits[0].log_softmax(-1)
    shown = [*answer.input_tokens, *answer.tokens]
    assert [t.text for t in shown] == tokenizer.convert_ids_to_tokens(ids + new)
    assert math.isnan(shown[0].logprob)
    assert (shown[0].rank, list(shown[0].top_tokens)) == (0, [])
    for position, (token, info) in enumerate(zip((ids + new)[1:], shown[1:], strict=True)):
        row = logprobs[position]
        assert info.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert info.rank == int((row > row[token]).sum()) + 1
        best = row.topk(3)
        assert [top.text for top in info.top_tokens][:3] == tokenizer.convert_ids_to_tokens(best.indices.tolist())
        assert [top.logprob for top in info.top_tokens][:3] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_only_the_details_that_are_asked_for_come(engine: Engine) -> None:
    [answer] = engine.generate(PROMPT, response={"generated_tokens": True, "token_ranks": True})
    assert len(answer.tokens) == 20
    assert all(t.rank == 1 and t.logprob == 0 and not t.top_tokens for t in answer.tokens)
    assert not answer.input_tokens


def test_a_stream_tells_the_input_first_and_the_reason_last(engine: Engine) -> None:
    options = {"response": {"input_text": True, "input_tokens": True, "generated_tokens": True}, "method": 1,
               "sampling": {"seed": 9}}
    first, second, *rest = engine.stream(PROMPT, **options)
    [unary] = engine.generate(PROMPT, **options)
    assert (first.text, first.input_token_count, first.seed) == (PROMPT, unary.input_token_count, 9)
    assert (first.generated_token_count, first.stop_reason) == (0, NOT_FINISHED)
    assert list(second.input_tokens) == list(unary.input_tokens)
    assert (second.text, second.generated_token_count) == ("", 0)
    assert [m.generated_token_count for m in rest] == list(range(1, len(rest) + 1))
    assert all(m.input_token_count == 0 and m.stop_reason == NOT_FINISHED and m.seed == 0 for m in rest[:-1])
    assert PROMPT + "".join(m.text for m in rest) == unary.text
    assert [t for m in rest for t in m.tokens] == list(unary.tokens)
    assert (rest[-1].stop_reason, rest[-1].seed) == (unary.stop_reason, 9)


def test_streams_never_break_characters(engine: Engine) -> None:
    seen = ""
    for seed in range(6):
        options = {"method": 1, "sampling": {"seed": seed, "temperature": 3.0}, "stopping": {"max_new_tokens": 60}}
        messages = engine.stream("日本語 🙂", **options)
        joined = "".join(m.text for m in messages)
        assert joined == engine.generate("日本語 🙂", **options)[0].text
        seen += joined
    assert any(ord(character) > 127 for character in seen)


def test_tokenize_counts_and_shows_tokens_and_offsets(engine: Engine, reference: Any) -> None:
    text = "the naïve 🙂 fox"
    request = pb.BatchedTokenizeRequest(requests=[{"text": text}, {"text": ""}], return_tokens=True,
                                        return_offsets=True)
    full, empty = engine.call("Tokenize", request, pb.BatchedTokenizeResponse).responses
    ids = reference.tokenizer(text).input_ids
    assert full.token_count == len(ids)
    assert list(full.tokens) == reference.tokenizer.convert_ids_to_tokens(ids)
    assert text[full.offsets[0].start : full.offsets[0].end] == "the"
    assert empty.token_count == 0
    request.truncate_input_tokens = 2
    [short, _] = engine.call("Tokenize", request, pb.BatchedTokenizeResponse).responses
    assert (short.token_count, list(short.tokens)) == (2, list(full.tokens)[-2:])
    bare = pb.BatchedTokenizeRequest(requests=[{"text": text}])
    [counted] = engine.call("Tokenize", bare, pb.BatchedTokenizeResponse).responses
    assert (list(counted.tokens), list(counted.offsets)) == ([], [])


def test_an_empty_text_generates_from_the_start_token(engine: Engine) -> None:
    [answer] = engine.generate("")
    assert (answer.input_token_count, answer.generated_token_count) == (1, 20)


def test_health_service_and_reflection_answer(engine: Engine) -> None:
    stub = health_pb2_grpc.HealthStub(engine.channel)
    for service in ("", "fmaas.GenerationService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol="fmaas.GenerationService")
    listed, file = reflection_pb2_grpc.ServerReflectionStub(engine.channel).ServerReflectionInfo(
        iter([request, symbol]), timeout=10)
    names = {service.name for service in listed.list_services_response.service}
    assert {"fmaas.GenerationService", "grpc.health.v1.Health"} <= names
    assert file.file_descriptor_response.file_descriptor_proto


def test_metrics_count_what_happened(engine: Engine) -> None:
    before = engine.metric('tgi_request_count{kind="single"}')
    success = 'tgi_request_success_total{kind="single",stop_reason="MAX_TOKENS"}'
    ended = engine.metric(success)
    engine.generate(PROMPT)
    assert engine.metric('tgi_request_count{kind="single"}') == before + 1
    assert engine.metric('tgi_request_count_total{kind="single"}') == before + 1
    assert engine.metric(success) == ended + 1
    assert engine.get("/nothing")[0] == 404
