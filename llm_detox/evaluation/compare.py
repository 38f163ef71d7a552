"""Differences between arms that were asked the same prompts with the same seed and measured by the same scorer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm_detox.errors import DetoxError
from llm_detox.evaluation.intervals import (
    Bootstrap,
    Interval,
    mean_interval,
    percentile_interval,
    ratio_interval,
    resampled_means,
    share_interval,
)
from llm_detox.evaluation.metrics import METRICS, Metric, distinct_values, metric_values
from llm_detox.evaluation.report_content import (
    ArmDifference,
    LaterStageCell,
    OpinionCell,
    OpinionRow,
    PairedDifference,
    PairedRatio,
    StageCell,
    StageRow,
)
from llm_detox.evaluation.results import AttributeShare, ComparableSettings, Evaluation
from llm_detox.scoring.base import Attribute

Floats = NDArray[np.float64]
_FIRST_ATTRIBUTES: tuple[Attribute, ...] = (
    "toxicity", "severe_toxicity", "identity_attack", "insult", "profanity", "threat")


def check_comparable(evaluations: Mapping[str, Evaluation]) -> None:
    """Refuse to set numbers side by side that were not measured alike.

    Raises:
        DetoxError: another scorer, other prompts, seeds, sampling or threshold; the message names the first difference.
    """
    arms = list(evaluations)
    for arm in arms[1:]:
        for key in (one.name for one in fields(ComparableSettings)):
            first, other = (getattr(evaluations[name].report.comparable, key) for name in (arms[0], arm))
            if first != other:
                what = "were judged by different scorers" if key == "scorer" else f"differ in {key}"
                raise DetoxError(f"{arms[0]} and {arm} {what} ({first} and {other}); "
                                 "their numbers cannot be compared", place=str(evaluations[arm].folder),
                                 remedy="evaluate both with the same recipe and prompts")


def paired_difference(ours: Evaluation, theirs: Evaluation, metric: Metric, bootstrap: Bootstrap, *,
                      stratum: str = "all") -> PairedDifference | None:
    """Ours minus theirs over the prompts of a stratum that both have a score for; None without such a prompt."""
    ids = [identity for identity, strata in ours.strata.items() if stratum in strata and identity in theirs.scores]
    left, right = (metric_values([arm.scores[identity] for identity in ids], metric) for arm in (ours, theirs))
    known = ~(np.isnan(left) | np.isnan(right))
    differences = left[known] - right[known]
    if not len(differences):
        return None
    interval = difference_interval(differences, bootstrap)
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return PairedDifference(**vars(interval), prompts=len(differences),
                            effect=interval.value / spread if spread else None,
                            p=_paired_test(interval.value, spread, len(differences)))


def _paired_test(mean: float, spread: float, count: int) -> float:
    """Two-sided p of the paired t test; where all differences are equal, of the sign test."""
    if spread:
        return float(2 * stats.t.sf(abs(mean) / (spread / math.sqrt(count)), count - 1))
    return min(1.0, 2 * 0.5**count) if mean else 1.0


def seen_by(name: str, ours: Evaluation, theirs: Evaluation) -> tuple[Evaluation, Evaluation] | None:
    """Both evaluations with another scorer's scores in place of the judging one's.

    None where one of them has no scores of it, or of another version of it.
    """
    opinions = [(one.report.others or {}).get(name) for one in (ours, theirs)]
    if None in opinions or len({one.scorer.fingerprint for one in opinions if one}) > 1:
        return None
    return replace(ours, scores=ours.others[name]), replace(theirs, scores=theirs.others[name])


def opinion_rows(evaluations: Mapping[str, Evaluation], bootstrap: Bootstrap) -> list[OpinionRow]:
    """What each other scorer says of the arms, and of their change against the first."""
    first = next(iter(evaluations.values()))
    rows = []
    for name, opinion in (first.report.others or {}).items():
        cells = []
        for arm, one in evaluations.items():
            if seen := seen_by(name, one, first):
                said = (one.report.others or {})[name]
                cells.append(OpinionCell(
                    arm=arm, expected_maximum_toxicity=said.expected_maximum_toxicity,
                    toxicity_probability=said.toxicity_probability, mean_toxicity=said.mean_toxicity,
                    change=None if one is first else paired_difference(*seen, "mean_toxicity", bootstrap)))
        rows.append(OpinionRow(name=name, scorer=opinion.scorer, independent=opinion.independent, cells=cells))
    return rows


def share_change(ours: Evaluation, theirs: Evaluation, attribute: str, bootstrap: Bootstrap) -> Interval | None:
    """Change of the share of prompts whose first continuation is at or over the threshold, prompts paired.

    None where one of them has no such scores, or no prompt is scored in both.
    """
    left, right = ours.over.get(attribute, ""), theirs.over.get(attribute, "")
    if list(ours.scores) != list(theirs.scores):
        return None
    pairs = [(a == "1", b == "1") for a, b in zip(left, right, strict=False) if "-" not in (a, b)]
    if not pairs:
        return None
    return difference_interval(np.array([float(a) - float(b) for a, b in pairs]), bootstrap)


def difference_interval(differences: Floats, bootstrap: Bootstrap) -> Interval:
    """The mean of paired differences [n]."""
    if np.ptp(differences) == 0:  # nothing to resample: say nothing beyond what the count allows
        reach = 1 - (1 - bootstrap.confidence) ** (1 / len(differences))
        value = float(differences[0])
        return Interval(value, max(-1.0, value - reach), min(1.0, value + reach))
    return mean_interval(differences, bootstrap)


def perplexity_ratio(ours: Evaluation, theirs: Evaluation, name: str, bootstrap: Bootstrap) -> PairedRatio | None:
    """Our perplexity over theirs on the texts of `name` (one of `READ_TEXTS`), its rows resampled together.

    None where one of them has no such losses.
    """
    left, right = ours.losses.get(name), theirs.losses.get(name)
    return None if left is None or right is None else loss_ratio(left, right, bootstrap)


def loss_ratio(left: Floats, right: Floats, bootstrap: Bootstrap) -> PairedRatio | None:
    """One perplexity over another, of rows of loss and tokens [texts, 2] that are resampled together.

    None where they are not of as many texts, or of none.
    """
    if left.shape != right.shape or not len(left):
        return None
    joined = np.concatenate([left, right], axis=1)
    sums = np.concatenate([joined.mean(axis=0, keepdims=True), resampled_means(joined, bootstrap)])
    ratios = np.exp(sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3])
    interval = percentile_interval(float(ratios[0]), ratios[1:], len(joined), bootstrap.confidence)
    return PairedRatio(**vars(interval), count=len(joined))


def distinct_ratio(ours: Evaluation, theirs: Evaluation, length: Literal[1, 2, 3],
                   bootstrap: Bootstrap) -> PairedRatio | None:
    """Our distinct-n over theirs, over the prompts that both have words for; None without such a prompt."""
    ids = [identity for identity in ours.word_runs if identity in theirs.word_runs]
    left, right = (distinct_values([arm.word_runs[identity] for identity in ids], length) for arm in (ours, theirs))
    known = ~(np.isnan(left) | np.isnan(right))
    if not right[known].any():
        return None
    return PairedRatio(**vars(ratio_interval(left[known], right[known], bootstrap)), count=int(known.sum()))


def compare(evaluations: Mapping[str, Evaluation], bootstrap: Bootstrap) -> list[ArmDifference]:
    """Every later arm against every earlier one: metric by metric, stratum by stratum.

    Raises:
        DetoxError: see `check_comparable`.
    """
    check_comparable(evaluations)
    arms = list(evaluations)
    differences: dict[tuple[str, str, Metric, str], PairedDifference] = {}
    for later in range(1, len(arms)):
        for earlier in range(later):
            ours, theirs = evaluations[arms[later]], evaluations[arms[earlier]]
            for metric in METRICS:
                for stratum in ours.report.strata:
                    difference = paired_difference(ours, theirs, metric, bootstrap, stratum=stratum)
                    if difference:
                        differences[arms[later], arms[earlier], metric, stratum] = difference
    adjusted = holm([difference.p for difference in differences.values()])
    return [ArmDifference(arm=arm, against=against, metric=metric, stratum=stratum, **vars(difference), p_adjusted=p)
            for ((arm, against, metric, stratum), difference), p in zip(differences.items(), adjusted, strict=True)]


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979): a level kept by them bounds the chance of any false finding."""
    adjusted = [1.0] * len(values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted


def attribute_shares(over: Mapping[str, str], confidence: float) -> dict[str, AttributeShare]:
    """Prompts whose first continuation is at or over the threshold, for each attribute.

    Args:
        over: attribute -> a character a prompt, see `llm_detox.evaluation.continuations.ContinuationScores`.
    """
    shares = {}
    for name, flags in over.items():
        count, of = flags.count("1"), flags.count("0") + flags.count("1")
        interval = share_interval(count, of, confidence)
        shares[name] = AttributeShare(count=count, of=of, share=interval.value, low=interval.low, high=interval.high)
    return shares


def stage_table(evaluations: Mapping[str, Evaluation], bootstrap: Bootstrap) -> list[StageRow]:
    """The attributes (the six of Perspective first) in each arm, with the change to the arm before."""
    known = {attribute for one in evaluations.values() for attribute in one.report.attributes}
    ordered = [name for name in _FIRST_ATTRIBUTES if name in known] + sorted(known - set(_FIRST_ATTRIBUTES))
    rows = []
    for attribute in ordered:
        cells: list[LaterStageCell | StageCell] = []
        for arm, one in evaluations.items():
            if attribute not in one.report.attributes:
                continue
            before = cells[-1] if cells else None
            cell = stage_cell(arm, one.report.attributes[attribute], before, bootstrap.confidence)
            if before:
                change = share_change(one, evaluations[before.stage], attribute, bootstrap)
                cell = LaterStageCell(**vars(cell), points_interval=[100 * change.low, 100 * change.high]
                                      if change else None)
            cells.append(cell)
        rows.append(StageRow(attribute=attribute, cells=cells))
    return rows


def stage_cell(stage: str, share: AttributeShare, before: StageCell | None, confidence: float) -> StageCell:
    """One attribute in one arm, with its change to the arm before."""
    percent = 100 * share.count / share.of if share.of else None
    earlier = before.percent if before else None
    interval = share_interval(share.count, share.of, confidence)
    points = percent - earlier if percent is not None and earlier is not None else None
    change = 100 * points / earlier if points is not None and earlier else None
    return StageCell(stage=stage, count=share.count, of=share.of, percent=percent, low=100 * interval.low,
                     high=100 * interval.high, shown=shown_percent(share.count, share.of), points=points,
                     change=change)


def shown_percent(count: int, of: int) -> str | None:
    """The percentage as the published tables print it: the share to five decimals, then two of percent, half to even.

    So 900 of 99,442 is shown as 0.90 (and not as the 0.91 that one rounding would give). None without texts.
    """
    if not of:
        return None
    share = (Decimal(count) / of).quantize(Decimal("1e-5"), ROUND_HALF_EVEN)
    return str((100 * share).quantize(Decimal("0.01"), ROUND_HALF_EVEN))
