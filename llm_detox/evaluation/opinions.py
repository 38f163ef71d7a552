"""What other scorers say of the same continuations.

A fall of toxicity that one scorer sees may be the model's, or it may be that scorer's fault: a model can learn to write
what the scorer misses. Scorers of other families and data, beside the one that judges, tell the two apart. One that
took part in training flatters, and is shown as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llm_detox.data.records import read_generations
from llm_detox.data.sources import fetch
from llm_detox.evaluation.intervals import Bootstrap, Interval
from llm_detox.evaluation.metrics import PromptScore, prompt_score, summarise
from llm_detox.progress import task
from llm_detox.recipe.scorers import ScorerSection, ScoringSection
from llm_detox.scoring.base import ToxicityScorer
from llm_detox.scoring.learnt import learnt_by, share_in_common
from llm_detox.scoring.load import load_scorer

_PROMPTS_AT_ONCE = 64
_BY_CHANCE = 0.001  # a share of rows that short texts have in common, which many people write


@dataclass(frozen=True, kw_only=True)
class ScorerIdentity:
    """A scorer that measured.

    Attributes:
        attributes, attribute: all that it gives, and the one that counts.
        rows_in_common: the share of the texts it has learnt that the scorer that trains and accepts has learnt, too;
            None where one of the two does not say what it has learnt.
    """

    name: str
    version: str
    device: str
    fingerprint: str
    attribute: str
    attributes: list[str]
    source: str | None
    rows_in_common: float | None = None

    @property
    def rows_in_words(self) -> str:
        """What it has in common with the scorer that trains and accepts, for people."""
        if self.rows_in_common is None:
            return "it is not known which texts it has learnt from"
        return f"{100 * self.rows_in_common:.1f} % of the texts it has learnt from are in the training scorer's"

    @classmethod
    def of(cls, scorer: ToxicityScorer, section: ScorerSection, scoring: ScoringSection) -> ScorerIdentity:
        rows = share_in_common(learnt_by(section), learnt_by(scoring.training))
        return cls(name=scorer.name, version=scorer.version, device=scorer.device, fingerprint=scorer.fingerprint,
                   attribute=scorer.attribute, attributes=list(scorer.attributes), source=section.source,
                   rows_in_common=rows)


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What another scorer than the judging one says of an arm; None where it scored nothing.

    Attributes:
        independent: whether it has no part in common with the scorer that trains and accepts, and no rows, as far as it
            is known.
        unscored: how many continuations have no score of it.
    """

    scorer: ScorerIdentity
    independent: bool
    expected_maximum_toxicity: Interval | None
    toxicity_probability: Interval | None
    mean_toxicity: Interval | None
    unscored: int


def other_opinions(scoring: ScoringSection, generations: Path, threshold: float,
                   bootstrap: Bootstrap) -> tuple[dict[str, Opinion], dict[str, list[PromptScore]]]:
    """Let the other scorers of the recipe score an arm's continuations.

    Args:
        generations: the finished `generations.jsonl` of an evaluation.
        threshold: at or over which a continuation is toxic.

    Returns:
        name of a scorer -> what it says, and -> what each prompt's continuations came to, in the order of the prompts.

    Raises:
        DetoxError: a scorer cannot be loaded, or is dead.
    """
    opinions: dict[str, Opinion] = {}
    scores: dict[str, list[PromptScore]] = {}
    for section in scoring.others:
        scorer = load_scorer(section)
        name = scorer.name if scorer.name not in opinions else f"{scorer.name} {scorer.fingerprint[:8]}"
        rows = scores[name] = list(_prompt_scores(scorer, generations, threshold))
        whole = summarise(rows, [False] * len(rows), bootstrap)
        identity = ScorerIdentity.of(scorer, section, scoring)
        apart = not scoring.in_common(section, lambda source: fetch(source, kind="model"))
        opinions[name] = Opinion(
            scorer=identity, independent=apart and (identity.rows_in_common or 0) <= _BY_CHANCE,
            unscored=whole.unscored,
            expected_maximum_toxicity=whole.expected_maximum_toxicity,
            toxicity_probability=whole.toxicity_probability, mean_toxicity=whole.mean_toxicity)
    return opinions, scores


def _prompt_scores(scorer: ToxicityScorer, generations: Path, threshold: float) -> Iterator[PromptScore]:
    prompts = ([one["text"] for one in record["generations"]] for record in read_generations(generations))
    with task(f"scoring by {scorer.name}", None, "prompts") as work:
        while some := list(islice(prompts, _PROMPTS_AT_ONCE)):
            scores = iter(scorer.score([text for texts in some for text in texts if text is not None]))
            for texts in some:
                yield prompt_score([None if text is None else next(scores) for text in texts], threshold)
            work.advance(len(some))
