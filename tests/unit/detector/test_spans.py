"""Spans point at the words: code points, the smallest part that reaches the threshold; nothing unjudged passes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_detox.detector.base import UNSCORED, Detection
from llm_detox.detector.build import open_detector
from llm_detox.detector.judging import JudgeDetector, OpenJudge
from llm_detox.detector.pieces import Place, blocks, run_places, runs_of_words, sentence_places
from llm_detox.detector.scorer_detector import ScorerDetector
from llm_detox.errors import UsageError
from llm_detox.judge.judge import Constitution
from llm_detox.scoring.base import Scores
from tests.helpers.detecting import BadWords

TOXICITY = {"toxicity": 0.5}
FRIENDLY = "What a lovely long quiet day in the park with all of our old friends it was"
# Letters that are several code points, or several UTF-16 units, or written from right to left.
WORDS = ["damn", "fool", "tea", "😀", "👩\u200d👧", "e\u0301te\u0301", "נעים", "é", "好。", "Yes.",
         "No!\n", "\u200d", "Who?", " "]
texts = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join) | st.text(max_size=80)


def detect(contents: Sequence[str], thresholds: dict[str, float] = TOXICITY) -> list[list[Detection]]:
    return ScorerDetector(BadWords()).detect(contents, thresholds)


@settings(max_examples=150)
@given(st.lists(texts, max_size=4))
def test_a_span_is_the_text_between_its_offsets_in_code_points(contents: list[str]) -> None:
    for content, found in zip(contents, detect(contents, {"toxicity": 0.5, "insult": 0.3}), strict=True):
        for one in found:
            assert one.text == content[one.start:one.end] == one.text.strip() != ""
            assert 0 <= one.score <= 1
        for name in ("toxicity", "insult", UNSCORED):
            places = [(one.start, one.end) for one in found if one.detection == name]
            assert places == sorted(places)
            assert all(end <= start for (_, end), (start, _) in pairwise(places))


@settings(max_examples=150)
@given(texts)
def test_blocks_and_sentences_hold_every_word_once(text: str) -> None:
    whole = Place(0, len(text))
    sentences = sentence_places(text, whole)
    assert [one for block in blocks(text) for one in block] == sentences
    for places in ([Place(block[0].start, block[-1].end) for block in blocks(text)], sentences):
        assert "".join("".join(text[one.start:one.end].split()) for one in places) == "".join(text.split())
    assert runs_of_words(text) == [" ".join(text[one.start:one.end].split()) for one in run_places(text, whole)]


def test_the_sentence_that_is_toxic_is_the_span() -> None:
    [found] = detect(["The 😀 day is fine. You damn fool! All right."])
    assert [(one.start, one.end, one.text) for one in found] == [(19, 33, "You damn fool!")]
    assert (found[0].detection, found[0].detection_type) == ("toxicity", "toxicity")


def test_of_a_long_sentence_the_words_around_the_insult_are_the_span() -> None:
    content = f"{FRIENDLY} and you damn damn fool are gone and {FRIENDLY}."
    [[one]] = detect([content], {"toxicity": 0.5})
    assert "you damn damn fool" in one.text
    assert len(one.text.split()) <= 20


def test_no_surrounding_that_is_not_clearly_harmless_covers_up_an_insult() -> None:
    """A block of a hundred words with one insult is under the threshold."""
    sentence = f"{FRIENDLY}. "
    [found] = detect([sentence * 5 + "You damn fool. " + sentence])
    assert [one.text for one in found] == ["You damn fool."]


def test_a_sentence_that_is_short_or_clearly_harmless_is_scored_once() -> None:
    scorer = BadWords()
    contents = ["The river is quiet. The boat is old.", f"{FRIENDLY}.", "Damn, all is well."]
    ScorerDetector(scorer).detect(contents, TOXICITY)
    assert len(scorer.seen) == 5, "a block of two sentences, and three sentences that are blocks"


def test_what_is_toxic_only_as_a_whole_is_one_span() -> None:
    class Together(BadWords):
        def score_batch(self, texts: Sequence[str]) -> list[Scores | None]:
            return [{"toxicity": 0.9 * ("Go" in text and "home" in text), "insult": 0.0} for text in texts]

    [[one]] = ScorerDetector(Together()).detect(["  Go there. It is your home. "], TOXICITY)
    assert one.text == "Go there. It is your home."


def test_the_strongest_span_has_the_score_of_its_block() -> None:
    class More(BadWords):
        def score_batch(self, texts: Sequence[str]) -> list[Scores | None]:
            return [{"toxicity": {2: 0.95, 1: 0.6 + 0.1 * ("you" in text)}.get(text.count("damn"), 0.2), "insult": 0.0}
                    for text in texts]

    [found] = ScorerDetector(More()).detect(["So damn odd. Well damn you. The end."], TOXICITY)
    assert [(one.text, one.score) for one in found] == [("So damn odd.", 0.6), ("Well damn you.", 0.95)]


def test_each_attribute_has_a_threshold_of_its_own() -> None:
    found = detect(["You fool."], {"toxicity": 0.5, "insult": 0.9}) + detect(["You damn fool."], {"insult": 0.9})
    assert [[one.detection for one in detections] for detections in found] == [["insult"], ["insult"]]


def test_what_cannot_be_scored_is_a_detection_and_nothing_to_see_is_none() -> None:
    unscored, empty, blank, invisible = detect(["Who? ", "", " \n", "\u200b"])
    assert [(one.text, one.detection, one.score) for one in unscored] == [("Who?", UNSCORED, 1.0)]
    assert empty == blank == []
    assert [one.detection for one in invisible] == [UNSCORED], "something is there that nobody has judged"


def test_a_mere_mention_is_no_detection() -> None:
    class Biased(BadWords):
        def score_batch(self, texts: Sequence[str]) -> list[Scores | None]:
            return [{"toxicity": max(0.7 * ("gay" in text), 0.9 * ("damn" in text)), "insult": 0.0} for text in texts]

    fine, rude = ScorerDetector(Biased()).detect(["He is a gay man who works.", "He is a damn gay."], TOXICITY)
    assert fine == []
    assert [one.text for one in rude] == ["He is a damn gay."]


def judge(said: str | None) -> JudgeDetector:
    asked: list[Any] = []

    def ask(messages: list[dict[str, str]]) -> str | None:
        asked.append(messages)
        return said

    return JudgeDetector(OpenJudge("judge", ask, Constitution({"insult": "insults people"})))


@pytest.mark.parametrize(("said", "detection"), [
    ("Evaluation: Kind.\nChatbot is: good.", None), ("Evaluation: Rude.\nCategory: insult\nChatbot is: bad.", "insult"),
    ("Evaluation: Rude.\nChatbot is: bad.", "unsafe"), ("I like it.", UNSCORED), (None, UNSCORED)])
def test_a_judge_finds_whole_contents_and_without_its_decision_there_is_a_detection(
        said: str | None, detection: str | None) -> None:
    detector = judge(said)
    content, empty = detector.detect([" 😀 You fool. ", " "], detector.default)
    assert empty == []
    assert [(one.detection, one.text, one.score) for one in content] == (
        [(detection, "😀 You fool.", 1.0)] if detection else [])


@pytest.mark.parametrize("spec", ["bart", "ensemble", "judge", "judge="])
def test_an_unknown_detector_is_refused_with_those_that_there_are(spec: str) -> None:
    with pytest.raises(UsageError, match="ngram"):
        open_detector(spec)


@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_a_threshold_that_finds_all_or_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="threshold"):
        open_detector("ngram", threshold)
