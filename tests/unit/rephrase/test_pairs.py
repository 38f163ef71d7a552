"""Which pairs a paraphraser learns from: rewrites that are harmless, and that say what the original says."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.rephrase.paraphrase_pairs import read_pairs, teaching_pairs
from tests.helpers import tiny_rewriters as tiny
from tests.helpers.rewriters import recipe

RUDE = "You are a stupid man, and your house is cold."
GOOD = (RUDE, "You are a man, and your house is cold.")
STILL_RUDE = (RUDE, "You are a stupid idiot, and your house is cold.")
SOMETHING_ELSE = (RUDE, "People read a new book in the garden today.")


def bounded(folder: Path, **bounds: float) -> Recipe:
    source = str(tiny.labelled_csv(folder / "labelled.csv"))
    return recipe(folder, rephraser_training=bounds, scoring={
        "training": {"kind": "ngram", "source": source}, "judging": {"kind": "bilstm"}})


def test_rude_rewrites_and_other_sentences_teach_nothing(tmp_path: Path) -> None:
    settings = bounded(tmp_path, pair_toxicity=0.5, pair_similarity=0.6)
    assert teaching_pairs(settings, [STILL_RUDE, GOOD, SOMETHING_ELSE], "pairs.tsv") == [GOOD]


def test_without_bounds_every_pair_teaches(tmp_path: Path) -> None:
    pairs = [STILL_RUDE, GOOD, SOMETHING_ELSE]
    assert sorted(teaching_pairs(bounded(tmp_path), pairs, "pairs.tsv")) == sorted(pairs)


def test_the_choice_of_pairs_does_not_hang_on_their_order(tmp_path: Path) -> None:
    pairs = [(f"rude {number}", f"polite {number}") for number in range(40)]
    settings = bounded(tmp_path, max_pairs=7)
    chosen = teaching_pairs(settings, pairs, "pairs.tsv")
    assert len(chosen) == 7
    assert teaching_pairs(settings, pairs[::-1], "pairs.tsv") == chosen
    assert {pair for pair in chosen if pair in pairs[:30]} <= set(
        teaching_pairs(settings, pairs[:30], "pairs.tsv")), "more pairs push some out, and change no other"


def test_bounds_that_leave_nothing_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="none of 1 pairs is within the bounds") as refused:
        teaching_pairs(bounded(tmp_path, pair_toxicity=0.5), [STILL_RUDE], "pairs.tsv")
    assert "pair_toxicity" in str(refused.value.remedy)


def test_all_rewrites_of_a_text_are_read_and_quotes_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text('toxic\tneutral1\tneutral2\tneutral3\na "rude\tb\t\tc\n\td\t\t\n', "utf-8")
    assert read_pairs(tmp_path / "pairs.tsv") == [('a "rude', "b"), ('a "rude', "c")]
