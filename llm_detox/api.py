"""The library in two functions: how toxic texts are, and acceptable versions of those that are.

    from llm_detox.api import detoxify, score

    score(["What a lovely idea.", "What a stupid idea, you moron."])
    detoxify(["What a stupid idea, you moron."])[0].text

Both take what the recipe takes; without one they use packages alone and nothing is fetched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from llm_detox.data.records import Record
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import PACKAGED_RECIPE, load_recipe


@dataclass(frozen=True)
class Rewrite:
    """What became of a text.

    Attributes:
        text: the acceptable version; "" where none was found or the text could not be scored.
        original: the text as it was given.
        action: `kept`, `rewritten` or `dropped`.
        method: that rewrote it.
        reason: why it is so, for people.
        toxicity_before, toxicity_after: in [0, 1], by the recipe's training scorer; None where there is no score.
    """

    text: str
    original: str
    action: str
    method: str | None
    reason: str
    toxicity_before: float | None
    toxicity_after: float | None


def score(texts: Iterable[str], recipe: Recipe | None = None) -> list[float | None]:
    """Toxicity of texts in [0, 1], by the recipe's judging scorer; None for a text that could not be scored.

    Raises:
        DetoxError: the scorer cannot be loaded, or is dead.
    """
    from llm_detox.scoring.load import load_scorer

    return load_scorer((recipe or packaged_recipe()).scoring.judging).score(list(texts))


def detoxify(texts: Iterable[str], recipe: Recipe | None = None) -> list[Rewrite]:
    """Acceptable versions of texts by the recipe's methods, in their order; one that is not toxic stays as it is.

    `llm-detox detoxify` does the same with files: it continues where it stopped and keeps what was tried.

    Raises:
        DetoxError: a model or scorer cannot be loaded.
    """
    from llm_detox.rephrase.build import MethodFactory

    records = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    chain = MethodFactory(recipe or packaged_recipe()).chain
    return [Rewrite(text=record["text"], original=record["original"], action=record["action"],
                    method=record["method"], reason=_reason(record),
                    toxicity_before=record["scores"]["toxicity_before"],
                    toxicity_after=record["scores"].get("toxicity_after")) for record in chain.run(records)]


def _reason(record: Record) -> str:
    """The record's reason, with why candidates were refused where none was accepted."""
    tried = record.get("tried", []) if not record["method"] else []
    if not tried:
        return str(record["reason"])
    refused = Counter[str]()
    for attempt in tried:
        refused.update(attempt["refused"])
    shown = ", ".join(f"{reason} {count}" for reason, count in refused.most_common())
    return f"{record['reason']} ({shown or 'no method had one'})"


def packaged_recipe() -> Recipe:
    """A recipe whose model, data and scorers are Python packages.

    Raises:
        DetoxError: one of its keys is not of the schema.
    """
    return load_recipe(PACKAGED_RECIPE)
