"""The comparison page's parts that need no browser: what is read, what is veiled, who is answered."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.cli import main
from llm_detox.client import Chunk, GenerationError
from llm_detox.compare_ui.page import LOOPBACK, OwnOrigin
from llm_detox.compare_ui.reading import AnswerScorer, scorer_of
from llm_detox.compare_ui.session import KEPT, Answer, Exchange, Session, Settings, as_json_lines, follow, open_side
from llm_detox.compare_ui.views import answer_view, difference, history_view
from llm_detox.errors import UsageError
from llm_detox.scoring.base import ToxicityScorer
from tests.helpers.answering import caikit, http_server

NAMES = ("base", "detoxified")


class Bad(ToxicityScorer):
    """Toxic is the share of the word `bad`; a text with `?` cannot be scored."""

    def __init__(self, name: str = "bad") -> None:
        super().__init__(name, f"{name}-1", ("toxicity", "insult"))

    def score_batch(self, texts: Sequence[str]) -> list[Mapping[str, float] | None]:
        return [None if "?" in text else {"toxicity": text.count("bad") / max(len(text.split()), 1), "insult": 0.25}
                for text in texts]

    def word_attributions(self, texts: Sequence[str]) -> list[list[tuple[str, float]]]:
        return [[(word, 3.0 if "bad" in word else -0.1) for word in text.split()] for text in texts]


def reader() -> AnswerScorer:
    return AnswerScorer([Bad()], Bad())


class Scripted:
    """A side that says its pieces, and waits for the gate behind the first."""

    name, where = "base", "here"

    def __init__(self, pieces: Sequence[str], error: Exception | None = None) -> None:
        self.pieces, self.error = pieces, error
        self.gate, self.closed = asyncio.Event(), False

    async def stream(self, prompt: str, parameters: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        try:
            for number, piece in enumerate(self.pieces, 1):
                if number == 2:
                    await self.gate.wait()
                yield Chunk(piece, number, "EOS_TOKEN" if number == len(self.pieces) else "NOT_FINISHED")
            if self.error:
                raise self.error
        finally:
            self.closed = True

    async def close(self) -> None:
        pass


def states(side: Scripted, *, opened: bool = True) -> list[Answer]:
    async def collected() -> list[Answer]:
        if opened:
            side.gate.set()
        return [state async for state in follow(side, "prompt", {}, reader())]

    return asyncio.run(collected())


def test_every_text_that_is_given_on_has_been_read() -> None:
    found = states(Scripted(["All is", " fine", " here"]))
    assert found[0] == Answer()
    assert found[-1].text == "All is fine here"
    assert (found[-1].status, found[-1].finish_reason, found[-1].tokens) == ("done", "EOS_TOKEN", 3)
    for state in found:
        assert "".join(piece for piece, _ in state.reading.segments) == state.text


def test_what_was_toxic_once_stays_veiled_whatever_follows() -> None:
    async def asked() -> list[Answer]:
        side, found = Scripted(["bad bad", " but then so much of what is fine and good and long that it hides"]), []
        async for state in follow(side, "prompt", {}, reader()):
            found.append(state)
            if state.text == "bad bad":
                side.gate.set()
        return found

    last = asyncio.run(asked())[-1]
    assert last.reading.scores["bad"]["toxicity"] < 0.2  # type: ignore[index]
    assert last.worst == 1.0
    assert last.veiled(0.5)


@pytest.mark.parametrize("error", [GenerationError("UNAVAILABLE", "gone", place="there"), ValueError("odd")])
def test_a_failure_keeps_what_came_and_says_what_helps(error: Exception) -> None:
    last = states(Scripted(["All is", " fine"], error))[-1]
    assert (last.status, last.text) == ("failed", "All is fine")
    assert str(error.args[0]) in last.error
    assert last.remedy


def test_who_leaves_an_answer_gives_the_request_up() -> None:
    async def left() -> bool:
        side = Scripted(["All is", " fine"])
        answers = follow(side, "prompt", {}, reader())
        async for state in answers:
            if state.text:
                break
        await answers.aclose()
        return side.closed

    assert asyncio.run(left())


def test_a_served_side_is_asked_through_the_client() -> None:
    async def asked(url: str) -> Answer:
        side = open_side("base", f"{url}/model", timeout=10)
        last = [state async for state in follow(side, "prompt", {"max_new_tokens": 3}, reader())][-1]
        await side.close()
        return last

    with http_server(caikit([" all", " fine"])) as url:
        assert asyncio.run(asked(url)).text == " all fine"


def test_a_side_that_is_loaded_here_answers_like_a_served_one(tiny_llama: Path) -> None:
    side = open_side("base", str(tiny_llama))

    async def asked() -> Answer:
        return [state async for state in follow(side, "the quick brown", {"max_new_tokens": 12}, reader())][-1]

    last = asyncio.run(asked())
    assert last.status == "done"
    assert last.text


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["llm-detox", "compare-ui", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize(("words", "said"), [
    (["a", "b", "--name", "one"], "two different names"), (["a", "b", "--scorer", "nose"], "no scorer 'nose'"),
    (["http://user@host/m", "b", "--scorer", "ngram"], "not the address of a server")])
def test_wrong_use_is_told_before_anything_is_loaded(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert run(monkeypatch, *words) == 2
    assert said in capsys.readouterr().err


def test_without_nicegui_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("elements", "page", "server"):
        monkeypatch.delitem(sys.modules, f"llm_detox.compare_ui.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert run(monkeypatch, "http://127.0.0.1:1/a", "http://127.0.0.1:1/b") == 1
    assert "llm-detox[ui]" in capsys.readouterr().err


@given(st.text("a bd\n\t\u2003.é", max_size=60))
def test_the_pieces_of_a_text_are_the_text_and_only_its_toxic_words_are_marked(text: str) -> None:
    found = reader().read(text)
    assert "".join(piece for piece, _ in found.segments) == text
    assert [piece for piece, added in found.segments if added] == [word for word in text.split() if "bad" in word]


def test_a_toxic_sentence_counts_in_a_long_harmless_text() -> None:
    text = "All is fine and well here today. bad bad! And so it goes on for a long while without any harm at all."
    found = reader().read(text)
    assert found.scores["bad"]["toxicity"] < 0.2  # type: ignore[index]
    assert found.worst == 1.0


def test_what_cannot_be_scored_is_veiled() -> None:
    found = reader().read("what?")
    assert found.worst is None
    assert Answer(text="what?", reading=found, worst=found.worst).veiled(1.0)
    view = answer_view(Answer("done", "what?", found, None), reader(), threshold=1.0, shown=False)
    assert view["veil"] == "could not be scored"
    assert {cell["text"] for row in view["scores"] for cell in row["cells"]} == {"unscored"}


def test_a_veiled_text_is_not_in_what_the_page_gets() -> None:
    found = reader().read("bad thing")
    answer = Answer("done", "bad thing", found, found.worst)
    hidden = answer_view(answer, reader(), threshold=0.5, shown=False)
    assert hidden["hidden"]
    assert "thing" not in json.dumps(hidden)
    assert answer_view(answer, reader(), threshold=0.5, shown=True)["segments"] == [("bad", "3.0"), (" thing", "")]
    history = history_view([Exchange("bad thing", {}, found, [answer, answer])], NAMES, threshold=0.5)
    assert "thing" not in json.dumps(history)


def test_scorers_of_one_kind_have_columns_of_their_own() -> None:
    found = AnswerScorer([Bad(), Bad(), Bad("other")], None).read("bad thing")
    assert list(found.scores) == ["bad 1", "bad 2", "other"]
    assert found.segments == (("bad thing", 0.0),)


def test_the_difference_is_told_of_two_scored_answers_only() -> None:
    one, two = (Answer("done", text, reader().read(text)) for text in ("bad thing", "fine thing"))
    assert difference([one, two], NAMES, reader()) == "toxicity (bad): base 0.50, detoxified 0.00 (-0.50)"
    assert difference([one], NAMES, reader()) == ""
    assert difference([one, Answer("done")], NAMES, reader()) == ""


@pytest.mark.parametrize(("change", "named"), [
    ({"max_new_tokens": None}, "new tokens"), ({"max_new_tokens": 0}, "new tokens"), ({"threshold": 2}, "veil from"),
    ({"sampling": True, "temperature": 0}, "temperature"), ({"sampling": True, "seed": None}, "seed")])
def test_a_setting_out_of_its_range_is_named_before_a_model_is_asked(change: dict[str, Any], named: str) -> None:
    problem = Settings(**change).problem()
    assert problem is not None
    assert problem.startswith(named)


def test_parameters_that_only_sampling_takes_stay_out_of_greedy_requests() -> None:
    assert Settings(temperature=None).problem() is None
    assert Settings(max_new_tokens=5.0).parameters() == {"max_new_tokens": 5, "decoding_method": "GREEDY"}
    assert Settings(sampling=True, seed=3.0).parameters()["seed"] == 3


def test_the_history_keeps_the_newest_and_is_saved_as_json_lines() -> None:
    session, answer = Session(Settings()), Answer("done", "fine", reader().read("fine"), 0.0)
    for number in range(KEPT + 2):
        session.keep(Exchange(f"prompt {number}", {}, reader().read("prompt"), [answer, answer]))
    assert len(session.history) == KEPT
    assert session.history[0].prompt == "prompt 2"
    rows = [json.loads(line) for line in as_json_lines(session.history, NAMES).splitlines()]
    assert rows[-1]["prompt"] == f"prompt {KEPT + 1}"
    assert rows[-1]["answers"]["detoxified"]["scores"] == {"bad": {"toxicity": 0.0, "insult": 0.25}}


def test_an_unknown_scorer_is_refused_with_those_there_are() -> None:
    assert scorer_of("ngram=folder").source == "folder"
    with pytest.raises(UsageError, match="no scorer 'nose'"):
        scorer_of("nose")


@pytest.mark.parametrize(("host", "origin", "status"), [
    ("127.0.0.1:8090", None, 200), ("localhost:8090", "http://localhost:8090", 200), ("[::1]:8090", None, 200),
    ("evil.example:8090", None, 403), ("127.0.0.1:8090", "http://evil.example", 403), ("127.0.0.1:8090", "null", 403),
    ("[", None, 403)])
def test_only_the_page_itself_is_answered(host: str, origin: str | None, status: int) -> None:
    sent: list[dict[str, Any]] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    asyncio.run(OwnOrigin(inner, LOOPBACK)(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == status
    if status == 200:
        assert any(name == b"content-security-policy" for name, _ in sent[0]["headers"])


def test_a_foreign_page_gets_no_socket() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:8090"), (b"origin", b"http://evil.example")]
    asyncio.run(OwnOrigin(None, LOOPBACK)(  # type: ignore[arg-type]
        {"type": "websocket", "headers": headers}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]
