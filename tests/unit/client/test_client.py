"""The client's own behaviour: parsing, repeating, errors. The real servers are in tests/serving."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.client import Chunk, Generation, GenerationError, TextGenerationClient
from llm_detox.client.client import Attempts, check_address
from llm_detox.client.fmaas import messages, to_params
from llm_detox.client.http import events
from llm_detox.client.types import Deadline, Parameters, Server
from llm_detox.errors import UsageError
from tests.helpers.answering import ANSWER, event, http_server, reply, silent_server

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.lists(texts, max_size=4), st.data())
def test_events_do_not_depend_on_where_the_bytes_are_cut(parts: list[str], data: st.DataObject) -> None:
    stream = b"".join(event(text) for text in parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [json.loads(found)["generated_text"] for _, found in events(pieces)] == parts


def test_line_separators_of_unicode_do_not_end_an_event() -> None:
    assert [json.loads(data)["generated_text"] for _, data in events([event("a\u2028b\x85c\x0bd")])] == [
        "a\u2028b\x85c\x0bd"]


@pytest.mark.parametrize(("status", "body", "code", "said"), [
    (404, b'{"details": "Model \'x\' not loaded", "code": 404, "id": "1"}', "NOT_FOUND", "not loaded"),
    (422, b'{"detail": [{"msg": "bad type"}]}', "INVALID_ARGUMENT", "bad type"),
    (501, b'{"details": "connection refused", "code": 501}', "UNAVAILABLE", "refused"),
    (413, b"", "INVALID_ARGUMENT", "HTTP 413"), (401, b"no", "UNAUTHENTICATED", "HTTP 401"),
    (500, b"<html>", "INTERNAL", "HTTP 500"),
])
def test_answers_that_are_none_become_errors_with_a_code(status: int, body: bytes, code: str, said: str) -> None:
    with (http_server(lambda handler: reply(handler, status, body)) as url,
          TextGenerationClient(url, "x", retries=0) as client):
        for call in (lambda: client.generate("a"), lambda: list(client.stream("a"))):
            with pytest.raises(GenerationError, match=said) as caught:
                call()
            assert caught.value.code == code
            assert caught.value.remedy
            assert url in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"generated_text": null}'])
def test_another_kind_of_server_is_noticed(body: bytes) -> None:
    with (http_server(lambda handler: reply(handler, 200, body)) as url,
          TextGenerationClient(url, "x") as client, pytest.raises(GenerationError, match="is this a Caikit server")):
        client.generate("a")


def test_an_error_event_and_a_stream_that_breaks_off_are_errors() -> None:
    failed = b'event: error\r\ndata: {"details": "engine gone", "code": 501}\r\n\r\n'
    for tail, code in ((failed, "UNAVAILABLE"), (b"", "UNAVAILABLE")):
        body = event("one") + tail
        with (http_server(lambda handler, body=body: reply(handler, 200, body, "text/event-stream")) as url,
              TextGenerationClient(url, "x") as client):
            chunks = client.stream("a")
            assert next(chunks).text == "one"
            with pytest.raises(GenerationError) as caught:
                next(chunks)
            assert caught.value.code == code


def test_a_call_is_repeated_while_the_server_is_full_and_then_answers() -> None:
    seen: list[int] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(1)
        reply(handler, 503 if len(seen) < 3 else 200, json.dumps(ANSWER).encode())

    with http_server(answer) as url, TextGenerationClient(url, "x", retries=2) as client:
        assert client.generate("a") == Generation(" fine", 1, "EOS_TOKEN", 2)
    assert len(seen) == 3


def test_a_call_is_repeated_no_earlier_than_the_server_wants() -> None:
    seen: list[float] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(time.monotonic())
        wait = {"retry_after": "1.5"} if len(seen) == 1 else {}
        reply(handler, 429 if len(seen) == 1 else 200, json.dumps(ANSWER).encode(), **wait)

    with http_server(answer) as url, TextGenerationClient(url, "x") as client:
        client.generate("a")
    assert seen[1] - seen[0] >= 1.5
    seen.clear()
    with (http_server(answer) as url, TextGenerationClient(url, "x", timeout=1) as client,
          pytest.raises(GenerationError) as caught):
        client.generate("a")
    assert caught.value.code == "RESOURCE_EXHAUSTED", "waiting longer than the deadline is in vain"
    assert len(seen) == 1


def test_repetitions_of_many_clients_are_not_in_step() -> None:
    full = GenerationError("RESOURCE_EXHAUSTED", "full", place="x")
    pauses = [Attempts(1, Deadline(60)).pause(full) for _ in range(200)]
    assert max(pauses) > 2 * min(pauses)
    longer = Attempts(9, Deadline(600))
    means = [longer.pause(full) for _ in range(9)]
    assert means[4] > means[0]
    assert max(means) < 10


def test_an_answer_that_dribbles_costs_no_more_than_the_deadline() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    with http_server(answer) as url, TextGenerationClient(url, "x", timeout=0.5) as client:
        for call in (lambda: client.generate("a"), lambda: list(client.stream("a"))):
            started = time.monotonic()
            with pytest.raises(GenerationError) as caught:
                call()
            assert caught.value.code == "DEADLINE_EXCEEDED"
            assert time.monotonic() - started < 2


def test_a_request_costs_the_client_under_three_milliseconds_of_processor_time() -> None:
    with (http_server(lambda handler: reply(handler, 200, json.dumps(ANSWER).encode())) as url,
          TextGenerationClient(url, "x") as client):
        client.generate("a")
        spent = []
        for _ in range(100):
            started = time.thread_time()
            client.generate("a" * 500, max_new_tokens=24, decoding_method="GREEDY")
            spent.append(time.thread_time() - started)
    assert sorted(spent)[50] < 0.003


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "grpc://127.0.0.1:9", "fmaas://127.0.0.1:9"])
def test_a_conversation_is_refused_where_the_protocol_has_none(url: str) -> None:
    with TextGenerationClient(url, "x") as client:
        for call in (client.generate, client.stream):
            with pytest.raises(UsageError, match="takes a text"):
                call([{"role": "user", "content": "hello"}])


def test_what_cannot_succeed_is_not_repeated() -> None:
    seen: list[int] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(1)
        reply(handler, 400, b"{}")

    with (http_server(answer) as url, TextGenerationClient(url, "x", retries=5) as client,
          pytest.raises(GenerationError)):
        client.generate("a")
    assert len(seen) == 1


def test_a_stream_that_has_begun_is_not_begun_again() -> None:
    seen: list[int] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(1)
        reply(handler, 200, event("one"), "text/event-stream")

    with (http_server(answer) as url, TextGenerationClient(url, "x", retries=5) as client,
          pytest.raises(GenerationError)):
        list(client.stream("a"))
    assert len(seen) == 1


@pytest.mark.parametrize("scheme", ["http", "grpc", "fmaas", "openai+http"])
def test_a_silent_server_costs_no_more_than_the_deadline(scheme: str) -> None:
    with silent_server() as address, TextGenerationClient(f"{scheme}://{address}", "x", timeout=0.5) as client:
        for call in (lambda: client.generate("a"), lambda: list(client.stream("a"))):
            started = time.monotonic()
            with pytest.raises(GenerationError) as caught:
                call()
            assert caught.value.code in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
            assert time.monotonic() - started < 3


@pytest.mark.parametrize("scheme", ["http", "grpc", "fmaas", "openai+http"])
def test_a_server_that_is_not_there_is_named(scheme: str) -> None:
    with (TextGenerationClient(f"{scheme}://127.0.0.1:9", "x", retries=1) as client,
          pytest.raises(GenerationError, match=f"{re.escape(scheme)}://127.0.0.1:9") as caught):
        client.generate("a")
    assert caught.value.code == "UNAVAILABLE"


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://host", "http://", "http://user:secret@host"])
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"address|protocol"):
        TextGenerationClient(url, "x")


def test_an_unknown_parameter_is_refused_before_anything_is_sent() -> None:
    with TextGenerationClient("http://127.0.0.1:9", "x") as client:
        with pytest.raises(UsageError, match="'max_tokens'"):
            client.generate("a", max_tokens=3)
        with pytest.raises(UsageError, match="'max_tokens'"):
            client.stream("a", max_tokens=3)


def test_the_token_is_sent_and_never_shown() -> None:
    seen: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["authorization"])
        reply(handler, 403, b"{}")

    with http_server(answer) as url, TextGenerationClient(url, "x", token="sesame") as client:
        with pytest.raises(GenerationError) as caught:
            client.generate("a")
        assert "sesame" not in f"{client!r} {client.server!r} {caught.value}"
    assert seen == ["Bearer sesame"]


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("x")
    with pytest.raises(UsageError, match="needs its key"):
        TextGenerationClient("https://host", "x", cert_file=tmp_path / "cert.pem")
    with pytest.raises(UsageError, match="no such file"):
        TextGenerationClient("https://host", "x", ca_file=tmp_path / "absent.pem")


def test_fmaas_messages_are_those_of_the_shipped_contract() -> None:
    proto = pytest.importorskip("serving.engine.proto")
    theirs = proto.descriptors()
    for name, kind in vars(messages()).items():
        full = f"fmaas.{'DecodingParameters.' if name == 'LengthPenalty' else ''}{name}"
        fields = theirs.FindMessageTypeByName(full).fields_by_name
        for field in kind.DESCRIPTOR.fields:
            twin = fields[field.name]
            assert (field.number, field.type, field.is_repeated, field.has_presence) == (
                twin.number, twin.type, twin.is_repeated, twin.has_presence), f"{name}.{field.name}"


def test_parameters_are_written_as_fmaas_names_them() -> None:
    params = to_params(Parameters(
        max_new_tokens=7, decoding_method="SAMPLING", temperature=0.5, seed=0, stop_sequences=["a", "b"], max_time=1.5,
        exponential_decay_length_penalty=(3, 1.25), preserve_input_text=True, include_stop_sequence=False))
    assert params.method == 1
    assert params.stopping.max_new_tokens == 7
    assert params.stopping.time_limit_millis == 1500
    assert list(params.stopping.stop_sequences) == ["a", "b"]
    assert params.stopping.HasField("include_stop_sequence")
    assert params.sampling.HasField("seed")
    assert params.decoding.length_penalty.decay_factor == 1.25
    assert params.response.input_text
    assert not to_params(Parameters()).sampling.HasField("seed")


def test_the_client_starts_without_torch_transformers_or_boto() -> None:
    code = ("import sys\nfrom llm_detox.client import TextGenerationClient as C\n"
            "import llm_detox.bench.load, llm_detox.guard.terminal_chat, llm_detox.guard.build\n"
            "for u in ('http://h', 'grpc://h', 'fmaas://h', 'openai+http://h'): C(u, 'x').close()\n"
            "llm_detox.guard.build.open_guard('judge=openai+http://h/judge')\n"
            "print({'torch', 'transformers', 'boto3', 'numpy', 'kfp'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_chunks_and_generations_are_plain_values() -> None:
    assert Chunk("a", 1, "NOT_FINISHED") == Chunk("a", 1, "NOT_FINISHED")
    assert Generation("a", 1, "MAX_TOKENS", 1) != Generation("b", 1, "MAX_TOKENS", 1)


def test_an_address_without_a_scheme_is_refused_with_the_likely_one() -> None:
    with pytest.raises(UsageError) as caught:
        check_address(Server("127.0.0.1:8080"))
    assert "http://127.0.0.1:8080" in (caught.value.remedy or "")
