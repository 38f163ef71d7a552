"""Masks and the texts without them; tidying changes how a text is written, never which words stand in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.rephrase.build import Tidied
from llm_detox.rephrase.words import as_printed, attribute_words, join_loose_marks, smallest_masks, spans, without


class CountingScorer:
    """0.07 for each bad word."""

    def score(self, texts: Sequence[str]) -> list[float | None]:
        return [0.07 * sum("bad" in word for word in text.split()) if text else None for text in texts]


@pytest.mark.parametrize(("text", "mask", "expected"), [
    ("You are a stupid idiot.", {3, 4}, "You are a."),
    ("Stupid, I said so.", {0}, "I said so."),
    ("shit , i said so .", {0}, "i said so."),
    ("He is a damn actor.", {3}, "He is an actor."),
    ("It was, damn it, cold.", {2, 3}, "It was, cold."),
    ("i don 't know , idiot !", {5}, "i don't know,!"),
    ("He waited an hour, damn.", {4}, "He waited an hour,"),
])
def test_text_without_words_reads_as_printed(text: str, mask: set[int], expected: str) -> None:
    assert without(text, mask) == expected


def test_dangling_articles_go_with_their_noun() -> None:
    assert without("You are a stupid idiot.", {3, 4}, trim=True) == "You."


def test_replacements_take_the_place_and_the_punctuation_of_their_span() -> None:
    assert without('He said "idiot moron!" twice', {2, 3}, {2: "apple"}) == 'He said "apple!" twice'
    assert without("She is a stupid cook.", {3}, {3: "old"}) == "She is an old cook."


@given(st.sets(st.integers(0, 60)))
def test_spans_cover_exactly_the_mask(mask: set[int]) -> None:
    found = spans(mask)
    assert {i for start, end in found for i in range(start, end)} == mask
    assert all(after[0] > before[1] for before, after in pairwise(found))


@given(st.lists(st.sampled_from(["bad", "good", "fine", "day"]), min_size=1, max_size=12))
def test_masks_are_the_fewest_words_that_suffice(words: list[str]) -> None:
    text = " ".join(words)
    [mask] = smallest_masks(CountingScorer(), [text], below=0.1, largest_share=1.0)
    bad = words.count("bad")
    if bad == 0 or len(words) == 1:
        assert mask is None  # nothing to blame, or nothing left to score
    else:
        assert mask is not None
        assert all(words[i] == "bad" for i in mask)
        assert len(mask) == max(1, bad - 1)


def test_occlusion_gives_each_word_the_fall_of_the_score() -> None:
    [shares] = attribute_words(CountingScorer(), ["a bad day"])
    assert shares == pytest.approx([0, 0.07, 0])


@given(st.text(alphabet="ab ,.'!", max_size=40))
def test_tidy_is_idempotent(text: str) -> None:
    assert join_loose_marks(join_loose_marks(text)) == join_loose_marks(text)


COMMENTS = [
    ("man , i don 't even know who they are anymore", "Man, I don't even know who they are anymore."),
    ("it ' s over . he 's gone , i 'm done !", "It's over. He's gone, I'm done!"),
    ("they do n't care ( at all )", "They don't care (at all)."),
    (", you , , are late", "You, are late."),
    ("this is , .", "This is."),
    ("see www.example.org for more", "See www.example.org for more."),
    ("www.example.org has it", "www.example.org has it."),
    ("no way", "No way"),
    ("He said: \"go home\"", "He said: \"go home\""),
    ("some fruit, i.e. apples and pears", "Some fruit, i.e. apples and pears."),
    ("what ? ? really", "What?? Really"),
    ("dont , im sure they wont", "Don't, I'm sure they won't."),
    ("IM me , ILL its lets were", "IM me, ILL its lets were."),
    ("as he was wont to do", "As he was wont to do."),
    ("YOU CANT", "YOU CAN'T"),
    ("“don’t” , ‘ever’ , he said", "\"Don't\", 'ever', he said."),
    ("", ""),
    (" , ", ""),
]


@pytest.mark.parametrize(("written", "expected"), COMMENTS)
def test_comments_are_written_as_people_print_them(written: str, expected: str) -> None:
    assert as_printed(written) == expected


@given(st.lists(st.sampled_from(["i", "don", "'t", ",", ".", "fine", "Bob", "(", ")", "!", "it", "'s", "’s", "what",
                                 ";", "dont", "Im", "wont"])))
def test_no_word_is_lost_or_added_and_a_second_time_changes_nothing(words: list[str]) -> None:
    text = " ".join(words)
    once = as_printed(text)
    letters = re.compile(r"[^\W_]")
    assert [one.lower() for one in letters.findall(text)] == [one.lower() for one in letters.findall(once)]
    assert as_printed(once) == once


def test_what_a_method_offers_is_written_down_tidily() -> None:
    class Method:
        name = "delete"

        def candidates(self, texts: Sequence[str]) -> list[list[str]]:
            return [[text, "i don 't know , really"] for text in texts]

    assert Tidied(Method()).candidates(["so be it"]) == [["So be it.", "I don't know, really."]]
