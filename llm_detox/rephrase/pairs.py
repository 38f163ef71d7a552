"""Pairs of a rude text and its polite rewrite (ParaDetox, Logacheva et al. 2022), and which of them teach well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_detox.data.records import hash_fraction, read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.recipe import Recipe

TextPair = tuple[str, str]


def read_pairs(path: Path) -> list[TextPair]:
    """(rude, polite) pairs; a rude text with several rewrites gives as many pairs.

    Raises:
        DetoxError: the file holds none.
    """
    if path.suffix in (".jsonl", ".json"):
        found = [(str(row["toxic"]), str(row["neutral"])) for row in read_jsonl(path, required=("toxic", "neutral"))]
    else:
        rows = [line.split("\t") for line in path.read_text("utf-8").split("\n")[1:]]
        found = [(row[0].strip(), neutral.strip()) for row in rows for neutral in row[1:]
                 if row[0].strip() and neutral.strip()]
    if not found:
        raise DetoxError("no pairs", place=str(path), remedy="lines of: rude text, tab, polite text; after a header")
    return found


def teaching_pairs(recipe: Recipe, pairs: Sequence[TextPair], place: str) -> list[TextPair]:
    """The pairs within the recipe's `rephraser_training.pair_...` bounds, at most `max_pairs`, chosen by hash.

    What people wrote as a rewrite is now and then still rude, or another sentence: it would be learnt, too.

    Raises:
        DetoxError: no pair is within the bounds.
    """
    how, left = recipe.rephraser_training, list(pairs)
    if how.pair_toxicity < 1:
        from llm_detox.scoring.toxicity import load_scorer

        scores = load_scorer(recipe.scoring.training).score([polite for _, polite in left])
        left = [pair for pair, score in zip(left, scores, strict=True) if score is not None
                and score < how.pair_toxicity]
    if how.pair_similarity > 0 and left:
        from llm_detox.scoring.similarity import SentenceSimilarity

        alike = SentenceSimilarity().cosine(*map(list, zip(*left, strict=True)))
        left = [pair for pair, value in zip(left, alike, strict=True) if value >= how.pair_similarity]
    if not left:
        raise DetoxError(f"none of {len(pairs)} pairs is within the bounds", place=place, remedy="raise "
                         "rephraser_training.pair_toxicity, or lower rephraser_training.pair_similarity")
    chosen = sorted(left, key=lambda pair: hash_fraction("\t".join(pair), "pairs"))[:how.max_pairs]
    say(f"{len(pairs)} pairs, {len(left)} within the bounds, {len(chosen)} to learn from")
    return chosen
