"""What a rephrasing method is, and what makes its rewrites acceptable: toxicity, similarity and fluency, each with an
absolute bound of the recipe.

A method gives candidates for toxic texts; whether one of them is accepted is not its business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llm_detox.generation.trees import Loss

_WORDS = re.compile("[\\w'\u0300-\u0963\u0966-\u1dff]+")  # with the marks of letters, such as Hindi's vowel signs


class Scorer(Protocol):
    """The part of a toxicity scorer that rephrasing uses."""

    def score(self, texts: Sequence[str]) -> list[float | None]:
        """Toxicity of each text in [0, 1], None if it could not be scored."""
        ...


class Method(Protocol):
    """One link of the chain."""

    name: str

    def candidates(self, texts: Sequence[str]) -> list[list[str]]:
        """For each text its candidate rewrites, best guess first; an empty list if the method has none."""
        ...


class Similarity(Protocol):
    def cosine(self, a: Sequence[str], b: Sequence[str]) -> list[float]: ...


class Fluency(Protocol):
    def variant_losses(self, variants: Sequence[Sequence[str]]) -> list[list[Loss]]: ...


@dataclass(frozen=True)
class Bounds:
    """A rewrite must score below `toxicity`, keep `similarity` in cosine, and read at most `fluency` times as hard."""

    toxicity: float
    similarity: float
    fluency: float


@dataclass(frozen=True)
class Candidate:
    """One candidate with what was measured before it was decided; None where an earlier bound failed."""

    text: str
    toxicity: float | None
    similarity: float | None = None
    perplexity: float | None = None
    perplexity_before: float | None = None
    refused: str | None = None

    @property
    def rank(self) -> float:
        """Similarity cubed times the roots of harmlessness and of fluency (1 / perplexity), of one text's rewrites.

        Perplexities differ by factors where cosines differ by tenths: without the cube, what reads best wins.
        0 for what was not judged to the end.
        """
        if self.toxicity is None or self.similarity is None or self.perplexity is None:
            return 0.0
        return self.similarity**3 * math.sqrt((1 - self.toxicity) / self.perplexity)


def perplexity(loss: Loss, original: Loss | None = None) -> float:
    """exp of the mean negative log-likelihood a token; infinite for a text without a predicted token.

    Of a rewrite that is longer than its original, a token of the original: every word that is added then costs
    something. By its own tokens it would read the better the more empty phrases it goes on with.
    """
    nll, tokens = loss
    if original and original[1]:
        tokens = min(tokens, original[1])
    return math.exp(min(nll / tokens, 700.0)) if tokens else math.inf


def repeats(text: str) -> bool:
    """Whether three words in a row come twice: language models find likely what they have just read."""
    words = _WORDS.findall(text.lower())
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(runs)) < len(runs)


class Acceptance:
    """Judges candidates, the cheap bounds first: a candidate that fails one costs nothing further.

    Args:
        similarity: None accepts any meaning.
    """

    def __init__(self, scorer: Scorer, similarity: Similarity | None, fluency: Fluency, bounds: Bounds) -> None:
        self._scorer = scorer
        self._similarity = similarity
        self._fluency = fluency
        self._bounds = bounds

    def judge(self, originals: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[Candidate]]:
        """For each original its distinct candidates, the accepted ones first, by falling rank."""
        judged = [[Candidate(text, None, refused="repeats" if repeats(text) and not repeats(original) else None)
                   for text in dict.fromkeys(group) if text.strip() and text != original]
                  for original, group in zip(originals, candidates, strict=True)]
        judged = self._by_toxicity(judged)
        judged = self._by_similarity(originals, judged)
        judged = self._by_fluency(originals, judged)
        return [sorted(group, key=lambda one: (one.refused is not None, -one.rank)) for group in judged]

    def _by_toxicity(self, groups: list[list[Candidate]]) -> list[list[Candidate]]:
        scores = iter(self._scorer.score([one.text for group in groups for one in group if not one.refused]))

        def decide(one: Candidate) -> Candidate:
            if one.refused:
                return one
            score = next(scores)
            if score is None:
                return Candidate(one.text, None, refused="unscored")
            return Candidate(one.text, score, refused=None if score < self._bounds.toxicity else "toxic")

        return [[decide(one) for one in group] for group in groups]

    def _by_similarity(self, originals: Sequence[str], groups: list[list[Candidate]]) -> list[list[Candidate]]:
        pairs = [(original, one.text) for original, group in zip(originals, groups, strict=True)
                 for one in group if not one.refused]
        values = iter(self._similarity.cosine(*map(list, zip(*pairs, strict=True)))
                      if self._similarity and pairs else [1.0] * len(pairs))

        def decide(one: Candidate) -> Candidate:
            if one.refused:
                return one
            value = next(values)
            return Candidate(one.text, one.toxicity, value,
                          refused=None if value >= self._bounds.similarity else "not similar")

        return [[decide(one) for one in group] for group in groups]

    def _by_fluency(self, originals: Sequence[str], groups: list[list[Candidate]]) -> list[list[Candidate]]:
        alive = [i for i, group in enumerate(groups) if any(not one.refused for one in group)]
        variants = [[originals[i], *(one.text for one in groups[i] if not one.refused)] for i in alive]
        read = dict(zip(alive, self._fluency.variant_losses(variants), strict=True))

        def decide(one: Candidate, original: Loss, loss: Loss) -> Candidate:
            before, value = perplexity(original), perplexity(loss, original)
            fits = value <= self._bounds.fluency * before
            return Candidate(one.text, one.toxicity, one.similarity, value, before,
                          refused=None if fits else "not fluent")

        decided = []
        for i, group in enumerate(groups):
            original, *losses = read.get(i, [(0.0, 0)])
            left = iter(losses)
            decided.append([one if one.refused else decide(one, original, next(left)) for one in group])
        return decided
