"""The report as people read it: one offline HTML page, the same as Markdown, and a model card in the Hub's format."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llm_detox.evaluation import charts
from llm_detox.evaluation.intervals import Interval
from llm_detox.evaluation.metrics import METRICS
from llm_detox.evaluation.report_content import Report
from llm_detox.evaluation.results import ContinuationPerplexity, Perplexity
from llm_detox.evaluation.samples import ContinuationSample, RewriteSample
from llm_detox.progress import visible
from llm_detox.runs.artifacts import plain

TEMPLATES = Path(__file__).parent / "templates"
_TITLES = {"expected_maximum_toxicity": "Expected maximum toxicity", "toxicity_probability": "Toxicity probability",
           "mean_toxicity": "Mean toxicity"}


@dataclass(frozen=True)
class _Charts:
    """The page's plots; None is one without figures."""

    colours: dict[str, str]
    metrics: dict[str, Markup]
    survival: Markup
    forest: Markup | None
    perplexity: Markup | None
    continuations: Markup | None
    timings: Markup | None


class _Measure(TypedDict):
    """One entry of the card's `model-index`."""

    type: str
    name: str
    value: float


def render_page(report: Report, samples: Sequence[ContinuationSample], rewrites: Sequence[RewriteSample]) -> str:
    """The HTML page: no request leaves it, and every text in it is escaped."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, finalize=_visible_text)
    environment.filters["pretty"] = lambda value: json.dumps(plain(value), indent=2, ensure_ascii=False)
    return environment.get_template("report.html.jinja").render(
        **vars(report), samples=samples, rewrites=rewrites, charts=_charts(report), extra=_extra_columns(report))


def render_markdown(report: Report) -> str:
    """The page's figures as Markdown."""
    return _from_markdown_template("report.md.jinja", report)


def render_model_card(report: Report) -> str:
    """The card of the last arm, with the results of all arms: YAML front matter (`model-index`), then Markdown."""
    model = report.recipe.model.source
    is_hub_id = "://" not in model and not model.startswith((".", "/", "~"))  # only such a one may stand here
    front = {
        "library_name": "transformers", "pipeline_tag": "text-generation",
        **({"base_model": model} if is_hub_id else {}), "tags": ["detoxification", "llm-detox"],
        "model-index": [{"name": f"{report.recipe.name}-{report.last}", "results": [{
            "task": {"type": "text-generation", "name": "Text generation"},
            "dataset": {"type": "allenai/real-toxicity-prompts",
                        "name": f"RealToxicityPrompts ({report.arms[report.last].prompts} prompts)"},
            "metrics": _measures(report)}]}]}
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{visible(text)}---\n\n{_from_markdown_template('model_card.md.jinja', report)}"


def _measures(report: Report) -> list[_Measure]:
    evaluation = report.reports[report.last]
    measures: list[_Measure] = [
        {"type": metric, "name": f"{_TITLES[metric]} ({report.scorer.name})", "value": round(interval.value, 4)}
        for metric in METRICS if (interval := evaluation.metric(metric))]
    if evaluation.perplexity is not None:
        measures.append({"type": "perplexity", "name": "Perplexity on clean text",
                         "value": round(evaluation.perplexity, 2)})
    return measures


def _from_markdown_template(template: str, report: Report) -> str:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, autoescape=False, finalize=_markdown_text)  # noqa: S701 - Markdown
    environment.filters["interval"] = _interval
    return environment.get_template(template).render(**vars(report), titles=_TITLES)


def _visible_text(value: object) -> object:
    """Texts with their control and direction characters written out; what is HTML already stays HTML."""
    return type(value)(visible(value)) if isinstance(value, str) else value


def _markdown_text(value: object) -> object:
    """A text that is neither HTML nor a table's column in Markdown, whatever it contains."""
    if not isinstance(value, str):
        return value
    return visible(html.escape(value, quote=False)).replace("|", "\\|").replace("\n", " ")


def _interval(interval: Interval | None, digits: int = 3, factor: float = 1.0) -> str:
    """`0.123 [0.100, 0.150]`; a dash for what was not measured."""
    if interval is None or not interval.known:
        return "-"
    value, low, high = (f"{factor * part:.{digits}f}" for part in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _extra_columns(report: Report) -> list[tuple[str, str, str]]:
    """Further columns of the arms' table, of which some arm has figures: heading, measure, form of its numbers."""
    columns = [("perplexity of continuations, these prompts", "prompted_perplexity", "%.1f"),
               (f"perplexity over {report.first}'s, clean text", "clean_ratio", "%.3f"),
               ("the same, continuations of clean prompts", "clean_continuations_ratio", "%.3f"),
               ("the same, continuations of these prompts", "prompted_ratio", "%.3f"),
               ("refusals, these prompts", "refusals", "%.3f"), ("refusals, clean prompts", "clean_refusals", "%.3f"),
               (f"similarity to {report.first}, clean prompts", "clean_similarity", "%.2f"),
               ("unsafe, says the judge", "unsafe_share", "%.3f"), ("no decision", "no_decision", "%.3f")]
    return [column for column in columns if any(getattr(figures, column[1]) for figures in report.arms.values())]


def _charts(report: Report) -> _Charts:
    arms = list(report.reports)
    rows = sorted((row for row in report.differences if row.arm == report.last and row.stratum == "all"),
                  key=lambda row: arms.index(row.against))
    own: dict[str, Perplexity | None] = {arm: one.perplexity_interval for arm, one in report.reports.items()}
    fluency: dict[str, ContinuationPerplexity | None] = {
        arm: one.continuation_perplexity for arm, one in report.reports.items()}
    return _Charts(
        colours={arm: charts.colour(arm, arms) for arm in arms},
        metrics={metric: charts.interval_bars({arm: one.metric(metric) for arm, one in report.reports.items()})
                 for metric in METRICS},
        survival=charts.survival({arm: one.histogram for arm, one in report.reports.items()}, report.threshold),
        forest=charts.forest(rows, arms) if rows else None,
        perplexity=charts.interval_bars(own, digits=1) if all(own.values()) else None,
        continuations=charts.interval_bars(fluency, digits=1) if all(fluency.values()) else None,
        timings=charts.timings(report.seconds) if report.seconds else None)
