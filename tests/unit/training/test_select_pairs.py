"""Which pairs a paraphraser learns from: rewrites that are harmless, and that say what the original says."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.rephrase.paraphrase_pairs import TextPair, read_pairs
from llm_detox.training import paraphraser
from llm_detox.training.paraphraser import select_pairs, train_paraphraser
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


def chosen_of(recipe: Recipe, pairs: list[TextPair]) -> list[TextPair]:
    return select_pairs(pairs, recipe.rephraser_training, scorer=recipe.scoring.training,
                        encoder=recipe.detoxify.similarity_model, place="pairs.tsv")


def test_rude_rewrites_and_other_sentences_teach_nothing(tmp_path: Path) -> None:
    settings = bounded(tmp_path, pair_toxicity=0.5, pair_similarity=0.6)
    assert chosen_of(settings, [STILL_RUDE, GOOD, SOMETHING_ELSE]) == [GOOD]


def test_without_bounds_every_pair_teaches(tmp_path: Path) -> None:
    pairs = [STILL_RUDE, GOOD, SOMETHING_ELSE]
    assert sorted(chosen_of(bounded(tmp_path), pairs)) == sorted(pairs)


def test_the_choice_of_pairs_does_not_hang_on_their_order(tmp_path: Path) -> None:
    pairs = [(f"rude {number}", f"polite {number}") for number in range(40)]
    settings = bounded(tmp_path, max_pairs=7)
    chosen = chosen_of(settings, pairs)
    assert len(chosen) == 7
    assert chosen_of(settings, pairs[::-1]) == chosen
    assert {pair for pair in chosen if pair in pairs[:30]} <= set(
        chosen_of(settings, pairs[:30])), "more pairs push some out, and change no other"


def test_bounds_that_leave_nothing_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="none of 1 pairs is within the bounds") as refused:
        chosen_of(bounded(tmp_path, pair_toxicity=0.5), [STILL_RUDE])
    assert "pair_toxicity" in str(refused.value.remedy)


def test_all_rewrites_of_a_text_are_read_and_quotes_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text('toxic\tneutral1\tneutral2\tneutral3\na "rude\tb\t\tc\n\td\t\t\n', "utf-8")
    assert read_pairs(tmp_path / "pairs.tsv") == [('a "rude', "b"), ('a "rude', "c")]


def test_the_recipes_encoder_measures_how_alike_a_pair_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder:
        def __init__(self, source: str) -> None:
            self.source = source

        def cosine(self, one: list[str], other: list[str]) -> list[float]:
            assert self.source == "another encoder"
            return [float("house" in text) for text in other]

    monkeypatch.setattr(paraphraser, "SentenceSimilarity", Encoder)
    (tmp_path / "pairs.tsv").write_text("toxic\tneutral\nyou fool\tyou\nmy stupid house\tmy house\n", "utf-8")
    tiny.causal_folder(tmp_path / "causal")
    settings = recipe(tmp_path / "causal", rephraser_training={"pair_similarity": 0.5},
                      detoxify={"similarity_model": "another encoder"})
    assert train_paraphraser(settings, pairs=tmp_path / "pairs.tsv", output=tmp_path / "out").pairs == 1
    with pytest.raises(DetoxError, match="no sentence encoder") as refused:
        chosen_of(recipe(tmp_path, rephraser_training={"pair_similarity": 0.5}, detoxify={"similarity_model": None}),
                  [GOOD])
    assert "detoxify.similarity_model" in str(refused.value.remedy)
