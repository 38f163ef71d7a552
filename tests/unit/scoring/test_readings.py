"""A text is scored as people read it, whatever its characters are; ordinary text as it is written."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.campaigns.guard_evasion import HARMLESS, WAYS, insults
from llm_detox.rephrase.acceptance import Acceptance, Bounds
from llm_detox.scoring.base import MAX_CHARS, EnsembleScorer, ToxicityScorer
from llm_detox.scoring.lookalikes import plain
from llm_detox.scoring.readings import VERSION, readings, undisguised

INSULT = "You are a stupid idiot."


class Words(ToxicityScorer):
    """1 for a text with the word, else 0; a text with `?!` cannot be scored. Keeps what it is given."""

    def __init__(self, word: str = "idiot") -> None:
        super().__init__("words", "words", ("toxicity",))
        self.word, self.seen = word, list[str]()

    def score_batch(self, texts: Sequence[str]) -> list[Mapping[str, float] | None]:
        self.seen += texts
        return [None if "?!" in text else {"toxicity": float(self.word in re.findall("[a-z]+", text.lower()))}
                for text in texts]


@pytest.mark.parametrize("text", [
    "You are an i d i o t.", "Y o u   a r e   a n   i d i o t", "y o u a r e a n i d i o t", "You i.d.i.o.t",
    "i-d-i-o-t", "i_d_i_o_t", "You 1d10t", "you !d!ot", "y0u 4r3 4n 1d10t", "an id.iot", "an id*ot", "іdіоt",
    "an ιdιοτ", "i\u200bd\u200bi\u200bo\u200bt", "i\u200dd\u200di\u200do\u200dt", "i\u00add\u00adiot",
    "i\ufeffdiot", "id\u2060iot", "ｉｄｉｏｔ", "𝐢𝐝𝐢𝐨𝐭", "𝖎𝖉𝖎𝖔𝖙", "ⓘⓓⓘⓞⓣ", "🅸🅳🅸🅾🆃", "🇮 🇩 🇮 🇴 🇹", "ɪᴅɪᴏᴛ", "ᴵᴰᴵᴼᵀ",
    "i\u0335d\u0336i\u0337o\u0338t", "i\u0300\u0301\u0302diot", "i\u20ddd\u20ddiot", "ídíöt", "ɨđɨøŧ",
    "\u202etoidi\u202c", "you \u202etoidi na era", "i\u200ed\u202aiot", "i\u034fd\u2062iot", "i\U000e0064diot",
    "id\ufe0fiot", "youareanidiot", "You'reanidiot", "Goaway,idiot", "you iiiidiiiiooooot", "idiooot", "iddddiot",
    "idiot😀", "you😀idiot", "“idiot”", "idiot—", "you\u00a0idiot", "you\u3000idiot", "you\u2800idiot", "id\x00iot",
    "id\x1biot", "you\ridiot"])
def test_what_people_read_is_scored(text: str) -> None:
    assert Words().score([text]) == [1.0], readings(text)


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("behind")])
def test_every_disguise_is_seen_through(way: str) -> None:
    chosen, rng = insults(25, 3), random.Random(3)
    read = [{word.strip(".,!") for one in readings(WAYS[way](text, rng)) for word in one.lower().split()}
            for text in chosen]
    insulting = [text.lower().strip(".!").replace(",", "").split() for text in chosen]
    seen = sum(any(len(word) > 3 and word in words for word in text)
               for text, words in zip(insulting, read, strict=True))
    assert seen >= 24


def test_ordinary_text_is_given_to_the_scorer_as_it_is_and_once() -> None:
    ordinary = [text for text in HARMLESS.read_text("utf-8").splitlines() if text.isascii()]
    assert len(ordinary) > 150
    scorer = Words()
    scorer.score(ordinary)
    as_it_is = [text for text in ordinary if readings(text) == (text,)]
    assert len(as_it_is) >= 0.97 * len(ordinary), set(ordinary) - set(as_it_is)
    assert set(as_it_is) <= set(scorer.seen)
    assert all(plain(text) == text for text in ordinary)


@pytest.mark.parametrize("text", [
    "see www.example.org/you_are/stuff and mail me@example.com", "J. R. R. Tolkien of the B.B.C.",
    "e.g. the U.S. in 1999, i.e. the 2nd of 3 (a.m.)",
    "well-known, twenty-one, mother-in-law, re-elected", "x = foo.bar(a_b, c[3]); print('yes') // end",
    "10km in 42min at 5am for $20, 50% off", "done in 4.5s, 5.55s before",
    "A-1, B2B, COVID-19, mp3 and H2O", "No, no, no! Oh dear... hmm.",
    "a b"])
def test_ordinary_spelling_is_no_disguise(text: str) -> None:
    assert readings(text) == (text,)


@pytest.mark.parametrize("text", [
    "नमस्ते, आप कैसे हैं?", "क्षत्रिय", "می‌خواهم بروم", "مرحبا", "שלום עולם", "Добрый день, как дела?",
    "Он тут был вчера", "Καλημέρα σε όλους", "Chào buổi sáng, bạn khoẻ không",
    "今日はいい天気です。",
    "สวัสดีครับ", "안녕하세요",
    "বাংলা ভাষা", "São Paulo, Zoë, Müller, Łódź, Þór", "a² + b² = c²", "½ cup at 21 °C", "€20 or £5"])
def test_words_of_other_scripts_keep_their_letters_and_marks(text: str) -> None:
    assert plain(text) == text


def test_look_alikes_are_read_as_latin_only_among_latin() -> None:
    assert plain("You are an іdіоt, реор1е") == "You are an idiot, peop1e"
    assert plain("the сосо bean") == "the coco bean"
    assert plain("сосо") == "сосо", "a word of another script alone is one of its own language"
    assert plain("Я купил iPhone, а он упал") == "Я купил iPhone, а он упал"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_a_plain_text_is_plain(text: str) -> None:
    assert plain(plain(text)) == plain(text)
    assert not set(plain(text)) & set("\u200b\u202e\u2066\ufeff\u00ad\x00\x1b\x7f")


@settings(max_examples=200, deadline=None)
@given(st.text("idot 10.!ÿі\u200d\u202e😀aeu", max_size=60))
def test_reading_ends_for_every_text(text: str) -> None:
    assert len(readings(text)) <= 4
    assert readings(text)[0] == plain(text)


def test_pictures_part_words_and_say_nothing() -> None:
    scorer = Words("picture")
    assert scorer.score(["😀😀", "❤️ 👩🏿‍🦰", "fine 😀"]) == [1.0, 1.0, 0.0]
    assert plain("A 😀") == "A  "
    assert plain("🖕").split() == ["fuck", "you"]


def test_what_nobody_sees_is_an_empty_text() -> None:
    scorer = Words()
    assert scorer.score(["\u200b\u200d\u2060", "\u2800 \u00a0"]) == [None, None]
    assert scorer.failures == {"empty text": 2}
    assert not scorer.seen


def test_a_reading_that_cannot_be_scored_leaves_the_text_unscored() -> None:
    assert Words().score(["i.d.i.o.t ?!", "fine"]) == [None, 0.0]


def test_the_members_of_an_ensemble_read_alike() -> None:
    assert EnsembleScorer([Words("idiot"), Words("day")]).score(["an 1d10t", "a fine d\u200day"]) == [0.5, 0.5]


def test_the_fingerprint_tells_how_texts_are_read() -> None:
    assert Words().fingerprint == f"words-{VERSION}"


def test_a_rewrite_whose_insult_is_hidden_is_not_accepted() -> None:
    class Flat:
        def variant_losses(self, variants: Sequence[Sequence[str]]) -> list[list[tuple[float, int]]]:
            return [[(1.0, 1)] * len(group) for group in variants]

    acceptance = Acceptance(Words(), None, Flat(), Bounds(0.5, 0.0, 10.0))
    hidden = "You are a stupid i\u200dd\u200di\u200do\u200dt."
    judged, = acceptance.judge([INSULT], [[hidden, "You are wrong."]])
    assert {one.text: one.refused for one in judged} == {"You are wrong.": None, hidden: "toxic"}


@pytest.mark.parametrize("text", [
    "x" * MAX_CHARS, "a " * (MAX_CHARS // 2), "a.b_c!d1e0" * (MAX_CHARS // 10), "1" * MAX_CHARS,
    "ab1" * (MAX_CHARS // 3), "ïaaabbb1 " * (MAX_CHARS // 9), "i\u0335" * (MAX_CHARS // 2),
    "\u202ea" * (MAX_CHARS // 2), "іa" * (MAX_CHARS // 2), "😀" * MAX_CHARS])
def test_a_long_hostile_text_is_read_in_time(text: str) -> None:
    started = time.process_time()
    readings(text)
    assert time.process_time() - started < 2.0


def test_words_that_are_whole_are_not_parted() -> None:
    for word in ("therapist", "classification", "Massachusetts", "cocktail", "assessment", "analysis"):
        assert undisguised(f"The {word} was good.") is None, word
