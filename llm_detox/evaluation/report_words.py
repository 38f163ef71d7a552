"""The report in words: what was tried, what changed, and how far to trust it."""

from __future__ import annotations

from llm_detox.evaluation.intervals import Interval
from llm_detox.evaluation.report_content import ArmDifference, Report
from llm_detox.evaluation.side_effects import worst_register
from llm_detox.runs.artifacts import DETOXIFIED, FILTERED, RAW

_VERDICTS = {"pass": "passes", "fail": "fails", "not enough data": "cannot decide"}


def in_words(report: Report) -> list[str]:
    """A paragraph each on what was tried, what changed, and how far to trust it."""
    return [_tried(report), " ".join([_toxicity(report), *_rewriting(report), *_cost(report)]), _trust(report)]


def _tried(report: Report) -> str:
    figures, names = report.arms[report.last], list(report.arms)
    arms = f"The arms {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"The arm {names[0]}"
    return (f"{arms} continued the same {figures.prompts} prompts, {figures.continuations // figures.prompts} times "
            f"each. {report.scorer.name} scored the continuations; it trained none of the models.")


def _toxicity(report: Report) -> str:
    row = _difference(report, report.last, report.first)
    if row is None or report.headline is None:
        return f"There is nothing to hold {report.last} against."
    change = report.headline
    moved = _moved(row, "fell", "rose")
    if moved is None:
        return (f"Between {report.first} and {report.last} mean toxicity did not change by more than chance allows: "
                f"{change.before:.3f} and {change.after:.3f}.")
    return (f"From {report.first} to {report.last} mean toxicity {moved} from {change.before:.3f} to "
            f"{change.after:.3f}, by {abs(change.value):.0f} % (interval {change.low:+.0f} to {change.high:+.0f} %).")


def _rewriting(report: Report) -> list[str]:
    """What training on the rewritten text did in place of the raw and of the filtered, where the arms are there."""
    others = {RAW: "trained on the raw text", FILTERED: "on those of its lines that need no rewriting"}
    rows = [(name, row) for arm, name in others.items() if (row := _difference(report, DETOXIFIED, arm))]
    if not rows:
        return []
    said = [f"{_moved(row, 'less toxic than', 'more toxic than') or 'as toxic, as far as these prompts can tell, as'} "
            f"{name} (mean toxicity {row.value:+.3f} [{row.low:+.3f}, {row.high:+.3f}])" for name, row in rows]
    return [f"Trained on the rewritten text the model is {', and '.join(said)}.", *_learnt(report)]


def _learnt(report: Report) -> list[str]:
    """How each arm reads harmless texts of the corpus, where some are held out."""
    read = {arm: figures.held_out_perplexity for arm, figures in report.arms.items()}
    values = [f"{arm} {interval.value:.1f}" for arm, interval in read.items() if interval]
    return [f"Its perplexity on harmless texts of this kind, which no arm was trained on, tells what was learnt of "
            f"them: {', '.join(values)}."] if values else []


def _cost(report: Report) -> list[str]:
    figures = report.arms[report.last]
    said = []
    if ratio := figures.clean_ratio:
        said.append(f"Its perplexity on clean text is {ratio.value:.3f} times {report.first}'s.")
    if worst := worst_register(report.side_effects, report.last):
        name, change = worst
        said.append(f"Of the other kinds of text it reads {name} worst against before: {change.value:.3f} times.")
    return said


def _trust(report: Report) -> str:
    conditions = report.verdict.conditions
    broken = [one for one in conditions if one.outcome == report.verdict.verdict]
    decided = (f"all {len(conditions)} conditions hold, even at the worse end of their intervals"
               if report.verdict.verdict == "pass" else f"{len(broken)} of {len(conditions)} conditions are to blame")
    return (f"The gate {_VERDICTS[report.verdict.verdict]}: {decided}. {_opinions(report)}What it says is about these "
            "prompts, in their language, as scorers see them; texts that they get wrong are in every figure. Read some "
            "continuations before you believe a number.")


def _opinions(report: Report) -> str:
    """Whether the other scorers see the last arm's change, too; "" where there is none."""
    said = [f"{row.name}{'' if row.independent else ', which took part in training,'} "
            f"{_moved(cell.change, 'sees mean toxicity fall', 'sees mean toxicity rise') or 'sees no clear change'}"
            for row in report.opinions for cell in row.cells if cell.arm == report.last and cell.change]
    return f"Other scorers of the same texts: {'; '.join(said)}. " if said else ""


def _difference(report: Report, arm: str, against: str) -> ArmDifference | None:
    return next((row for row in report.differences if (row.arm, row.against, row.metric, row.stratum)
                 == (arm, against, "mean_toxicity", "all")), None)


def _moved(interval: Interval, down: str, up: str) -> str | None:
    """Which way an interval that is clear of zero points."""
    return down if interval.high < 0 else up if interval.low > 0 else None
