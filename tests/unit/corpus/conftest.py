"""A tiny recipe, and a corpus with toxic lines, whose rewriting takes no models to be fetched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from llm_detox.corpus import clean
from llm_detox.corpus.formats import Layout
from llm_detox.corpus.reading import Piece
from llm_detox.corpus.work import Cleaner, Outcome
from llm_detox.recipe import Recipe
from llm_detox.rephrase.build import MethodFactory
from tests.helpers import tiny_rewriters as tiny


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    tiny.causal_folder(folder / "model")
    tiny.labelled_csv(folder / "labelled.csv")
    return folder


@pytest.fixture(autouse=True)
def own_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DETOX_CACHE", str(place / "cache"))


@pytest.fixture
def recipe(place: Path) -> Recipe:
    return tiny_recipe(place)


def tiny_recipe(place: Path, **detoxify: object) -> Recipe:
    source = str(place / "labelled.csv")
    return Recipe.model_validate({
        "name": "tiny", "model": {"source": str(place / "model")},
        "data": {"texts": {"source": source}, "prompts": {"sources": [source]}, "clean": {"sources": [source]}},
        "scoring": {"training": {"kind": "ngram", "source": source}, "judging": {"kind": "bilstm"}},
        "detoxify": {"similarity_model": None, "accept_similarity": 0, "accept_fluency": 100, **detoxify},
    })


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work without processes, in which the tests take most of their time."""

    def cleaned(recipe: Recipe, pieces: Iterable[tuple[Piece, Layout]],
                workers: int) -> Iterator[tuple[Piece, Outcome]]:
        cleaner = Cleaner(MethodFactory(recipe), recipe.detoxify.toxic_threshold)
        held = [(piece, cleaner.clean(piece, layout)) for piece, layout in pieces]
        yield from reversed(held)  # those of processes come in any order

    monkeypatch.setattr(clean, "cleaned", cleaned)
