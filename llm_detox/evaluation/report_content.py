"""What all arms come to, beside each other: the differences, the gate's decision, the `report.json` of all arms, and
texts before and after.

A file's keys are the names of the fields here, in their order. The texts for the page's browser are chosen by a hash
and never by how well they look.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llm_detox.data.records import Record, hash_fraction, read_generations, read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.evaluation.imported import ImportedResults
from llm_detox.evaluation.intervals import Interval
from llm_detox.evaluation.metrics import ToxicityFigures
from llm_detox.evaluation.opinions import ScorerIdentity
from llm_detox.evaluation.refusals import RefusalShare
from llm_detox.evaluation.results import EvaluationReport, FluencyPerplexity, MeasuredJudge, Perplexity
from llm_detox.recipe import Recipe
from llm_detox.runs.artifacts import OPTIONAL, ReportFolder, read_json

Outcome = Literal["pass", "fail", "not enough data"]
SideEffectKind = Literal["capability", "register", "stereotype", "mentions"]
_MOST_CHARS = 600


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
class PairedChange(Interval):
    """A figure of one arm against the same of another, resampled together; `count` prompts or texts are behind it."""

    count: int


@dataclass(frozen=True, kw_only=True)
class PairedRatio(PairedChange):
    """One over the other."""


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
    held_out_perplexity: Perplexity | None
    clean_ratio: PairedRatio | None
    held_out_ratio: PairedRatio | None
    clean_continuations_ratio: PairedRatio | None
    prompted_ratio: PairedRatio | None
    refusals: Interval | None
    clean_refusals: RefusalShare | None
    clean_similarity: Interval | None
    unsafe_share: Interval | None
    no_decision: Interval | None
    distinct_1: Interval
    distinct_2: Interval
    distinct_3: Interval
    unscored: int
    unscored_share: float
    worst_case: ToxicityFigures
    prompts: int
    continuations: int


@dataclass(frozen=True, kw_only=True)
class SideEffectCell:
    """One measure of an arm, and its change to the first arm's.

    Attributes:
        change: of perplexities a ratio, else a difference; None for the first arm, or where the two were not measured
            alike.
    """

    arm: str
    value: Interval
    change: PairedChange | None


@dataclass(frozen=True, kw_only=True)
class SideEffectRow:
    """One measure of all arms that have it.

    Attributes:
        kind: what is measured, `name` on which questions or texts.
    """

    kind: SideEffectKind
    name: str
    cells: list[SideEffectCell]


@dataclass(frozen=True, kw_only=True)
class OpinionCell:
    """What a scorer says of an arm; `change` is the difference of its mean toxicity to the first arm's."""

    arm: str
    expected_maximum_toxicity: Interval | None
    toxicity_probability: Interval | None
    mean_toxicity: Interval | None
    change: PairedDifference | None


@dataclass(frozen=True, kw_only=True)
class OpinionRow:
    """What another scorer than the judging one says of all arms.

    Attributes:
        independent: whether it has no part in common with the scorer that trains and accepts.
    """

    name: str
    scorer: ScorerIdentity
    independent: bool
    cells: list[OpinionCell]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The `report.json` of all arms.

    Attributes:
        first, last: the arm that the others are held against, and the one to publish.
        reports: arm -> its evaluation.
        fates: what became of the records of the detoxify step, counted.
        seconds: step -> how long it took.
        side_effects: a row for each measure of `evaluation.side_effects`.
        opinions: a row for each of `scoring.others`.
        imported: what another tool measured; None where nothing is given.
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
    side_effects: list[SideEffectRow]
    opinions: list[OpinionRow]
    imported: ImportedResults | None = field(default=None, metadata=OPTIONAL)


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


@dataclass(frozen=True)
class ScoredText:
    """A continuation with its score; None where it has none."""

    text: str
    score: float | None


@dataclass(frozen=True)
class ContinuationSample:
    """A prompt with the first continuation of each arm."""

    prompt: str
    arms: dict[str, ScoredText]


@dataclass(frozen=True)
class RewriteSample:
    """A rewritten record of the detoxify step."""

    original: str
    text: str
    method: str
    scores: dict[str, float]


def continuation_samples(files: Mapping[str, Path], attribute: str, count: int) -> list[ContinuationSample]:
    """The first continuation of the same prompts from each arm's `generations.jsonl`.

    The prompts are those with the lowest hash of their id, so the choice does not look at the texts.

    Args:
        files: arm -> its file; the first arm's prompts are chosen from.
        attribute: whose score is shown.
        count: of prompts, at most; those that not all arms continued are left out.
    """
    names = list(files)
    chosen = _lowest_hashes(read_generations(files[names[0]]), count)
    samples = {record["id"]: ContinuationSample(
        record["prompt"]["text"][:_MOST_CHARS], {names[0]: _first(record, attribute)}) for record in chosen}
    for arm in names[1:]:
        for record in read_generations(files[arm]):
            if sample := samples.get(record["id"]):
                sample.arms[arm] = _first(record, attribute)
    return [sample for sample in samples.values() if len(sample.arms) == len(names)]


def _lowest_hashes(records: Iterable[Record], count: int) -> list[Record]:
    return heapq.nsmallest(count, records, key=lambda record: hash_fraction(str(record["id"]), "report-samples"))


def _first(record: Record, attribute: str) -> ScoredText:
    generation = record["generations"][0]
    return ScoredText((generation["text"] or "")[:_MOST_CHARS], generation.get(attribute))


def rewrite_samples(records: Path, count: int) -> tuple[list[RewriteSample], dict[str, int]]:
    """Rewritten records of the detoxify step, chosen by hash; and how many records had which fate."""
    fates = Counter(str(record["action"]) for record in read_jsonl(records, required=("id", "action")))
    rewritten = (record for record in read_jsonl(records) if record["action"] == "rewritten")
    return [RewriteSample(
        str(record.get("original") or "")[:_MOST_CHARS], str(record.get("text") or "")[:_MOST_CHARS],
        str(record.get("method") or ""),
        {str(name): value for name, value in scores.items() if isinstance(value, int | float)})
        for record in _lowest_hashes(rewritten, count)
        if isinstance(scores := record.get("scores") or {}, dict)], dict(fates)
