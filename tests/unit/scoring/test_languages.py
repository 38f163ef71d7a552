"""Texts in languages that a scorer was not made for are told apart; English is scored, however it is written."""

from __future__ import annotations

import pytest

from llm_detox.recipe.scorers import ScorerSection
from llm_detox.scoring import languages
from llm_detox.scoring.base import EnsembleScorer
from llm_detox.scoring.languages import LanguageCheck, main_languages
from llm_detox.scoring.load import load_scorer
from tests.helpers.scorers import Faulty

pytest.importorskip("py3langid", reason="languages are told apart by the package py3langid")
FOREIGN = {
    "de": "Du bist ein Idiot und verstehst gar nichts.", "es": "Eres un idiota y no entiendes nada.",
    "fr": "Tu es un idiot et tu ne comprends rien.", "ru": "Ты идиот и ничего не понимаешь.",
    "hi": "तुम बेवकूफ हो और कुछ नहीं समझते।"}


@pytest.mark.parametrize("language", FOREIGN)
def test_a_sentence_of_another_language_is_foreign(language: str) -> None:
    assert LanguageCheck(["en"]).foreign(FOREIGN[language]) == language
    assert LanguageCheck(["en", language]).foreign(FOREIGN[language]) is None


@pytest.mark.parametrize("text", [
    "lol greedy ass , but im listenin to music right no", "hes fuckin epic in fifa tho", "True.", "stfu", "41", "",
    "what an idiot", "Clinton lost twice.", "wtf bruh u dumb af smh"])
def test_short_and_misspelt_english_is_no_other_language(text: str) -> None:
    assert LanguageCheck(["en"]).foreign(text) is None


@pytest.mark.parametrize("text", [
    "уоu аrе such а stuрid idiоt mаn", "y o u  a r e  a  s t u p i d  i d i o t",
    "yоu\u200b fu\u00adck\u200bing id\u200biot wоmаn hаhа"])
def test_a_disguise_makes_no_other_language(text: str) -> None:
    assert LanguageCheck(["en"]).foreign(text) is None


def test_without_languages_nothing_is_foreign() -> None:
    assert LanguageCheck([]).foreign(FOREIGN["de"]) is None


def test_without_the_detector_nothing_is_foreign_and_it_is_said_once(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(languages, "find_spec", lambda name: None)
    languages._detector.cache_clear()
    try:
        assert [LanguageCheck(["en"]).foreign(text) for text in FOREIGN.values()] == [None] * 5
        assert capsys.readouterr().err.count("languages are not told apart") == 1
    finally:
        languages._detector.cache_clear()


def test_the_main_languages_of_texts_are_those_of_many_of_them() -> None:
    texts = ["This is a rather long sentence about the weather."] * 60 + [FOREIGN["de"]] * 39 + [FOREIGN["fr"]]
    assert main_languages(texts) == ("en", "de")


def test_an_ensemble_was_made_for_what_all_its_members_were_made_for() -> None:
    one, other, open_to_all = Faulty([]), Faulty([]), Faulty([])
    one.languages, other.languages = ("de", "en"), ("en",)
    assert EnsembleScorer([one, other, open_to_all]).languages == ("en",)
    assert EnsembleScorer([open_to_all, open_to_all]).languages == ()


def test_packaged_scorers_say_their_language() -> None:
    assert load_scorer(ScorerSection(kind="bilstm")).languages == ("en",)
