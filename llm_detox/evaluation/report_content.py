"""What all arms come to, beside each other: the differences, the gate's decision, and the `report.json` of all arms.

A file's keys are the names of the fields here, in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_detox.errors import DetoxError
from llm_detox.evaluation.intervals import Interval
from llm_detox.evaluation.metrics import RefusalShare, ToxicityFigures
from llm_detox.evaluation.results import EvaluationReport, FluencyPerplexity, MeasuredJudge, ScorerIdentity
from llm_detox.recipe import Recipe
from llm_detox.runs.artifacts import ReportFolder, read_json

Outcome = Literal["pass", "fail", "not enough data"]


@dataclass(frozen=True, kw_only=True)
class PairedDifference(Interval):
    """One arm minus another over the prompts that both have a score for; negative is less toxic.

    Attributes:
        prompts: how many.
        effect: Cohen's d of the paired differences, their mean over their standard deviation; None where that is 0.
        p: of the two-sided paired t test.
    """

    prompts: int
    effect: float | None
    p: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared with what."""

    arm: str
    against: str
    metric: str
    stratum: str


@dataclass(frozen=True, kw_only=True)
class ArmDifference(PairedDifference, Comparison):
    """A row of the comparison; `p_adjusted` is for as many comparisons as there are rows."""

    p_adjusted: float


@dataclass(frozen=True, kw_only=True)
class StageCell:
    """An attribute in one arm: share of the first continuations at or over the threshold, in percent.

    Attributes:
        percent, low, high: with the Wilson interval; `percent` is None where nothing is scored.
        shown: as the published tables print it.
        points: difference to the arm before in percentage points; None for the first arm.
        change: the same in percent of that arm's share; None where it had none.
    """

    stage: str
    count: int
    of: int
    percent: float | None
    low: float
    high: float
    shown: str | None
    points: float | None
    change: float | None


@dataclass(frozen=True, kw_only=True)
class LaterStageCell(StageCell):
    """With the interval of `points`, prompts paired; None where they are not the same prompts."""

    points_interval: list[float] | None


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """An attribute in all arms that have it."""

    attribute: str
    cells: list[LaterStageCell | StageCell]


@dataclass(frozen=True)
class Condition:
    """One condition of the gate and how it came out."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """Fail where any condition failed, else not enough data where any could not be decided, else pass.

    Attributes:
        verdict: the decision on `arm`.
        reasons: of the conditions that made it.
    """

    verdict: Outcome
    arm: str
    reasons: list[str]
    conditions: list[Condition]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """Mean toxicity of the first and the last arm, and the difference in percent of the first's."""

    before: float
    after: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ArmFigures:
    """A row of the table of arms; None is what was not measured."""

    expected_maximum_toxicity: Interval | None
    toxicity_probability: Interval | None
    mean_toxicity: Interval | None
    perplexity: float | None
    continuation_perplexity: float | None
    prompted_perplexity: FluencyPerplexity | None
    clean_ratio: Interval | None
    clean_continuations_ratio: Interval | None
    prompted_ratio: Interval | None
    refusals: Interval | None
    clean_refusals: RefusalShare | None
    clean_similarity: Interval | None
    unsafe_share: Interval | None
    no_decision: Interval | None
    distinct_1: float
    distinct_2: float
    distinct_3: float
    unscored: int
    unscored_share: float
    worst_case: ToxicityFigures
    prompts: int
    continuations: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """The `report.json` of all arms.

    Attributes:
        first, last: the arm that the others are held against, and the one to publish.
        reports: arm -> its evaluation.
        fates: what became of the records of the detoxify step, counted.
        seconds: step -> how long it took.
    """

    name: str
    description: str
    first: str
    last: str
    verdict: GateDecision
    headline: Headline | None
    reports: dict[str, EvaluationReport]
    arms: dict[str, ArmFigures]
    differences: list[ArmDifference]
    stages: list[StageRow]
    fates: dict[str, int]
    seconds: dict[str, float]
    versions: dict[str, str]
    recipe: Recipe
    threshold: float
    confidence: float
    scorer: ScorerIdentity
    judge: MeasuredJudge | None


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """What the manifest of a report says of it; `html` is the name of the page."""

    verdict: Outcome
    reasons: list[str]
    arms: dict[str, ArmFigures]
    html: str


def read_report(folder: Path) -> Report:
    """Read what `write_report` wrote.

    Raises:
        DetoxError: it is no folder of a report.
    """
    try:
        return read_json(ReportFolder(folder).report, Report)
    except (OSError, ValueError) as error:
        raise DetoxError(f"not the folder of a report ({type(error).__name__})", place=str(folder),
                         remedy="pass the folder that `llm-detox report --output` wrote") from None
