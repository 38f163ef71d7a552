"""The Perspective adapter against a server of our own: cache, rate, retries, refusals, and the key in no log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from llm_detox.errors import DetoxError
from llm_detox.recipe.scorers import ScorerSection, ScoringSection
from llm_detox.scoring.base import ATTRIBUTES, EnsembleScorer
from llm_detox.scoring.load import load_scorer
from llm_detox.scoring.perspective import PerspectiveScorer
from tests.helpers.scorers import Faulty

KEY = "not-a-real-key"


class Service(BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, dict[str, Any], str | None]]] = []
    status: ClassVar[Callable[[int, str], int]] = staticmethod(lambda number, text: 200)
    delay: ClassVar[float] = 0.0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["comment"]["text"]
        self.asked.append((self.path, body, self.headers.get("X-Goog-Api-Key")))
        time.sleep(self.delay)
        scores = {name.upper(): {"summaryScore": {"value": len(text) / 100}} for name in ATTRIBUTES}
        answer = b"<html>" if text == "garbage" else json.dumps({"attributeScores": scores}).encode()
        with suppress(ConnectionError):  # the client may have given up waiting
            self.send_response(type(self).status(len(self.asked), text))
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("LLM_DETOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    Service.asked, Service.delay = [], 0.0
    Service.status = staticmethod(lambda number, text: 200)
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/v1alpha1/comments:analyze"
        running.shutdown()


def fast(address: str, **options: Any) -> PerspectiveScorer:
    return PerspectiveScorer(address, **{"requests_per_second": 1000, **options})


def test_all_attributes_come_back_and_nothing_is_stored_there(address: str) -> None:
    (scores,) = fast(address).score_attributes(["ten chars."])
    assert scores == dict.fromkeys(ATTRIBUTES, 0.1)
    path, body, key = Service.asked[0]
    assert body["doNotStore"] is True
    assert set(body["requestedAttributes"]) == {name.upper() for name in ATTRIBUTES}
    assert key == KEY
    assert KEY not in path


def test_a_text_is_asked_once_even_by_another_run(address: str) -> None:
    assert fast(address).score(["same text", "other"]) == fast(address).score(["same text", "other"])
    assert len(Service.asked) == 2


def test_requests_keep_their_rate(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr("llm_detox.scoring.perspective.time", clock)
    fast(address, requests_per_second=2).score([f"text {number}" for number in range(4)])
    assert now[0] == pytest.approx(101.5)  # the first at once, the others half a second apart


def test_a_full_service_is_asked_again(address: str) -> None:
    Service.status = staticmethod(lambda number, text: 429 if number == 1 else 200)
    assert fast(address).score(["hello"]) == [0.05]
    assert len(Service.asked) == 2


def test_a_text_that_the_service_refuses_is_unscored_and_not_cached(address: str) -> None:
    Service.status = staticmethod(lambda number, text: 400 if text == "bonjour" else 200)
    scorer = fast(address)
    assert scorer.score(["bonjour", "hello"]) == [None, 0.05]
    assert scorer.score(["bonjour"]) == [None]
    assert len(Service.asked) == 3


def test_a_service_that_times_out_or_talks_nonsense_leaves_texts_unscored(address: str) -> None:
    scorer = fast(address, timeout=0.1)
    assert scorer.score(["garbage", "fine"]) == [None, 0.04]
    Service.delay = 0.5
    assert scorer.score(["hello"]) == [None]
    assert len(scorer.failures) == 2
    assert KEY not in str(scorer.failures)


def test_a_refused_key_ends_the_run(address: str) -> None:
    Service.status = staticmethod(lambda number, text: 403)
    with pytest.raises(DetoxError, match="fails on every batch"):
        fast(address).score([f"text {number}" for number in range(48)])
    assert len(Service.asked) == 3


def test_without_a_key_the_local_scorers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    with pytest.raises(DetoxError, match="needs a key") as caught:
        load_scorer(ScorerSection(kind="perspective"))
    assert "bilstm" in str(caught.value)


# --- ensembles ---------------------------------------------------------------------------------------------------


def test_an_ensemble_is_the_mean_and_unscored_where_a_member_is() -> None:
    first = Faulty([[{"toxicity": 0.2}, {"toxicity": 0.4}, None]], batch_size=8)
    second = Faulty([[{"toxicity": 0.6}, {"toxicity": 0.4}, {"toxicity": 0.1}]], batch_size=8)
    ensemble = EnsembleScorer([first, second])
    assert ensemble.score(["a", "bb", "ccc"]) == [pytest.approx(0.4), pytest.approx(0.4), None]
    assert ensemble.fingerprint != EnsembleScorer([second, first, second]).fingerprint


def test_a_judge_that_shares_a_member_with_the_training_scorer_is_refused() -> None:
    ensemble = {"kind": "ensemble", "members": [{"kind": "bilstm"}, {"kind": "transformers", "source": "a/b"}]}
    ScoringSection.model_validate({"training": {"kind": "ngram"}, "judging": ensemble})
    with pytest.raises(ValidationError, match="must differ"):
        ScoringSection.model_validate({"training": {"kind": "bilstm"}, "judging": ensemble})


@pytest.mark.parametrize("spec", [{"kind": "ensemble"}, {"kind": "ensemble", "members": [{"kind": "bilstm"}]},
                                  {"kind": "bilstm", "members": [{"kind": "ngram"}, {"kind": "bilstm"}]}])
def test_only_ensembles_have_members_and_at_least_two(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="two members or more"):
        ScorerSection.model_validate(spec)
