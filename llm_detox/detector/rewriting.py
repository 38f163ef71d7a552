"""Acceptable versions of detected spans, by the methods of a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from llm_detox.detector.base import Offer
from llm_detox.recipe import Recipe
from llm_detox.rephrase.build import MethodFactory


class Rewriting:
    """Keeps the recipe's models, which load when the first span needs them."""

    def __init__(self, recipe: Recipe) -> None:
        self._factory = MethodFactory(recipe)

    def offers(self, texts: Sequence[str]) -> list[Offer]:
        """One offer for each text.

        Raises:
            DetoxError: a model of the recipe cannot be loaded.
        """
        self._factory.start_afresh()
        records = self._factory.chain.run([{"id": str(number), "text": text} for number, text in enumerate(texts)])
        return [Offer(record["text"], record["method"], record["reason"]) if record["action"] == "rewritten"
                else Offer(None, None, record["reason"]) for record in records]
