"""What the engine refuses and what it withstands: bad values, overload, cancelled calls, random bytes."""

from __future__ import annotations

import math
import random
import threading
import time
from typing import Any

import grpc
import pytest

from tests.serving.engine.running import PROMPT, SERVICE, Engine, pb, refused

STOPS = "can specify at most 6 non-empty stop sequences, each not more than 240 UTF8 bytes"


@pytest.mark.parametrize(("params", "words"), [
    ({"method": 1, "sampling": {"temperature": 0.01}}, "temperature must be >= 0.05"),
    ({"method": 1, "sampling": {"temperature": -1.0}}, "temperature must be >= 0.05"),
    ({"method": 1, "sampling": {"temperature": math.nan}}, "temperature must be >= 0.05"),
    ({"method": 1, "sampling": {"top_p": 1.5}}, "top_p must be > 0.0 and <= 1.0"),
    ({"method": 1, "sampling": {"top_p": -0.5}}, "top_p must be > 0.0 and <= 1.0"),
    ({"method": 1, "sampling": {"typical_p": 1.5}}, "typical_p must be <= 1.0"),
    ({"method": 1, "sampling": {"top_k": 2**31}}, "top_k must be strictly positive"),
    ({"stopping": {"max_new_tokens": 201}}, "max_new_tokens must be <= 200"),
    ({"stopping": {"min_new_tokens": 21}}, "min_new_tokens must be <= max_new_tokens"),
    ({"decoding": {"repetition_penalty": -1.0}}, "repetition_penalty must be > 0.0"),
    ({"decoding": {"length_penalty": {"decay_factor": 0.5}}}, "length_penalty must be >= 1.0 and <= 10.0"),
    ({"decoding": {"length_penalty": {"decay_factor": 11.0}}}, "length_penalty must be >= 1.0 and <= 10.0"),
    ({"stopping": {"stop_sequences": list("abcdefg")}}, STOPS),
    ({"stopping": {"stop_sequences": [""]}}, STOPS),
    ({"stopping": {"stop_sequences": ["é" * 121]}}, STOPS),
    ({"response": {"token_logprobs": True}},
     "must request input and/or generated tokens to request extra token detail"),
    ({"response": {"generated_tokens": True, "top_n_tokens": 6}}, "top_n_tokens (6) must be <= 5"),
    ({"decoding": {"regex": "a+"}}, "guided decoding (regex) is not supported by this server"),
])
def test_what_is_out_of_range_is_refused_in_the_words_of_tgis(engine: Engine, params: dict[str, Any],
                                                              words: str) -> None:
    assert refused(lambda: engine.generate(PROMPT, **params)) == words
    assert refused(lambda: engine.stream(PROMPT, **params)) == words


def test_inputs_that_are_too_long_arerefused(engine: Engine) -> None:
    count = engine.generate("a a a")[0].input_token_count
    assert count == 5 or count == 3
    long = "a " * 300
    tokens = engine.call("Tokenize", pb.BatchedTokenizeRequest(requests=[{"text": long}]),
                         pb.BatchedTokenizeResponse).responses[0].token_count
    assert refused(lambda: engine.generate(long)) == (
        f"input tokens ({tokens}) plus prefix length (0) must be < 256")
    stopping = {"min_new_tokens": 150, "max_new_tokens": 150}
    assert refused(lambda: engine.generate(long, truncate_input_tokens=200, stopping=stopping)) == (
        "input tokens (200) plus prefix length (0) plus min_new_tokens (150) must be <= 256")


def test_prefixes_and_adapters_arerefused(engine: Engine) -> None:
    request = pb.BatchedGenerationRequest(requests=[{"text": PROMPT}], prefix_id="p")
    assert "can't retrieve prompt prefix with id 'p'" in refused(
        lambda: engine.call("Generate", request, pb.BatchedGenerationResponse))
    request = pb.BatchedGenerationRequest(requests=[{"text": PROMPT}], adapter_id="a")
    assert "can't retrieve adapter with id 'a'" in refused(
        lambda: engine.call("Generate", request, pb.BatchedGenerationResponse))


def test_a_stream_without_a_request_isrefused(engine: Engine) -> None:
    call = engine.channel.unary_stream(f"{SERVICE}/GenerateStream", response_deserializer=bytes)
    assert refused(lambda: list(call(b"", timeout=10))) == "missing request"


def test_more_requests_than_allowed_are_refused_and_places_come_back(engine: Engine) -> None:
    busy = [engine.start_stream(PROMPT, stopping={"max_new_tokens": 200, "min_new_tokens": 200}) for _ in range(12)]
    for call in busy:
        next(call)
    assert refused(lambda: engine.generate(PROMPT), grpc.StatusCode.RESOURCE_EXHAUSTED) == "Model is overloaded"
    for call in busy:
        call.cancel()
    assert refused(lambda: engine.generate(*[PROMPT] * 13), grpc.StatusCode.RESOURCE_EXHAUSTED)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert len(engine.generate(*[PROMPT] * 12)) == 12
            break
        except grpc.RpcError:
            time.sleep(0.05)
    else:
        raise AssertionError("cancelled calls did not give their places back")


def test_cancelled_calls_leave_the_batch(engine: Engine) -> None:
    stopping = {"max_new_tokens": 200, "min_new_tokens": 200}
    stream = engine.start_stream(PROMPT, stopping=stopping)
    next(stream)
    stream.cancel()
    request = pb.BatchedGenerationRequest(requests=[{"text": PROMPT}], params={"stopping": stopping})
    unary = engine.channel.unary_unary(f"{SERVICE}/Generate",
                                       request_serializer=pb.BatchedGenerationRequest.SerializeToString)
    with pytest.raises(grpc.RpcError) as caught:
        unary(request, timeout=0.02)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    deadline = time.monotonic() + 10
    engine.generate(PROMPT, stopping={"max_new_tokens": 1})
    while engine.metric("tgi_batch_current_size") > 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.metric("tgi_batch_current_size") == 0


def test_concurrent_requests_get_the_answers_that_they_get_alone(engine: Engine) -> None:
    texts = ["you are", "the quick brown fox", "a fine day", "☕", "thank you for the", "shut", "the lazy dog", "x"]
    alone = {text: engine.generate(text, stopping={"max_new_tokens": 50})[0].text for text in texts}
    found: list[tuple[str, str]] = []

    def ask(text: str) -> None:
        for _ in range(3):
            messages = engine.stream(text, stopping={"max_new_tokens": 50})
            found.append((text, "".join(m.text for m in messages)))

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24
    assert all(text == alone[prompt] for prompt, text in found)


def _extreme(chance: random.Random) -> Any:
    """A request whose fields hold extreme values: its parameters."""
    numbers = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    floats = [0.0, -0.0, 1e-45, 1e38, -1e38, math.inf, -math.inf, math.nan, 0.05, 1.0]
    pick, flags = chance.choice, [True, False]
    return {
        "method": pick([0, 1]), "truncate_input_tokens": pick(numbers),
        "sampling": {"temperature": pick(floats), "top_p": pick(floats), "typical_p": pick(floats),
                     "top_k": pick(numbers), "seed": pick([0, 2**64 - 1])},
        "stopping": {"max_new_tokens": pick([0, 1, 5, 2**32 - 1]), "min_new_tokens": pick([0, 1, 2**32 - 1]),
                     "time_limit_millis": pick(numbers), "stop_sequences": pick([[], ["\0"], ["a"]])},
        "response": {"generated_tokens": pick(flags), "input_tokens": pick(flags), "token_logprobs": pick(flags),
                     "top_n_tokens": pick([0, 5, 2**32 - 1])},
        "decoding": {"repetition_penalty": pick(floats),
                     "length_penalty": {"start_index": pick(numbers), "decay_factor": pick(floats)}},
    }


def _outcome(engine: Engine, name: str, payload: bytes) -> grpc.StatusCode:
    kind = engine.channel.unary_stream if name == "GenerateStream" else engine.channel.unary_unary
    try:
        answer = kind(f"{SERVICE}/{name}")(payload, timeout=20)
        list(answer) if name == "GenerateStream" else None
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _still_serves(engine: Engine) -> None:
    assert engine.process.poll() is None
    assert engine.generate(PROMPT)[0].generated_token_count == 20
    assert engine.get("/health")[0] == 200


def test_extreme_values_are_answered_or_refused(engine: Engine) -> None:
    chance, outcomes = random.Random(7), list[grpc.StatusCode]()
    for number in range(300):
        text, params = "".join(chr(chance.randrange(1, 0xD800)) for _ in range(chance.randint(0, 12))), _extreme(chance)
        if number % 2:
            name, message = "Generate", pb.BatchedGenerationRequest(requests=[{"text": text}], params=params)
        else:
            name, message = "GenerateStream", pb.SingleGenerationRequest(request={"text": text}, params=params)
        outcomes.append(_outcome(engine, name, message.SerializeToString()))
    assert set(outcomes) == {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
    _still_serves(engine)


def test_random_bytes_are_refused(engine: Engine) -> None:
    chance = random.Random(8)
    names = ["Generate", "GenerateStream", "Tokenize", "ModelInfo"]
    outcomes = {_outcome(engine, chance.choice(names), chance.randbytes(chance.randint(1, 60))) for _ in range(200)}
    assert grpc.StatusCode.INTERNAL in outcomes  # bytes that are no message, as in TGIS
    assert outcomes <= {grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OK}
    _still_serves(engine)


def test_messages_larger_than_the_default_limit_arrive(engine: Engine) -> None:
    size = 5 * 2**20
    unknown_field = b"\xba\x3e" + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
    request = pb.BatchedGenerationRequest(requests=[{"text": PROMPT}]).SerializeToString()
    assert _outcome(engine, "Generate", request + unknown_field + b"x" * size) == grpc.StatusCode.OK
    assert _outcome(engine, "Generate", request + b"x" * 17 * 2**20) == grpc.StatusCode.RESOURCE_EXHAUSTED
