"""The detector API on the wire: requests, errors in its form, limits, TLS, metrics, rewrites."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_detox.detector import service
from llm_detox.detector.base import Detection, Offer
from llm_detox.detector.limits import MOST_BYTES
from llm_detox.detector.messages import LONGEST_CONTENT, MOST_CONTENTS
from llm_detox.detector.scorer_detector import ScorerDetector
from llm_detox.detector.server import AppServer, Tls, tls_of
from llm_detox.errors import DetoxError, UsageError
from tests.helpers.certificates import make_certificates
from tests.helpers.detecting import CONTENTS, BadWords, asked, serving


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


def test_a_batch_has_a_list_of_spans_for_each_content(url: str) -> None:
    status, answer = asked(url, {"contents": ["A fine day.", "😀 You damn fool!"], "detector_params": {}})
    assert status == 200
    assert answer == [[], [{"start": 0, "end": 16, "text": "😀 You damn fool!", "detection": "toxicity",
                            "detection_type": "toxicity", "score": 1.0}]]
    assert asked(url, {"contents": []}) == (200, [])


@pytest.mark.parametrize(("params", "names"), [
    (None, ["toxicity"]), ({"threshold": 0.8}, []), ({"threshold": 0.6}, ["toxicity"]),
    ({"thresholds": {"insult": 0.5}}, ["toxicity", "insult"]), ({"thresholds": {"toxicity": 1}}, [])])
def test_thresholds_decide(url: str, params: Any, names: list[str]) -> None:
    _, [found] = asked(url, {"contents": ["You are a damn fool!"], "detector_params": params})
    assert [one["detection"] for one in found] == names


@pytest.mark.parametrize(("body", "status", "message"), [
    ({"contents": "damn"}, 422, "contents"), ({"contents": [3]}, 422, "contents.0"), ({}, 422, "contents"),
    ([], 422, ""), (b"no json", 422, "JSON"), (b'{"contents": ["\\ud800"]}', 422, "unicode"),
    (b"[" * 99_999, 400, "body"),
    ({"contents": ["a"], "detector_params": {"treshold": 0.5}}, 422, "is threshold meant?"),
    ({"contents": ["a"], "detector_params": {"threshold": 0}}, 422, "threshold"),
    ({"contents": ["a"], "detector_params": {"threshold": "0.5"}}, 422, "threshold"),
    (b'{"contents": ["a"], "detector_params": {"threshold": NaN}}', 422, "threshold"),
    ({"contents": ["a"], "detector_params": {"thresholds": {"love": 0.5}}}, 422, "toxicity, insult"),
    ({"contents": ["a"], "detector_params": {"rewrite": True}}, 422, "--rewrite"),
    ({"contents": ["a"] * (MOST_CONTENTS + 1)}, 422, "contents"),
    ({"contents": ["damn" * (LONGEST_CONTENT // 4) + "d"]}, 422, "contents.0"),
    (b" " * (MOST_BYTES + 1), 413, "bytes"),
])
def test_what_is_no_request_is_an_error_of_the_api_without_the_text(
        url: str, body: Any, status: int, message: str) -> None:
    code, answer = asked(url, body)
    assert (code, answer["code"]) == (status, status)
    assert message in answer["message"]
    assert "damn" not in answer["message"]
    assert set(answer) == {"code", "message"}


def test_an_unknown_detector_or_none_is_said(url: str) -> None:
    assert asked(url, {"contents": []}, "other") == (
        404, {"code": 404, "message": "there is no such detector; there are: toxicity"})
    assert asked(url, {"contents": []}, None)[0] == 422
    assert asked(url, {}, path="/api/v1/text/chat") == (404, {"code": 404, "message": "Not Found"})


def test_a_body_without_a_length_is_read_no_further_than_the_limit(url: str) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30) as connection:
        connection.sendall(f"POST {CONTENTS} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
        for _ in range(MOST_BYTES // 2**16 + 1):
            connection.sendall(chunk)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(99).startswith(b"HTTP/1.1 413 ")


def test_health_says_ready_in_the_orchestrators_word(url: str) -> None:
    with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
        assert json.load(answer) == {"health_status": "READY"}


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return {name: float(value) for name, value in re.findall(r"^(\w\S*) (\S+)$", answer.read().decode(), re.M)}


def test_metrics_count_what_was_asked_and_found_and_carry_no_words_of_clients() -> None:
    with serving() as url:
        asked(url, {"contents": ["Fine.", "You damn fool. You damn ass."]})
        asked(url, {"contents": []}, "secret-words")
        counted = metrics(url)
    prefix = "llm_detox_detector"
    assert counted[f'{prefix}_contents_total{{detector="toxicity"}}'] == 2
    assert counted[f'{prefix}_flagged_contents_total{{detector="toxicity"}}'] == 1
    assert counted[f'{prefix}_detections_total{{detection="toxicity",detector="toxicity"}}'] == 2
    assert counted[f'{prefix}_requests_total{{code="404"}}'] == 1
    assert not any("secret" in name for name in counted)


class Broken(BadWords):
    def score_attributes(self, texts: Sequence[str]) -> Any:
        raise DetoxError("no weights") if "a" in texts else RuntimeError("damn")


def test_a_failure_is_no_clean_answer_and_tells_no_text() -> None:
    with serving({"toxicity": ScorerDetector(Broken())}) as url:
        assert asked(url, {"contents": ["a"]}) == (500, {"code": 500, "message": "the detector failed: no weights"})
        assert asked(url, {"contents": ["b"]}) == (500, {"code": 500, "message": "the detector failed: RuntimeError"})


class Slow:
    """Works until it is let go."""

    name, default, detections = "slow", {"toxicity": 0.5}, ("toxicity",)

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def detect(self, contents: Sequence[str], thresholds: Mapping[str, float]) -> list[list[Detection]]:
        self.may_end.wait(30)
        return [[] for _ in contents]


def test_when_too_many_wait_for_one_detector_the_next_is_told_and_others_answer(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LONGEST_QUEUE", 2)
    slow = Slow()
    with serving({"slow": slow, "toxicity": ScorerDetector(BadWords())}) as url:
        waiting = [threading.Thread(target=asked, args=(url, {"contents": ["a"]}, "slow")) for _ in range(2)]
        for thread in waiting:
            thread.start()
        until = time.monotonic() + 20
        while metrics(url).get('llm_detox_detector_waiting{detector="slow"}') != 2 and time.monotonic() < until:
            time.sleep(0.05)
        status, answer = asked(url, {"contents": ["a"]}, "slow")
        assert asked(url, {"contents": ["a"]})[0] == 200
        slow.may_end.set()
        for thread in waiting:
            thread.join(30)
    assert (status, answer["code"]) == (503, 503)


class Polite:
    """Rewrites every insult but one."""

    def offers(self, texts: Sequence[str]) -> list[Offer]:
        return [Offer(None, None, "no rewrite was accepted") if "worst" in text else
                Offer(text.replace("damn ", "") if "two" not in text else text, "delete", "accepted") for text in texts]


def test_a_rewrite_comes_with_its_span_and_is_looked_at_by_the_detector() -> None:
    content = "Fine. You damn fool. The damn worst. So damn two. Who?"
    with serving(rewriting=Polite()) as url:
        _, [found] = asked(url, {"contents": [content.replace(" Who?", "")], "detector_params": {"rewrite": True}})
        _, [plain] = asked(url, {"contents": ["You damn fool."], "detector_params": {"rewrite": False}})
        _, [unscored] = asked(url, {"contents": ["Who?"], "detector_params": {"rewrite": True}})
    assert [one["metadata"] for one in found] == [
        {"rewrite": "You fool.", "method": "delete", "reason": "accepted"},
        {"rewrite": None, "method": None, "reason": "no rewrite was accepted"},
        {"rewrite": None, "method": None, "reason": "the detector finds something in the rewrite, too"}]
    assert "metadata" not in plain[0]
    assert unscored[0]["metadata"]["reason"] == "could not be scored"


def test_a_client_that_is_slow_to_talk_loses_its_connection_and_keeps_nobody_waiting() -> None:
    with serving(client_seconds=1) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        silent = [socket.create_connection(address, 20) for _ in range(300)]
        silent[-1].sendall(b"POST ")
        assert asked(url, {"contents": ["a"]}) == (200, [[]])
        started = time.monotonic()
        for connection in silent:
            try:
                assert connection.recv(1) == b""
            except ConnectionResetError:
                continue
            finally:
                connection.close()
        assert time.monotonic() - started < 10


def test_a_head_without_an_end_is_not_kept() -> None:
    with serving() as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nx-long: ")
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            for _ in range(200):
                connection.sendall(b"a" * 2**14)
                time.sleep(0.001)


def test_with_tls_a_client_without_a_certificate_of_the_authority_is_refused(tmp_path: Path) -> None:
    c = make_certificates(tmp_path)
    with serving(tls=Tls(c.server, c.server_key, c.ca)) as url:
        context = ssl.create_default_context(cafile=str(c.ca))
        with pytest.raises((OSError, urllib.error.URLError)):
            urllib.request.urlopen(f"{url}/health", timeout=10, context=context).read()
        context.load_cert_chain(c.client, c.client_key)
        assert urllib.request.urlopen(f"{url}/health", timeout=10, context=context).status == 200


def test_what_cannot_be_served_is_one_clear_error(tmp_path: Path) -> None:
    app = service.detector_app({})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DetoxError, match="cannot listen"):
            AppServer(app, "127.0.0.1", taken.getsockname()[1])
    with pytest.raises(DetoxError, match="TLS files"):
        AppServer(app, "127.0.0.1", 0, Tls(tmp_path / "none", tmp_path / "none"))
    for files in ((tmp_path, None, None), (None, tmp_path, None), (None, None, tmp_path)):
        with pytest.raises(UsageError, match="certificate and its key"):
            tls_of(*files)
