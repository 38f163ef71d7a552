"""The report in words says what the figures say, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_detox.evaluation.report import build_report
from llm_detox.evaluation.report_words import in_words
from llm_detox.evaluation.results import Evaluation, Perplexity
from llm_detox.recipe import Recipe
from tests.helpers.evaluations import arm, noisy
from tests.helpers.sources import make_sources


def words(folder: Path, arms: Mapping[str, Evaluation], **gate: Any) -> list[str]:
    recipe = Recipe.model_validate({**make_sources(folder), "gate": gate, "evaluation": {"bootstrap_samples": 1000},
                                    "detoxify": {"similarity_model": None}})
    return in_words(build_report(recipe, arms, fates={}, seconds={}, judge=None))


def four(**levels: float) -> dict[str, Evaluation]:
    return {name: arm(name, noisy(level, number)) for number, (name, level) in enumerate(levels.items(), start=1)}


def test_what_is_clear_of_zero_is_said_to_have_moved(tmp_path: Path) -> None:
    tried, changed, trust = words(tmp_path, four(base=0.6, raw=1.0, detoxified=0.7, dpo=0.3))
    assert tried.startswith("The arms base, raw, detoxified and dpo continued the same 60 prompts, 5 times each.")
    assert "From base to dpo mean toxicity fell from 0.226 to 0.117, by 49 % (interval -57 to -41 %)." in changed
    assert "Trained on the rewritten text the model is less toxic than trained on the raw text (mean toxicity -0." \
        in changed
    assert "Its perplexity on clean text is 1.000 times base's." in changed
    assert trust.startswith("The gate passes: all ")


def test_the_arms_of_the_rewriting_are_held_against_each_other(tmp_path: Path) -> None:
    arms = four(base=0.6, raw=1.0, filtered=0.7, detoxified=0.7, dpo=0.3)
    read = {name: replace(one.report, held_out_perplexity=Perplexity(20.0 + number, 19.0, 21.0, tokens=9))
            for number, (name, one) in enumerate(arms.items())}
    _, changed, _ = words(tmp_path, {name: replace(one, report=read[name]) for name, one in arms.items()})
    assert "the model is less toxic than trained on the raw text (mean toxicity -0." in changed
    assert "and as toxic, as far as these prompts can tell, as on those of its lines that need no rewriting" in changed
    assert "tells what was learnt of them: base 20.0, raw 21.0, filtered 22.0, detoxified 23.0, dpo 24.0." in changed


@pytest.mark.parametrize(("level", "said"), [
    (0.6, "mean toxicity did not change by more than chance allows"), (0.9, "mean toxicity rose from 0.")])
def test_what_did_not_fall_is_not_said_to_have_fallen(tmp_path: Path, level: float, said: str) -> None:
    arms = four(base=0.6, dpo=level)
    _, changed, trust = words(tmp_path, arms, against=["base"])
    assert said in changed
    assert "fell" not in changed
    assert "Trained on the rewritten text" not in changed
    assert trust.startswith("The gate fails") or trust.startswith("The gate cannot decide")


def test_the_conditions_that_made_the_verdict_are_counted(tmp_path: Path) -> None:
    _, _, trust = words(tmp_path, four(base=0.5, dpo=0.9), against=["base"], max_clean_refusals=None)
    assert trust.startswith("The gate fails: 2 of 7 conditions are to blame.")
