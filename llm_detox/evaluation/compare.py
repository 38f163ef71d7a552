"""Differences between arms that were asked the same prompts with the same seed and judged by the same scorer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm_detox.errors import DetoxError
from llm_detox.evaluation.intervals import Interval, mean_interval, resampled_means
from llm_detox.evaluation.metrics import METRICS, PromptScore, metric_values

Floats = NDArray[np.float64]
READ = ("clean", "clean_continuations", "prompted")  # what language models read: see `evaluate._fluency`


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation folder, read.

    Attributes:
        report: its `report.json`.
        scores: prompt id -> what its continuations came to.
        strata: prompt id -> strata.
        over: attribute -> a character a prompt, in the order of `scores`
            (see `llm_detox.evaluation.continuations.Sampled`).
        losses: each of `READ` that was measured -> [texts, 2] of summed loss and tokens.
    """

    folder: Path
    report: dict[str, Any]
    scores: dict[str, PromptScore]
    strata: dict[str, list[str]]
    over: dict[str, str]
    losses: dict[str, Floats]

    @property
    def arm(self) -> str:
        return str(self.report["arm"])


def read_evaluation(folder: Path) -> Evaluation:
    """Read what `evaluate` wrote.

    Raises:
        DetoxError: it is no evaluation folder.
    """
    try:
        report = json.loads((folder / "report.json").read_text("utf-8"))
        values = json.loads((folder / "values.json").read_text("utf-8"))
        scores = {identity: PromptScore(**score)
                  for identity, score in zip(values["ids"], values["scores"], strict=True)}
        strata = dict(zip(values["ids"], values["strata"], strict=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DetoxError(f"not the folder of a finished evaluation ({type(error).__name__})", place=str(folder),
                         remedy="pass the folder that `llm-detox evaluate --output` wrote") from None
    losses = {name: np.array(values[name], dtype=np.float64) for name in READ if values.get(name)}
    return Evaluation(folder, report, scores, strata, values.get("over", {}), losses)


def check_comparable(evaluations: Mapping[str, Evaluation]) -> None:
    """Refuse to set numbers side by side that were not measured alike.

    Raises:
        DetoxError: another scorer, other prompts, seeds, sampling or threshold; the message names the first difference.
    """
    arms = list(evaluations)
    for arm in arms[1:]:
        first, other = (evaluations[name].report["comparable"] for name in (arms[0], arm))
        for key in [*first, *(key for key in other if key not in first)]:
            if first.get(key) != other.get(key):
                what = "were judged by different scorers" if key == "scorer" else f"differ in {key}"
                raise DetoxError(f"{arms[0]} and {arm} {what} ({first.get(key)} and {other.get(key)}); "
                                 "their numbers cannot be compared", place=str(evaluations[arm].folder),
                                 remedy="evaluate both with the same recipe and prompts")


def paired_difference(ours: Evaluation, theirs: Evaluation, metric: str, *, stratum: str = "all",
                      samples: int, confidence: float, seed: int) -> dict[str, Any] | None:
    """Ours minus theirs over the prompts that both have a score for; negative is less toxic.

    Returns:
        value, low, high; `prompts`; `effect` (Cohen's d of the paired differences: their mean over their standard
        deviation); `p` (two-sided paired t test); None without a common prompt.
    """
    ids = [identity for identity, strata in ours.strata.items() if stratum in strata and identity in theirs.scores]
    left, right = (metric_values([arm.scores[identity] for identity in ids], metric) for arm in (ours, theirs))
    known = ~(np.isnan(left) | np.isnan(right))
    differences = left[known] - right[known]
    if not len(differences):
        return None
    interval = _difference_interval(differences, samples, confidence, seed)
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    effect = interval.value / spread if spread else None
    return {**interval.as_dict(), "prompts": len(differences), "effect": effect,
            "p": _paired_test(interval.value, spread, len(differences))}


def _paired_test(mean: float, spread: float, count: int) -> float:
    """Two-sided p of the paired t test; where all differences are equal, of the sign test."""
    if spread:
        return float(2 * stats.t.sf(abs(mean) / (spread / math.sqrt(count)), count - 1))
    return min(1.0, 2 * 0.5**count) if mean else 1.0


def share_change(ours: Evaluation, theirs: Evaluation, attribute: str, *, samples: int, confidence: float,
                 seed: int) -> Interval | None:
    """Change of the share of prompts whose first continuation is at or over the threshold, prompts paired.

    None where one of them has no such scores, or no prompt is scored in both.
    """
    left, right = ours.over.get(attribute, ""), theirs.over.get(attribute, "")
    if list(ours.scores) != list(theirs.scores):
        return None
    pairs = [(a == "1", b == "1") for a, b in zip(left, right, strict=False) if "-" not in (a, b)]
    if not pairs:
        return None
    return _difference_interval(np.array([float(a) - float(b) for a, b in pairs]), samples, confidence, seed)


def _difference_interval(differences: Floats, samples: int, confidence: float, seed: int) -> Interval:
    if np.ptp(differences) == 0:  # nothing to resample: say nothing beyond what the count allows
        reach = 1 - (1 - confidence) ** (1 / len(differences))
        value = float(differences[0])
        return Interval(value, max(-1.0, value - reach), min(1.0, value + reach))
    return mean_interval(differences, samples=samples, confidence=confidence, seed=seed)


def perplexity_ratio(ours: Evaluation, theirs: Evaluation, name: str, *, samples: int, confidence: float,
                     seed: int) -> dict[str, float] | None:
    """Our perplexity over theirs on the texts of `name` (one of `READ`), texts resampled together.

    None where one of them has no such losses.
    """
    left, right = ours.losses.get(name), theirs.losses.get(name)
    if left is None or right is None or left.shape != right.shape:
        return None
    joined = np.concatenate([left, right], axis=1)
    sums = np.concatenate([joined.mean(axis=0, keepdims=True), resampled_means(joined, samples, seed)])
    ratios = np.exp(sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3])
    low, high = np.quantile(ratios[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"value": float(ratios[0]), "low": float(low), "high": float(high)}


def compare(evaluations: Mapping[str, Evaluation], *, samples: int, confidence: float,
            seed: int) -> list[dict[str, Any]]:
    """Every later arm against every earlier one: metric by metric, stratum by stratum.

    Returns:
        Rows with `arm`, `against`, `metric`, `stratum`, what `paired_difference` gives, and `p_adjusted` for as many
        comparisons as there are rows.

    Raises:
        DetoxError: see `check_comparable`.
    """
    check_comparable(evaluations)
    arms = list(evaluations)
    rows = []
    for later in range(1, len(arms)):
        for earlier in range(later):
            ours, theirs = evaluations[arms[later]], evaluations[arms[earlier]]
            for metric in METRICS:
                for stratum in ours.report["strata"]:
                    found = paired_difference(ours, theirs, metric, stratum=stratum, samples=samples,
                                              confidence=confidence, seed=seed)
                    if found:
                        rows.append({"arm": arms[later], "against": arms[earlier], "metric": metric,
                                     "stratum": stratum, **found})
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_adjusted"] = adjusted
    return rows


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979): a level kept by them bounds the chance of any false finding."""
    adjusted = [1.0] * len(values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted
