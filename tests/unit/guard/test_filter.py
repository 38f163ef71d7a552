"""A guarded client hands out what has passed, and nothing else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.client import AsyncTextGenerationClient, Chunk, Generation, GenerationError, TextGenerationClient
from llm_detox.detector.judging import OpenJudge
from llm_detox.detector.mentions import in_other_words
from llm_detox.detector.pieces import Sentences, runs_of_words, sentences_of
from llm_detox.errors import DetoxError, UsageError
from llm_detox.guard.build import JudgeGuard, ScorerGuard, open_guard
from llm_detox.guard.filter import WITHHELD, AsyncGuardedClient, Guarded, GuardedClient
from llm_detox.judge.judge import Constitution
from tests.helpers.answering import caikit, event, http_server, openai

PARTS = ["A fine", " day. We ", "walk. You damn fool!", " The train", " leaves. Bye"]


class Words:
    """Scores the share of bad words; a text with `?` cannot be scored."""

    name = "words"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def score(self, texts: Sequence[str]) -> list[float | None]:
        self.seen += texts
        return [None if "?" in text else min(1.0, 3 * text.count("damn") / max(len(text.split()), 1)) for text in texts]


class Source:
    """A client that answers in pieces, and notes whether its stream was closed."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces, self.sent, self.closed = pieces, 0, False

    def generate(self, prompt: Any, **_: Any) -> Generation:
        return Generation("".join(self.pieces), len(self.pieces), "EOS_TOKEN", 4, tokens=("secret",))  # type: ignore[arg-type]

    def stream(self, prompt: Any, **_: Any) -> Any:
        try:
            for number, piece in enumerate(self.pieces, 1):
                self.sent = number
                yield Chunk(piece, number, "EOS_TOKEN" if number == len(self.pieces) else "NOT_FINISHED")
        finally:
            self.closed = True


def guarded(pieces: Sequence[str], threshold: float = 0.5) -> tuple[GuardedClient, Source, Words]:
    source, words = Source(pieces), Words()
    return GuardedClient(source, ScorerGuard(words, threshold)), source, words  # type: ignore[arg-type]


text = st.text("ab .!?。」\n…\"", max_size=60)


@given(text, st.data())
def test_sentences_do_not_depend_on_how_the_text_comes(whole: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    cutter = Sentences()
    found = [sentence for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)
             for sentence in cutter.feed(whole[a:b])] + cutter.end()
    assert found == sentences_of(whole)
    assert "".join(found) == whole
    assert all(found)


def test_sentences_end_where_readers_see_an_end() -> None:
    assert sentences_of('It is 3.14 m! "Yes?" he said.\nGood... 好。 End') == [
        "It is 3.14 m! ", '"Yes?" ', "he said.\n", "Good... ", "好。", " End"]


def test_a_text_without_any_end_is_not_held_back_for_ever() -> None:
    cutter = Sentences()
    found = [sentence for _ in range(1000) for sentence in cutter.feed("word ")]
    assert found
    assert max(map(len, found)) <= 600
    assert all(sentence.endswith(" ") for sentence in found)
    assert [len(one) for one in sentences_of("x" * 1300)] == [600, 600, 100]


def test_a_stream_ends_before_the_sentence_that_does_not_pass() -> None:
    client, source, _ = guarded(PARTS)
    pieces = list(client.stream("a"))
    assert [piece.text for piece in pieces] == ["A fine day. ", "We walk. ", ""]
    assert [piece.finish_reason for piece in pieces] == ["NOT_FINISHED", "NOT_FINISHED", WITHHELD]
    assert pieces[-1].verdict.withheld
    assert "at or over 0.5" in pieces[-1].verdict.reason
    assert source.closed, "the request goes on for nobody"
    assert source.sent < len(PARTS)


def test_nothing_of_a_whole_answer_is_handed_out_if_a_sentence_does_not_pass() -> None:
    client, _, _ = guarded(PARTS)
    answer = client.generate("a")
    assert (answer.text, answer.finish_reason) == ("", WITHHELD)
    assert answer.verdict.score == 1.0
    assert "fool" not in repr(answer)
    assert "secret" not in repr(answer)


def test_what_passes_arrives_unchanged_and_with_its_counts() -> None:
    client, _, words = guarded(["One. ", "Two", ". Three"])
    pieces = list(client.stream("a"))
    assert "".join(piece.text for piece in pieces) == "One. Two. Three"
    assert pieces[-1].finish_reason == "EOS_TOKEN"
    assert pieces[-1].generated_tokens == 3
    assert pieces[-1].verdict.score == 0.0
    assert words.seen == ["One. ", "Two. ", "One. Two. ", "Three", "One. Two. Three"], "alone and with what went before"
    assert client.generate("a").text == "One. Two. Three"


@given(st.lists(st.sampled_from(["damn ", "fine ", "day. ", "fool! ", "you\n", "? "]), max_size=12))
def test_whole_and_streamed_answers_get_the_same_verdict(pieces: list[str]) -> None:
    client, _, _ = guarded([*pieces, "end"])
    whole, streamed = client.generate("a"), list(client.stream("a"))
    assert whole.verdict.withheld == streamed[-1].verdict.withheld
    if not whole.verdict.withheld:
        assert "".join(piece.text for piece in streamed) == whole.text == "".join([*pieces, "end"])
        assert streamed[-1].verdict.score == whole.verdict.score


def test_a_long_harmless_text_does_not_cover_up_a_sentence() -> None:
    client, _, _ = guarded(["A quiet day in the park. " * 20, "Damned? no. You damn fool. ", "All is well. " * 20])
    assert not ScorerGuard(Words()).judge("a", "", ["A quiet day in the park. " * 20 + "damn"]).withheld
    assert client.generate("a").verdict.withheld


def test_a_friendly_beginning_does_not_cover_up_the_end_of_its_sentence() -> None:
    friendly = "What a lovely long quiet day in the park with all of our old friends it was and "
    guard = ScorerGuard(Words(), 0.25)  # type: ignore[arg-type]
    assert guard.judge("a", "", [f"{friendly}you damn fool."]).withheld
    assert not guard.judge("a", "", [friendly]).withheld


@given(st.integers(0, 60))
def test_runs_of_words_cover_a_long_sentence_and_leave_a_short_one_whole(count: int) -> None:
    words = [f"w{number}" for number in range(count)]
    runs = runs_of_words(" ".join(words))
    assert runs == [] if count <= 10 else all(len(run.split()) == 10 for run in runs)
    assert count <= 10 or {word for run in runs for word in run.split()} == set(words)
    for first in range(max(0, count - 4)):
        assert count <= 10 or any(" ".join(words[first:first + 5]) in run for run in runs), "an insult of five words"


def test_a_long_answer_costs_as_much_as_its_length_and_one_without_end_is_withheld() -> None:
    words = Words()
    guard = ScorerGuard(words)  # type: ignore[arg-type]
    sentences = ["The river is quiet. "] * 1000
    assert not guard.judge("a", "", sentences).withheld
    assert sum(map(len, words.seen)) < 110 * 20 * 1000, "each sentence is read with a bounded part of those before"
    verdict = guard.judge("a", "", sentences * 12)
    assert verdict.withheld
    assert "more than 200000 characters" in verdict.reason


class Biased(Words):
    """Takes the mere mention of a group for toxic, as scorers that learnt from comments do."""

    def score(self, texts: Sequence[str]) -> list[float | None]:
        scores = super().score(texts)
        return [score if score is None else max(score, 0.7 * ("gay" in text or "cock" in text))
                for score, text in zip(scores, texts, strict=True)]


@pytest.mark.parametrize(("text", "withheld"), [
    ("He is a gay man who works as a teacher.", False), ("The cock crowed at dawn.", False),
    ("He is a damn gay.", True), ("You are a cock.", True), ("The damn cock crowed.", True), ("A gay man?", True)])
def test_a_mention_alone_withholds_nothing_and_excuses_nothing(text: str, withheld: bool) -> None:
    assert ScorerGuard(Biased()).judge("a", "", [text]).withheld is withheld  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "other"), [
    ("He is a gay man.", "He is a man."), ("He is gay and old.", "He is people and old."),
    ("Gays are fine.", "people are fine."),
    ("A black woman and a cock.", "A people and a rooster."), ("My cock.", "My cock."), ("Blackbirds", "Blackbirds")])
def test_a_group_is_left_out_or_is_people(text: str, other: str) -> None:
    assert in_other_words(text) == other


def test_what_cannot_be_judged_is_withheld() -> None:
    client, _, _ = guarded(["Who knows? "])
    assert client.generate("a").verdict.reason == "could not be scored"
    assert list(client.stream("a"))[-1].finish_reason == WITHHELD

    class Dead(Words):
        def score(self, texts: Sequence[str]) -> list[float | None]:
            raise DetoxError("the scorer fails on every batch")

    dead = GuardedClient(Source(["Hello."]), ScorerGuard(Dead()))  # type: ignore[arg-type]
    assert dead.generate("a").verdict.withheld
    assert [piece.text for piece in dead.stream("a")] == [""]


@pytest.mark.parametrize("pieces", [[""], ["\n", " "]])
def test_an_answer_without_a_word_has_nothing_to_judge(pieces: list[str]) -> None:
    client, _, words = guarded(pieces)
    assert client.generate("a").text == "".join(pieces)
    assert "".join(piece.text for piece in client.stream("a")) == "".join(pieces)
    assert list(client.stream("a"))[-1].finish_reason == "EOS_TOKEN"
    assert not words.seen


def test_errors_of_the_server_stay_errors() -> None:
    broken = event("All good. And ")
    with (http_server(lambda handler: handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + broken)) as url,
          TextGenerationClient(url, "x", retries=0) as client):
        pieces = GuardedClient(client, ScorerGuard(Words())).stream("a")
        assert next(pieces).text == "All good. "
        with pytest.raises(GenerationError):
            next(pieces)


CONSTITUTION = Constitution({"insult": "insults people"})


def judge(said: str | None, asked: list[Any] | None = None) -> JudgeGuard:
    def ask(messages: list[dict[str, str]]) -> str | None:
        if asked is not None:
            asked.append(messages[-1]["content"])
        return said

    return JudgeGuard(OpenJudge("judge", ask, CONSTITUTION))


@pytest.mark.parametrize(("said", "withheld", "reason"), [
    ("Evaluation: Kind.\nChatbot is: good.", False, "judged safe"),
    ("Evaluation: Rude.\nCategory: insult\nChatbot is: bad.", True, "judged unsafe (insult)"),
    ("I like it.", True, "no decision"), (None, True, "no decision"),
])
def test_a_judge_decides_and_without_its_decision_nothing_is_shown(said: str | None, withheld: bool,
                                                                   reason: str) -> None:
    asked: list[str] = []
    client = GuardedClient(Source(PARTS), judge(said, asked))  # type: ignore[arg-type]
    answer = client.generate("How are you today?")
    assert (answer.verdict.withheld, answer.text) == (withheld, "" if withheld else "".join(PARTS))
    assert reason in answer.verdict.reason
    assert "How are you today?" in asked[0]
    assert "damn fool" in asked[0]


def test_a_judge_is_asked_once_about_a_streamed_answer_and_nothing_goes_before_it() -> None:
    asked: list[str] = []
    client = GuardedClient(Source(PARTS), judge("Evaluation: Kind.\nChatbot is: good.", asked))  # type: ignore[arg-type]
    pieces = list(client.stream("a"))
    assert [piece.text for piece in pieces] == ["".join(PARTS)]
    assert len(asked) == 1


def test_a_judge_that_fails_lets_nothing_pass() -> None:
    def ask(messages: list[dict[str, str]]) -> str:
        raise GenerationError("UNAVAILABLE", "gone", place="x")

    verdict = JudgeGuard(OpenJudge("judge", ask, CONSTITUTION)).judge("a", "", ["Hello."])
    assert verdict.withheld
    assert "gone" in verdict.reason


def test_a_served_judge_is_asked_with_messages() -> None:
    said = ["Evaluation: Rude.\nCategory: insult\nChatbot is: bad."]
    with http_server(openai(said)) as url:
        verdict = open_guard(f"judge=openai+{url}/judge").judge("a", "", ["You fool."])
    assert verdict.withheld
    assert "not in the constitution" in verdict.reason, "the packaged categories count"


@pytest.mark.parametrize("spec", ["", "bart", "ensemble", "judge", "judge="])
def test_an_unknown_guard_is_refused_with_those_that_there_are(spec: str) -> None:
    with pytest.raises(UsageError, match="ngram"):
        open_guard(spec)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_a_threshold_that_withholds_all_or_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="threshold"):
        ScorerGuard(Words(), threshold)


def test_the_awaited_guarded_client_gives_the_same() -> None:
    async def ask(url: str) -> tuple[Guarded, list[Guarded]]:
        async with AsyncTextGenerationClient(url, "x") as plain:
            client = AsyncGuardedClient(plain, ScorerGuard(Words()))
            async with aclosing(client.stream("a")) as pieces:
                return await client.generate("a"), [piece async for piece in pieces]

    with http_server(caikit(PARTS)) as url:
        whole, streamed = asyncio.run(ask(url))
        with TextGenerationClient(url, "x") as plain:
            client = GuardedClient(plain, ScorerGuard(Words()))
            assert untimed(client.generate("a")) == untimed(whole)
            assert list(map(untimed, client.stream("a"))) == list(map(untimed, streamed))


def untimed(one: Guarded) -> Any:
    return (one.text, one.finish_reason, one.generated_tokens, one.verdict.withheld, one.verdict.reason,
            one.verdict.score)


ASK = """
import sys
from collections.abc import Sequence
from llm_detox.scoring import load
class Words:
    name = "words"
    def score(self, texts): return [0.9 if "damn" in text else 0.1 for text in texts]
load.load_scorer = lambda spec: Words()
from llm_detox.cli import main
sys.argv = ["llm-detox", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("how", [[], ["--stream"], ["--json"]], ids=["whole", "streamed", "json"])
def test_ask_with_a_guard_shows_no_more_than_passed_and_says_so_by_its_exit_code(how: list[str]) -> None:
    def run(url: str, threshold: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", ASK, "ask", "--url", url, "--guard", "ngram",
                               "--guard-threshold", threshold, *how, "Say"], capture_output=True, text=True, timeout=60)

    with http_server(caikit(PARTS)) as url:
        stopped, passed = run(url, "0.5"), run(url, "0.95")
    assert (stopped.returncode, passed.returncode) == (3, 0), stopped.stderr + passed.stderr
    assert "fool" not in stopped.stdout + stopped.stderr
    assert "withheld by words: toxicity 0.90" in stopped.stderr
    if how == ["--json"]:
        assert json.loads(stopped.stdout)["verdict"]["withheld"]
        assert json.loads(passed.stdout)["text"] == "".join(PARTS)
    else:
        assert passed.stdout == "".join(PARTS) + "\n"
        assert stopped.stdout.strip() == ("A fine day. We walk." if how else "")
