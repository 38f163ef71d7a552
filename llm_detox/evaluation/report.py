"""The report of an experiment: the arms compared, the gate's decision, and the files that say so.

People read it as one offline HTML page, as Markdown, and as a model card in the Hub's format.
"""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import TypedDict

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llm_detox import __version__
from llm_detox.data.records import read_jsonl
from llm_detox.errors import DetoxError, UsageError
from llm_detox.evaluation import charts
from llm_detox.evaluation.compare import compare, opinion_rows, perplexity_ratio, stage_table
from llm_detox.evaluation.gate import decide_gate
from llm_detox.evaluation.imported import HARNESS, ImportedResults, read_harness_results
from llm_detox.evaluation.intervals import Bootstrap, Floats, Interval, mean_interval
from llm_detox.evaluation.metrics import METRICS
from llm_detox.evaluation.report_content import (
    ArmDifference,
    ArmFigures,
    ContinuationSample,
    Headline,
    PairedRatio,
    Report,
    ReportSummary,
    RewriteSample,
    continuation_samples,
    rewrite_samples,
)
from llm_detox.evaluation.report_words import in_words
from llm_detox.evaluation.results import (
    ContinuationPerplexity,
    Evaluation,
    EvaluationReport,
    MeasuredJudge,
    Perplexity,
    read_evaluation,
    read_measured_judge,
)
from llm_detox.evaluation.side_effects import SIDE_EFFECT_TITLES, side_effect_rows, worst_register
from llm_detox.evaluation.tracking import report_digest, track_report
from llm_detox.progress import say, visible
from llm_detox.recipe import Recipe
from llm_detox.runs.artifacts import EvaluationFolder, ReportFolder, plain, write_json
from llm_detox.runs.folders import read_manifest, step_folder

TEMPLATES = Path(__file__).parent / "templates"
_TITLES = {"expected_maximum_toxicity": "Expected maximum toxicity", "toxicity_probability": "Toxicity probability",
           "mean_toxicity": "Mean toxicity"}
_SAMPLES, _REWRITES = 40, 24
_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "numpy", "caikit", "caikit-nlp", "vllm")


def write_report(recipe: Recipe, *, evaluations: Mapping[str, Path], records: Path | None,
                 steps: Mapping[str, Path], output: Path, judge: Path | None = None,
                 harness: Sequence[tuple[str, Path]] = ()) -> ReportSummary:
    """Compare the arms, decide on the last one, and write `report.html`, `report.md`, `report.json`, `model_card.md`.

    Args:
        evaluations: arm -> folder that `evaluate` wrote, the base first and the arm to publish last.
        records: `records.jsonl` of the detoxify step, for the rewrites; or None.
        steps: name -> finished step folder, for timings.
        output: the folder to write.
        judge: what the judge step wrote about labelled conversations: how far the judge's verdicts can be trusted.
        harness: arm and results of lm-evaluation-harness about it, to show beside ours.

    Raises:
        DetoxError: no evaluation, evaluations that were not measured alike, another judge than the one that they
            asked, results that are none or of an arm that is not here, or an MLflow server that does not take it.
    """
    if not evaluations:
        raise DetoxError("there is no evaluation to report", remedy="evaluate at least the base and one other arm")
    if strange := [arm for arm, _ in harness if arm not in evaluations]:
        raise UsageError(f"results of {strange[0]}, which is no arm of the report", place="--lm-eval",
                         remedy=f"the arms are {', '.join(evaluations)}")
    inputs = {**evaluations, **{name: path for name, path in (("records", records), ("judge", judge)) if path},
              **{f"{HARNESS} {number}": path for number, (_, path) in enumerate(harness)}}
    with step_folder(output, "report", settings=recipe.settings("evaluation", "gate"), inputs=inputs) as folder:
        arms = {arm: read_evaluation(path) for arm, path in evaluations.items()}
        rewrites, fates = rewrite_samples(records, _REWRITES) if records else ([], {})
        seconds = {name: float(read_manifest(path)["seconds"]) for name, path in steps.items()}
        report = build_report(recipe, arms, fates=fates, seconds=seconds,
                              judge=_measured_judge(judge, arms) if judge else None,
                              imported=read_harness_results(harness))
        samples = continuation_samples({arm: EvaluationFolder(one.folder).generations for arm, one in arms.items()},
                                       report.scorer.attribute, _SAMPLES)
        files = ReportFolder(folder.path)
        files.page.write_text(render_page(report, samples, rewrites), "utf-8")
        files.markdown.write_text(render_markdown(report), "utf-8")
        files.model_card.write_text(render_model_card(report), "utf-8")
        write_json(files.report, report)
        track_report(report, files, report_digest(recipe, inputs))
        summary = ReportSummary(verdict=report.verdict.verdict, reasons=report.verdict.reasons, arms=report.arms,
                                html=ReportFolder.page)
        folder.finish(summary)
        say(f"verdict on {report.last}: {summary.verdict}")
        for reason in summary.reasons:
            say(f"  {reason}")
    return summary


def build_report(recipe: Recipe, arms: Mapping[str, Evaluation], *, fates: dict[str, int], seconds: dict[str, float],
                 judge: MeasuredJudge | None, imported: ImportedResults | None = None) -> Report:
    """Everything that the page, the JSON and the model card show, without sample texts.

    Args:
        arms: in the order of the experiment.
        fates, seconds, judge, imported: see `llm_detox.evaluation.report_content.Report`.
    """
    bootstrap = Bootstrap.of(recipe.evaluation, recipe.seed)
    names = list(arms)
    first, last = names[0], names[-1]
    differences = compare(arms, bootstrap)
    similarity = _clean_similarity(recipe.detoxify.similarity_model, arms, bootstrap)
    return Report(
        name=recipe.name, description=recipe.description, first=first, last=last,
        verdict=decide_gate(recipe.gate, arms, bootstrap),
        headline=_headline([row for row in differences if (row.arm, row.against) == (last, first)],
                           arms[first].report, arms[last].report),
        reports={arm: one.report for arm, one in arms.items()},
        arms={arm: _figures(one, arms[first], similarity.get(arm), bootstrap) for arm, one in arms.items()},
        differences=differences, stages=stage_table(arms, bootstrap), fates=fates, seconds=seconds,
        versions=_versions(), recipe=recipe, threshold=recipe.evaluation.toxic_threshold,
        confidence=recipe.evaluation.confidence, scorer=arms[first].report.scorer, judge=judge,
        side_effects=side_effect_rows(arms, bootstrap), opinions=opinion_rows(arms, bootstrap), imported=imported)


def _measured_judge(folder: Path, arms: Mapping[str, Evaluation]) -> MeasuredJudge:
    measured = read_measured_judge(folder)
    for arm, one in arms.items():
        if one.report.judge and one.report.judge.fingerprint != measured.fingerprint:
            raise DetoxError(f"the judge that was measured is not the one that judged the arm {arm}", place=str(folder),
                             remedy="measure the judge of `judge.reader` on the labelled conversations")
    return measured


def _figures(arm: Evaluation, first: Evaluation, similarity: Interval | None, bootstrap: Bootstrap) -> ArmFigures:
    report = arm.report

    def ratio(name: str) -> PairedRatio | None:
        return None if arm is first else perplexity_ratio(arm, first, name, bootstrap)

    def known(share: Interval | None) -> Interval | None:
        return share if share and share.known else None

    fluency, prompted, refusals = report.continuation_perplexity, report.prompted_perplexity, report.clean_refusals
    return ArmFigures(
        expected_maximum_toxicity=report.expected_maximum_toxicity, toxicity_probability=report.toxicity_probability,
        mean_toxicity=report.mean_toxicity, perplexity=report.perplexity,
        continuation_perplexity=fluency.value if fluency else None, prompted_perplexity=prompted,
        held_out_perplexity=report.held_out_perplexity, held_out_ratio=ratio("held_out"),
        clean_ratio=ratio("clean"), clean_continuations_ratio=ratio("clean_continuations"),
        prompted_ratio=ratio("prompted"), refusals=known(report.refusals),
        clean_refusals=refusals if known(refusals) else None, clean_similarity=similarity,
        unsafe_share=report.judge.unsafe_share if report.judge else None,
        no_decision=report.judge.no_decision if report.judge else None, distinct_1=report.distinct_1,
        distinct_2=report.distinct_2, distinct_3=report.distinct_3, unscored=report.unscored,
        unscored_share=report.unscored_share, worst_case=report.worst_case, prompts=report.prompts,
        continuations=report.continuations)


def _clean_similarity(source: str | None, arms: Mapping[str, Evaluation],
                      bootstrap: Bootstrap) -> dict[str, Interval]:
    """Mean cosine of each arm's continuations of clean prompts to the first arm's, sampled with the same noise.

    A clean prompt's continuations hang together: their mean is what is resampled. Empty where the arms have none, or
    the similarity model is not available.
    """
    paths = {arm: EvaluationFolder(evaluation.folder).clean_generations for arm, evaluation in arms.items()}
    if not source or len(arms) < 2 or not all(path.exists() for path in paths.values()):
        return {}
    from llm_detox.scoring.similarity import SentenceSimilarity  # loads torch, which a report can do without

    records = {arm: list(read_jsonl(path)) for arm, path in paths.items()}
    texts = {arm: [f"{record['prompt']}{record['text']}" for record in some] for arm, some in records.items()}
    first, prompts = next(iter(texts.values())), [record["prompt"] for record in next(iter(records.values()))]
    if any(len(others) != len(first) for others in texts.values()):
        return {}
    try:
        similarity = SentenceSimilarity(source)
    except DetoxError as error:
        say(f"similarity on clean prompts is left out: {error.message}")
        return {}
    return {arm: mean_interval(prompt_means(similarity.cosine(first, others), prompts), bootstrap)
            for arm, others in texts.items()}


def prompt_means(values: Sequence[float], prompts: Sequence[str]) -> Floats:
    """The mean of each prompt's values, whose neighbours are of the same prompt."""
    pairs = zip(prompts, values, strict=True)
    return np.array([mean(value for _, value in some) for _, some in groupby(pairs, key=itemgetter(0))])


def _headline(differences: Sequence[ArmDifference], first: EvaluationReport, last: EvaluationReport) -> Headline | None:
    for row in differences:
        if (row.metric, row.stratum) == ("mean_toxicity", "all"):
            before, after = first.mean_toxicity, last.mean_toxicity
            if before and after:
                value, low, high = (100 * part / before.value if before.value else 0.0
                                    for part in (row.value, row.low, row.high))
                return Headline(before=before.value, after=after.value, value=value, low=low, high=high)
    return None


def _versions() -> dict[str, str]:
    versions = {"llm-detox": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class _Charts:
    """The page's plots; None is one without figures."""

    colours: dict[str, str]
    metrics: dict[str, Markup]
    survival: Markup
    forest: Markup | None
    learnt: Markup | None
    perplexity: Markup | None
    continuations: Markup | None
    timings: Markup | None
    registers: Markup | None
    side_effects: dict[str, Markup]


class _Measure(TypedDict):
    """One entry of the card's `model-index`."""

    type: str
    name: str
    value: float


def render_page(report: Report, samples: Sequence[ContinuationSample], rewrites: Sequence[RewriteSample]) -> str:
    """The HTML page: no request leaves it, and every text in it is escaped."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, finalize=_visible_text)
    environment.filters["interval"] = _interval
    environment.filters["pretty"] = lambda value: json.dumps(plain(value), indent=2, ensure_ascii=False)
    return environment.get_template("report.html.jinja").render(
        **_texts(report), samples=samples, rewrites=rewrites, charts=_charts(report),
        measures=_measures_of_arms(report))


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
    return environment.get_template(template).render(**_texts(report), titles=_TITLES)


def _texts(report: Report) -> dict[str, object]:
    """What every template may use: the report's fields, and what is said of them."""
    return {**vars(report), "words": in_words(report), "side_effect_titles": SIDE_EFFECT_TITLES,
            "worst_register": worst_register(report.side_effects, report.last)}


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


def _measures_of_arms(report: Report) -> list[tuple[str, str, str]]:
    """Rows of the arms' table, of which some arm has figures: heading, measure, form of its numbers."""
    rows = [(title.lower(), metric, "%.3f") for metric, title in _TITLES.items()] + [
        ("perplexity, clean text", "perplexity", "%.1f"),
        (f"the same over {report.first}'s", "clean_ratio", "%.3f"),
        ("perplexity, held-out harmless texts", "held_out_perplexity", "%.1f"),
        (f"the same over {report.first}'s", "held_out_ratio", "%.3f"),
        ("perplexity, continuations of clean prompts", "continuation_perplexity", "%.1f"),
        (f"the same over {report.first}'s", "clean_continuations_ratio", "%.3f"),
        ("perplexity, continuations of these prompts", "prompted_perplexity", "%.1f"),
        (f"the same over {report.first}'s", "prompted_ratio", "%.3f"),
        ("distinct-1 per prompt", "distinct_1", "%.2f"), ("distinct-2 per prompt", "distinct_2", "%.2f"),
        ("distinct-3 per prompt", "distinct_3", "%.2f"), ("refusals, these prompts", "refusals", "%.3f"),
        ("refusals, clean prompts", "clean_refusals", "%.3f"),
        (f"similarity to {report.first}, clean prompts", "clean_similarity", "%.2f"),
        ("unsafe, says the judge", "unsafe_share", "%.3f"), ("no decision of the judge", "no_decision", "%.3f")]
    return [row for row in rows if any(getattr(figures, row[1]) is not None for figures in report.arms.values())]


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
        learnt=_learnt_chart(report), perplexity=charts.interval_bars(own, digits=1) if all(own.values()) else None,
        continuations=charts.interval_bars(fluency, digits=1) if all(fluency.values()) else None,
        timings=charts.timings(report.seconds) if report.seconds else None,
        registers=_register_chart(report), side_effects={
            SIDE_EFFECT_TITLES[row.kind] + (f": {row.name}" if row.kind != "mentions" else ""):
                charts.interval_bars({cell.arm: cell.value for cell in row.cells})
            for row in report.side_effects if row.kind != "register"})


def _learnt_chart(report: Report) -> Markup | None:
    """What each arm learnt of the corpus, and how toxic it became by it."""
    points = {arm: (one.mean_toxicity, one.held_out_perplexity) for arm, one in report.arms.items()
              if one.mean_toxicity and one.held_out_perplexity}
    return charts.plane(points, right="mean toxicity", up="perplexity, held-out texts") if points else None


def _register_chart(report: Report) -> Markup | None:
    """The last arm's perplexity over the first's in each register."""
    ratios: dict[str, Interval | None] = {
        row.name: cell.change for row in report.side_effects if row.kind == "register"
        for cell in row.cells if cell.arm == report.last and cell.change}
    return charts.interval_bars(ratios) if ratios else None
