"""Tidying changes how a text is written, never which words stand in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.rephrase.build import Tidied
from llm_detox.rephrase.words import as_printed

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
