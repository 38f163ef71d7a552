"""The library's two functions and `llm-detox try`: a text in, a score and an acceptable version out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llm_detox.api import Rewrite, detoxify, packaged_recipe, score
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import load_recipe
from tests.conftest import REPOSITORY
from tests.helpers import tiny_rewriters as tiny

RUDE, POLITE = "You are a stupid friend with an old house.", "The garden is nice today."


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("api")
    tiny.labelled_csv(folder / "labelled.csv")
    source = str(folder / "labelled.csv")
    return Recipe.model_validate({
        "name": "tiny", "model": {"source": str(tiny.causal_folder(folder / "model"))},
        "data": {"texts": {"source": source}, "prompts": {"sources": [source]}, "clean": {"sources": [source]}},
        "scoring": {"training": {"kind": "ngram", "source": source}, "judging": {"kind": "bilstm"}},
        "detoxify": {"methods": ["delete"], "similarity_model": None, "accept_similarity": 0, "accept_fluency": 1000},
    })


def test_texts_come_back_in_their_order_and_only_toxic_ones_are_changed(recipe: Recipe) -> None:
    first, second, third = detoxify([POLITE, RUDE, ""], recipe)
    assert (first.action, first.text, first.original) == ("kept", POLITE, POLITE)
    assert (second.action, second.method, second.original) == ("rewritten", "delete", RUDE)
    assert "stupid" not in second.text
    assert (second.toxicity_after or 1) < (second.toxicity_before or 0)
    assert third == Rewrite("", "", "dropped", None, "it could not be scored", None, None)


def test_the_scorer_that_judges_is_the_one_that_scores(recipe: Recipe) -> None:
    judging = recipe.scoring.training.model_copy()
    scoring = recipe.scoring.model_copy(update={"judging": judging})
    polite, rude, empty = score([POLITE, RUDE, ""], recipe.model_copy(update={"scoring": scoring}))
    assert [(one or 0) > 0.5 for one in (polite, rude)] == [False, True]
    assert empty is None


def test_the_packaged_recipe_is_the_demo() -> None:
    named = {"name", "description"}
    demo = load_recipe(REPOSITORY / "recipes" / "smollm2-demo.yaml")
    assert packaged_recipe().model_dump(exclude=named) == demo.model_dump(exclude=named)


def test_why_nothing_was_accepted_is_said(recipe: Recipe) -> None:
    strict = recipe.model_copy(update={"detoxify": recipe.detoxify.model_copy(update={"accept_fluency": 1e-6})})
    [one] = detoxify([RUDE], strict)
    assert (one.action, one.text) == ("dropped", "")
    assert one.reason.startswith("no rewrite was accepted (not fluent ")


@pytest.mark.heavy
def test_try_rewrites_a_sentence_without_a_recipe() -> None:
    done = subprocess.run([sys.executable, "-m", "llm_detox.cli", "try", RUDE, POLITE, "--json"], capture_output=True,
                          text=True, check=True)
    rude, polite = json.loads(done.stdout)["texts"]
    assert (rude["action"], polite["action"]) == ("rewritten", "kept")
    assert "stupid" not in rude["text"]
    assert rude["judged"] > 0.5 > polite["judged"]
    printed = subprocess.run([sys.executable, "-m", "llm_detox.cli", "try", RUDE], capture_output=True, text=True,
                             check=True).stdout
    assert f"rewritten: {rude['text']}" in printed
