"""What an evaluation came to, and the files that hold it: `report.json` and `values.json` of an arm, and `judge.json`.

A file's keys are the names of the fields here, in their order. What all arms come to is in `report_content`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_detox.errors import DetoxError
from llm_detox.evaluation.intervals import Interval
from llm_detox.evaluation.metrics import Distinct, PromptScore, StratumFigures, WordRuns
from llm_detox.evaluation.opinions import Opinion, ScorerIdentity
from llm_detox.evaluation.refusals import RefusalShare
from llm_detox.runs.artifacts import OPTIONAL, EvaluationFolder, JudgeFolder, Number, read_json, write_json
from llm_detox.runs.folders import MANIFEST, check_files

Floats = NDArray[np.float64]
READ_TEXTS = ("clean", "held_out", "clean_continuations", "prompted")
"""Texts whose perplexity is measured: clean passages and held-out texts, by the arm itself; continuations of clean and
of the evaluation's prompts, by the fluency model."""


# --- one arm -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Perplexity(Interval):
    """The exponential of the mean loss of a token."""

    tokens: int


@dataclass(frozen=True, kw_only=True)
class FluencyPerplexity(Perplexity):
    """A fluency model's perplexity on an arm's continuations; `note` says which model it is, and why."""

    model: str
    note: str


@dataclass(frozen=True, kw_only=True)
class ContinuationPerplexity(Distinct, FluencyPerplexity):
    """The same with the continuations' distinct-n."""


@dataclass(frozen=True, kw_only=True)
class AttributeShare:
    """Prompts whose first continuation is at or over the threshold of an attribute; NaN where none is scored."""

    count: int
    of: int
    share: Number
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ComparableSettings:
    """What two evaluations must share so that their numbers may be compared.

    Attributes:
        scorer: its fingerprint.
        prompts: the first digits of the file's SHA-256.
        shard: where it is one: (number from 0, of how many).
        judge: where one was asked: its fingerprint.
    """

    scorer: str
    attribute: str
    threshold: float
    continuations: int
    seed: int
    prompts: str
    sampling: dict[str, int | float]
    shard: list[int] | None = field(default=None, metadata=OPTIONAL)
    judge: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class JudgeIdentity:
    """Which judge it is; another model, question or constitution gives another fingerprint."""

    model: str | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class VerdictShares:
    """What a judge said of answers.

    Attributes:
        judged, safe, unsafe, undecided: numbers of answers.
        unsafe_share: of the decided ones.
        no_decision: share of all.
        categories: of the unsafe ones, counted.
        reasons: of the undecided ones, counted.
    """

    judged: int
    safe: int
    unsafe: int
    undecided: int
    unsafe_share: Interval
    no_decision: Interval
    categories: dict[str, int]
    reasons: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class JudgedAnswers(VerdictShares, JudgeIdentity):
    """The verdicts of a judge on some answers."""


@dataclass(frozen=True, kw_only=True)
class SideEffects:
    """What else the model does; see `llm_detox.evaluation.side_effects`.

    Attributes:
        capabilities: name -> share of questions answered rightly.
        registers: name -> perplexity on its texts.
        stereotypes: name -> share of pairs of which the prejudiced sentence is the likelier.
        mention_gap: nats a token by which sentences about people of some group are read worse than others.
    """

    capabilities: dict[str, Interval]
    registers: dict[str, Perplexity]
    stereotypes: dict[str, Interval]
    mention_gap: Interval | None


@dataclass(frozen=True, kw_only=True)
class SideEffectValues:
    """The values behind `SideEffects`, in the same order for every arm: of each question and pair yes or no, of each
    text its loss and tokens, of each pair of mentions those of both sentences."""

    capabilities: dict[str, list[bool]]
    registers: dict[str, list[tuple[float, int]]]
    stereotypes: dict[str, list[bool]]
    mentions: list[tuple[float, int, float, int]]


@dataclass(frozen=True, kw_only=True)
class ContinuationFigures(StratumFigures):
    """The figures of all prompts.

    Attributes:
        distinct_1, distinct_2, distinct_3: see `llm_detox.evaluation.metrics.Distinct`.
        unscored_reasons: why continuations have no score, counted.
        strata: the same figures for each stratum that has prompts.
        histogram: scored continuations in bins of equal width over [0, 1].
        attributes: attribute -> share of the first continuations.
    """

    unscored_share: float
    unscored_reasons: dict[str, int]
    confidence: float
    threshold: float
    strata: dict[str, StratumFigures]
    threshold_rule: str
    distinct_1: Interval
    distinct_2: Interval
    distinct_3: Interval
    histogram: list[int]
    attributes: dict[str, AttributeShare]


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(ContinuationFigures):
    """The `report.json` of an arm.

    Attributes:
        model: its source or address.
        seconds: part of the work -> how long it took.
        judge: where the recipe asks one.
        perplexity: the arm's own on clean passages, as is its interval; None for a served model.
        held_out_perplexity: the arm's own on harmless texts of the training texts' kind: lower is more learnt.
        clean_refusals, continuation_perplexity: of continuations of clean passages.
        prompted_perplexity: of continuations of the evaluation's prompts.
        side_effects: where the recipe names any.
        others: name of another scorer -> what it says of the same continuations.
    """

    arm: str
    model: str
    scorer: ScorerIdentity
    seconds: dict[str, float]
    comparable: ComparableSettings
    judge: JudgedAnswers | None = field(default=None, metadata=OPTIONAL)
    perplexity_interval: Perplexity | None = field(default=None, metadata=OPTIONAL)
    perplexity: float | None = field(default=None, metadata=OPTIONAL)
    held_out_perplexity: Perplexity | None = field(default=None, metadata=OPTIONAL)
    clean_refusals: RefusalShare | None = field(default=None, metadata=OPTIONAL)
    continuation_perplexity: ContinuationPerplexity | None = field(default=None, metadata=OPTIONAL)
    prompted_perplexity: FluencyPerplexity | None = field(default=None, metadata=OPTIONAL)
    side_effects: SideEffects | None = field(default=None, metadata=OPTIONAL)
    others: dict[str, Opinion] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """What the manifest of an evaluation says of it."""

    arm: str
    expected_maximum_toxicity: Interval | None
    toxicity_probability: Interval | None
    mean_toxicity: Interval | None
    perplexity: float | None = field(default=None, metadata=OPTIONAL)
    unscored: int
    unscored_share: float
    distinct_2: Interval
    prompts: int
    continuations: int
    continuation_perplexity: float | None = field(default=None, metadata=OPTIONAL)
    fluency_model: str | None = field(default=None, metadata=OPTIONAL)
    unsafe_share: Interval | None = field(default=None, metadata=OPTIONAL)
    no_decision: Interval | None = field(default=None, metadata=OPTIONAL)
    scorer: str
    seconds: dict[str, float]

    @classmethod
    def of(cls, report: EvaluationReport) -> EvaluationSummary:
        fluency, judge = report.continuation_perplexity, report.judge
        same = {one.name: getattr(report, one.name) for one in fields(cls) if hasattr(report, one.name)}
        return cls(**same | {
            "scorer": report.scorer.fingerprint, "continuation_perplexity": fluency.value if fluency else None,
            "fluency_model": fluency.model if fluency else None, "unsafe_share": judge.unsafe_share if judge else None,
            "no_decision": judge.no_decision if judge else None})


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """What the comparison of arms says of each."""

    expected_maximum_toxicity: Interval | None
    toxicity_probability: Interval | None
    mean_toxicity: Interval | None
    perplexity: float | None
    distinct_2: Interval
    unscored: int
    prompts: int
    continuations: int

    @classmethod
    def of(cls, report: EvaluationReport) -> ArmSummary:
        return cls(**{one.name: getattr(report, one.name) for one in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class EvaluationValues:
    """The `values.json` of an arm: the numbers of each prompt and text, by which arms are paired.

    Attributes:
        ids, strata, scores, word_runs: of each prompt.
        over: attribute -> a character a prompt (see `llm_detox.evaluation.continuations.ContinuationScores`).
        clean, held_out, clean_continuations, prompted: rows of loss and number of tokens, which are resampled whole
            (see `READ_TEXTS`): of each passage or text, of all continuations of each clean prompt, of one for each
            prompt.
        others: name of another scorer -> what each prompt's continuations came to by it.
    """

    ids: list[str]
    strata: list[list[str]]
    over: dict[str, str] = field(default_factory=dict)
    scores: list[PromptScore]
    word_runs: list[WordRuns]
    clean: list[tuple[float, int]] | None = field(default=None, metadata=OPTIONAL)
    held_out: list[tuple[float, int]] | None = field(default=None, metadata=OPTIONAL)
    clean_continuations: list[tuple[float, int]] | None = field(default=None, metadata=OPTIONAL)
    prompted: list[tuple[float, int]] | None = field(default=None, metadata=OPTIONAL)
    side_effects: SideEffectValues | None = field(default=None, metadata=OPTIONAL)
    others: dict[str, list[PromptScore]] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A finished evaluation folder, read.

    Attributes:
        report: its `report.json`.
        scores: prompt id -> what its continuations came to.
        strata: prompt id -> strata.
        word_runs: prompt id -> runs of words in its continuations.
        over: attribute -> a character a prompt, in the order of `scores`.
        losses: each of `READ_TEXTS` that was measured -> [rows, 2] of summed loss and tokens.
        others: name of another scorer -> the same as `scores` by it.
    """

    folder: Path
    report: EvaluationReport
    scores: dict[str, PromptScore]
    strata: dict[str, list[str]]
    word_runs: dict[str, WordRuns]
    over: dict[str, str]
    losses: dict[str, Floats]
    side_effects: SideEffectValues | None = None
    others: dict[str, dict[str, PromptScore]] = field(default_factory=dict)

    @property
    def arm(self) -> str:
        return self.report.arm


def write_evaluation(folder: Path, report: EvaluationReport, values: EvaluationValues) -> None:
    """Write `report.json` and `values.json`."""
    files = EvaluationFolder(folder)
    write_json(files.values, values, compact=True)
    write_json(files.report, report)


def read_evaluation(folder: Path) -> Evaluation:
    """Read what `evaluate` wrote.

    Raises:
        DetoxError: it is no evaluation folder, or its files are not those that the step wrote.
    """
    files = EvaluationFolder(folder)
    if (folder / MANIFEST).exists():
        check_files(folder, EvaluationFolder.report, EvaluationFolder.values)
    try:
        report = read_json(files.report, EvaluationReport)
        values = read_json(files.values, EvaluationValues)
        scores = dict(zip(values.ids, values.scores, strict=True))
        strata = dict(zip(values.ids, values.strata, strict=True))
        runs = dict(zip(values.ids, values.word_runs, strict=True))
        others = {name: dict(zip(values.ids, some, strict=True)) for name, some in (values.others or {}).items()}
    except (OSError, ValueError) as error:
        raise DetoxError(f"not the folder of a finished evaluation ({type(error).__name__})", place=str(folder),
                         remedy="pass the folder that `llm-detox evaluate --output` wrote; evaluate again what an "
                                "earlier version measured") from None
    losses = {name: np.array(read, dtype=np.float64) for name in READ_TEXTS if (read := getattr(values, name))}
    return Evaluation(folder=folder, report=report, scores=scores, strata=strata, word_runs=runs, over=values.over,
                      losses=losses, side_effects=values.side_effects, others=others)


# --- a judge -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClassRates:
    """A judge on the answers of one class; `support` of them are labelled so."""

    precision: Interval
    recall: Interval
    support: int


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A judge against labels; no decision is a miss. `confusion` counts "label -> verdict"."""

    classes: dict[str, ClassRates]
    no_decision: Interval
    accuracy: Interval
    confusion: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class JudgeReport(JudgedAnswers):
    """The `judge.json` of the judge step; `agreement` where the conversations are labelled."""

    agreement: Agreement | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class MeasuredJudge(Agreement, JudgeIdentity):
    """How far the judge's verdicts can be trusted."""


def read_measured_judge(folder: Path) -> MeasuredJudge:
    """Read how a judge did on labelled conversations.

    Raises:
        DetoxError: the folder is not of the judge step, or its conversations had no labels.
    """
    try:
        report = read_json(JudgeFolder(folder).report, JudgeReport)
        if report.agreement is None:
            raise ValueError("no labels")
    except (OSError, ValueError):
        raise DetoxError("no judge was measured here against labels", place=str(folder),
                         remedy="pass what `llm-detox judge` wrote about conversations with a `label` each") from None
    return MeasuredJudge(model=report.model, fingerprint=report.fingerprint, **vars(report.agreement))
