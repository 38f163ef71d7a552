"""How the notebooks show things: the report's own charts as pictures, tables, and offensive texts folded away."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML, SVG

from llm_detox.evaluation import charts
from llm_detox.evaluation.intervals import Bootstrap, Interval, mean_interval
from llm_detox.evaluation.report_content import ArmDifference, ArmFigures
from llm_detox.evaluation.results import EvaluationReport
from llm_detox.runs.artifacts import TrainedFolder

pd.set_option("display.max_colwidth", None)

_HEAD, _LEGEND, _MARGIN, _LABELS = 30, 24, 12, 10
_OF_CHARTS = re.compile(r"svg .+|\.(axis|grid|threshold|bar|whisker|line|time|better|c\d)")
_SIZE = re.compile(r'^<svg viewBox="0 0 ([\d.]+) ([\d.]+)"')


def picture(chart: str, title: str, legend: Sequence[str] = ()) -> SVG:
    """A chart of `llm_detox.evaluation.charts` that stands alone: with its colours, a title and a legend.

    Args:
        legend: the names of the series in their order, where the chart does not name them itself.
    """
    found = _SIZE.match(chart)
    if not found:
        raise ValueError("this is no chart of llm_detox.evaluation.charts")
    width, height = map(float, found.groups())
    top = _HEAD + (_LEGEND if legend else 0)
    marks, x = [], 0.0
    for name in legend:
        marks.append(f'<g class="{charts.colour(name, legend)}"><circle class="bar" cx="{x + 5:g}" cy="{_HEAD}" r="5"/>'
                     f'<text x="{x + 16:g}" y="{_HEAD}" dy=".35em">{escape(name)}</text></g>')
        x += 36 + 7.5 * len(name)
    whole, high = width + 2 * _MARGIN, height + top + 2 * _MARGIN
    inner = str(chart).replace("<svg ", f'<svg y="{top}" width="{width:g}" height="{height:g}" ', 1)
    return SVG(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-_MARGIN} {-_MARGIN} {whole:g} {high:g}" width="{whole:g}" '
        f'height="{high:g}" role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif" '
        f'font-size="12.5"><style>{_style()}</style><rect x="{-_MARGIN}" y="{-_MARGIN}" width="{whole:g}" '
        f'height="{high:g}" rx="8" fill="#fff"/><text y="8" font-weight="600">{escape(title)}</text>'
        f'{"".join(marks)}{inner}</svg>')


def training_curves(folders: Mapping[str, Path], figure: str, title: str) -> SVG:
    """A figure of `metrics.jsonl` over the steps of one training or several."""
    read = {name: {row["step"]: row.get(figure) for row in _lines(TrainedFolder(folder).metrics)}
            for name, folder in folders.items()}
    last = max(chain.from_iterable(read.values()))
    gap = max(1, -(-last // _LABELS))
    columns = [str(step) if step % gap == 0 else "" for step in range(1, last + 1)]
    series = {name: [steps.get(step) for step in range(1, last + 1)] for name, steps in read.items()}
    return picture(charts.curves(columns, series, below="step", width=640), title, list(series))


def intervals(reports: Mapping[str, EvaluationReport | ArmFigures], figure: str, title: str, *,
              digits: int = 3) -> SVG:
    """One figure of each arm's evaluation with its interval."""
    bars = {arm: getattr(report, figure) for arm, report in reports.items()}
    return picture(charts.interval_bars(bars, digits=digits), title)


def differences(rows: Iterable[ArmDifference], arms: Sequence[str], title: str) -> SVG:
    """Paired differences of the last arm over all prompts, see `llm_detox.evaluation.compare.compare`."""
    shown = [row for row in rows if row.arm == arms[-1] and row.stratum == "all"]
    return picture(charts.forest(sorted(shown, key=lambda row: list(arms).index(row.against)), arms), title)


def arms_table(reports: Mapping[str, EvaluationReport]) -> pd.DataFrame:
    """The arms beside each other: values with their intervals."""
    columns = {"expected_maximum_toxicity": "expected max. toxicity", "toxicity_probability": "toxicity probability",
               "mean_toxicity": "mean toxicity", "perplexity_interval": "perplexity, clean text",
               "continuation_perplexity": "perplexity of continuations"}
    rows = {arm: {title: _interval(interval) for name, title in columns.items() if (interval := getattr(report, name))}
            | {"prompts": report.prompts, "unscored": report.unscored} for arm, report in reports.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def folded(title: str, rows: Sequence[Mapping[str, Any]]) -> HTML:
    """A table behind a line to click on, for texts that may offend."""
    table = pd.DataFrame(rows).to_html(index=False, escape=True, border=0, justify="left", float_format="%.2f")
    return HTML(f"<details><summary>{escape(title)} (offensive texts: click to see them)</summary>{table}</details>")


def side_by_side(prompts: Sequence[str], answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> HTML:
    """Prompts with the answers of several models: arm -> a {"text", "toxicity"} for each prompt."""
    rows = []
    for number, prompt in enumerate(prompts):
        row: dict[str, Any] = {"prompt": prompt}
        for arm, given in answers.items():
            row |= {arm: given[number]["text"], f"{arm}, toxicity": given[number]["toxicity"]}
        rows.append(row)
    return folded(f"{len(rows)} prompts and what {' and '.join(answers)} made of them", rows)


def means(values: Mapping[str, Sequence[float | None]], title: str) -> SVG:
    """The mean of each arm's values with its 95 % interval; what could not be scored is left out."""
    known = {arm: [value for value in found if value is not None] for arm, found in values.items()}
    bootstrap = Bootstrap(samples=2000, confidence=0.95, seed=42)
    bars = {arm: mean_interval(np.array(found), bootstrap) if found else None for arm, found in known.items()}
    return picture(charts.interval_bars(bars), title)


def _interval(interval: Interval) -> str:
    digits = 1 if interval.value >= 10 else 3
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _style() -> str:
    """What the report's style sheet says about charts, in its light colours."""
    sheet = resources.files("llm_detox.evaluation").joinpath("templates", "report.css").read_text("utf-8")
    rules = re.findall(r"\s*([^{}]+?)\s*\{([^{}]*)\}", re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", sheet))
    root = next(body for selector, body in rules if selector == ":root")
    colours = dict(re.findall(r"--(\w+):\s*([^;]+);", root))
    kept = (f"{selector}{{{body.strip()}}}" for selector, body in rules if _OF_CHARTS.fullmatch(selector))
    return re.sub(r"var\(--(\w+)\)", lambda found: colours.get(found[1], found[0]), "".join(kept))
