"""The report of an experiment: one offline HTML page, the same as Markdown and JSON, and a model card."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llm_detox import __version__
from llm_detox.data.records import read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.evaluation import charts
from llm_detox.evaluation.attribute_table import stage_table
from llm_detox.evaluation.compare import READ, Evaluation, compare, perplexity_ratio, read_evaluation, share_change
from llm_detox.evaluation.gate import decide_gate
from llm_detox.evaluation.intervals import mean_interval
from llm_detox.evaluation.judge_metrics import JUDGE_REPORT
from llm_detox.evaluation.metrics import METRICS
from llm_detox.evaluation.model_card import model_card, render_markdown
from llm_detox.evaluation.report_examples import continuation_samples, rewrite_samples
from llm_detox.progress import say
from llm_detox.recipe import Recipe
from llm_detox.runs.folders import read_manifest, step_folder

TEMPLATES = Path(__file__).parent / "templates"
_SAMPLES, _REWRITES = 40, 24
_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "numpy", "caikit", "caikit-nlp", "vllm")


def write_report(recipe: Recipe, *, evaluations: Mapping[str, Path], records: Path | None,
                 steps: Mapping[str, Path], output: Path, judge: Path | None = None) -> dict[str, Any]:
    """Compare the arms, judge the last one, and write `report.html`, `report.md`, `report.json` and `model_card.md`.

    Args:
        evaluations: arm -> folder that `evaluate` wrote, the base first and the arm to publish last.
        records: `records.jsonl` of the detoxify step, for the rewrites; or None.
        steps: name -> finished step folder, for timings.
        output: the folder to write.
        judge: what the judge step wrote about labelled conversations: how far the judge's verdicts can be trusted.

    Returns:
        {"verdict", "reasons", "arms", "html"}.

    Raises:
        DetoxError: no evaluation, evaluations that were not measured alike, or another judge than the one that they
            asked.
    """
    if not evaluations:
        raise DetoxError("there is no evaluation to report", remedy="evaluate at least the base and one other arm")
    inputs = {**evaluations, **{name: path for name, path in (("records", records), ("judge", judge)) if path}}
    settings = recipe.settings("evaluation", "gate")
    with step_folder(output, "report", settings=settings, inputs=inputs) as folder:
        arms = {arm: read_evaluation(path) for arm, path in evaluations.items()}
        content = build(recipe, arms, records, steps, judge)
        (folder / "report.html").write_text(render(content), "utf-8")
        (folder / "report.md").write_text(render_markdown("report.md.jinja", content), "utf-8")
        (folder / "report.json").write_text(json.dumps(_as_json(content), indent=2, ensure_ascii=False), "utf-8")
        (folder / "model_card.md").write_text(model_card(recipe, content), "utf-8")
        folder.result.update(
            decide_gate=content["verdict"]["verdict"], reasons=content["verdict"]["reasons"], arms=content["arms"],
            html="report.html")
        say(f"verdict on {content['last']}: {content['verdict']['verdict']}")
        for reason in content["verdict"]["reasons"]:
            say(f"  {reason}")
    return folder.result


def build(recipe: Recipe, arms: Mapping[str, Evaluation], records: Path | None,
          steps: Mapping[str, Path], judge: Path | None = None) -> dict[str, Any]:
    """Everything that the page, the JSON and the model card show."""
    names = list(arms)
    options: dict[str, Any] = {"samples": recipe.evaluation.bootstrap_samples,
                               "confidence": recipe.evaluation.confidence, "seed": recipe.seed}
    differences = compare(arms, **options)
    judged = decide_gate(recipe, arms)
    reports = {arm: evaluation.report for arm, evaluation in arms.items()}
    first, last = reports[names[0]], reports[names[-1]]
    rewrites, fates = rewrite_samples(records, _REWRITES) if records else ([], {})
    attribute = first["scorer"]["attribute"]
    samples = continuation_samples({arm: one.folder / "generations.jsonl" for arm, one in arms.items()}, attribute,
                                   _SAMPLES)
    figures = {arm: _figures(report) for arm, report in reports.items()}
    for arm, similarity in _clean_similarity(recipe, arms).items():
        figures[arm]["clean_similarity"] = similarity
    for arm in names[1:]:
        figures[arm] |= {f"{name}_ratio": perplexity_ratio(arms[arm], arms[names[0]], name, **options)
                         for name in READ}
    return {
        "name": recipe.name, "description": recipe.description, "first": names[0], "last": names[-1],
        "verdict": judged, "headline": _headline(differences, first, last, names), "reports": reports,
        "arms": figures, "differences": differences,
        "stages": _stages(recipe, arms), "samples": samples, "rewrites": rewrites, "fates": fates,
        "seconds": _seconds(steps), "versions": _versions(), "recipe": recipe.model_dump(mode="json"),
        "threshold": recipe.evaluation.toxic_threshold, "confidence": recipe.evaluation.confidence,
        "scorer": first["scorer"], "judge": _agreement(judge, arms) if judge else None,
    }


def _agreement(judge: Path, arms: Mapping[str, Evaluation]) -> dict[str, Any]:
    """How a judge did on labelled conversations (see `llm_detox.evaluation.judge_metrics.judge_agreement`)."""
    try:
        found: dict[str, Any] = json.loads((judge / JUDGE_REPORT).read_text("utf-8"))
        agreement, fingerprint = found["agreement"], found["fingerprint"]
    except (OSError, ValueError, KeyError):
        raise DetoxError("no judge was measured here against labels", place=str(judge),
                         remedy="pass what `llm-detox judge` wrote about conversations with a `label` each") from None
    for arm, one in arms.items():
        if one.report.get("judge", {}).get("fingerprint", fingerprint) != fingerprint:
            raise DetoxError(f"the judge that was measured is not the one that judged the arm {arm}", place=str(judge),
                             remedy="measure the judge of `judge.reader` on the labelled conversations")
    return {"model": found["model"], "fingerprint": fingerprint, **agreement}


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    def share(name: str) -> Any:
        found = report.get(name)
        return found if found and found["value"] is not None else None

    judge = report.get("judge") or {}
    return {**{metric: report[metric] for metric in METRICS}, "perplexity": report.get("perplexity"),
            "continuation_perplexity": (report.get("continuation_perplexity") or {}).get("value"),
            "prompted_perplexity": share("prompted_perplexity"), **{f"{name}_ratio": None for name in READ},
            "refusals": share("refusals"), "clean_refusals": share("clean_refusals"), "clean_similarity": None,
            "unsafe_share": judge.get("unsafe_share"), "no_decision": judge.get("no_decision"),
            **{name: report[name] for name in ("distinct_1", "distinct_2", "distinct_3", "unscored", "unscored_share",
                                               "worst_case", "prompts", "continuations")}}


def _stages(recipe: Recipe, arms: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """The attribute table, each change to the stage before with the interval of the paired difference."""
    evaluation = recipe.evaluation
    rows = stage_table({arm: one.report["attributes"] for arm, one in arms.items()}, evaluation.confidence)
    for row in rows:
        for before, cell in pairwise(row["cells"]):
            found = share_change(arms[cell["stage"]], arms[before["stage"]], row["attribute"],
                                 samples=evaluation.bootstrap_samples, confidence=evaluation.confidence,
                                 seed=recipe.seed)
            cell["points_interval"] = [100 * found.low, 100 * found.high] if found else None
    return rows


def _clean_similarity(recipe: Recipe, arms: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Mean cosine of each arm's continuations of clean prompts to the first arm's, drawn with the same noise.

    Empty where the arms have none, or the recipe's similarity model is not to be had.
    """
    source = recipe.detoxify.similarity_model
    paths = {arm: evaluation.folder / "clean_generations.jsonl" for arm, evaluation in arms.items()}
    if not source or len(arms) < 2 or not all(path.exists() for path in paths.values()):
        return {}
    from llm_detox.scoring.similarity import SentenceSimilarity  # loads torch, which a report can do without

    texts = {arm: [f"{record['prompt']}{record['text']}" for record in read_jsonl(path)] for arm, path in paths.items()}
    first = next(iter(texts.values()))
    if any(len(others) != len(first) for others in texts.values()):
        return {}
    try:
        similarity = SentenceSimilarity(source)
    except DetoxError as error:
        say(f"similarity on clean prompts is left out: {error.message}")
        return {}
    evaluation = recipe.evaluation
    return {arm: mean_interval(np.array(similarity.cosine(first, others)), samples=evaluation.bootstrap_samples,
                               confidence=evaluation.confidence, seed=recipe.seed).as_dict()
            for arm, others in texts.items()}


def _headline(differences: Sequence[Mapping[str, Any]], first: Mapping[str, Any], last: Mapping[str, Any],
              names: Sequence[str]) -> dict[str, Any] | None:
    """Mean toxicity of the last arm against the first, in percent of the first's."""
    for row in differences:
        if (row["arm"], row["against"], row["metric"], row["stratum"]) == (names[-1], names[0], "mean_toxicity", "all"):
            before, after = first["mean_toxicity"]["value"], last["mean_toxicity"]["value"]
            return {"before": before, "after": after, **{
                name: 100 * row[name] / before if before else 0.0 for name in ("value", "low", "high")}}
    return None


def _seconds(steps: Mapping[str, Path]) -> dict[str, float]:
    return {name: float(read_manifest(path)["seconds"]) for name, path in steps.items()}


def _versions() -> dict[str, str]:
    found = {"llm-detox": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """The page's figures without the sample texts, which stay in the evaluations' own folders."""
    return {name: value for name, value in content.items() if name not in ("samples", "rewrites")}


def render(content: Mapping[str, Any]) -> str:
    """The HTML page: no request leaves it, and every text in it is escaped."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return environment.get_template("report.html.jinja").render(
        **content, charts=_charts(content), extra=_measured(content))


def _measured(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Further columns of the arms' table, of which some arm has figures: heading, measure, form of its numbers."""
    first = content["first"]
    columns = [("perplexity of continuations, these prompts", "prompted_perplexity", "%.1f"),
               (f"perplexity over {first}'s, clean text", "clean_ratio", "%.3f"),
               ("the same, continuations of clean prompts", "clean_continuations_ratio", "%.3f"),
               ("the same, continuations of these prompts", "prompted_ratio", "%.3f"),
               ("refusals, these prompts", "refusals", "%.3f"), ("refusals, clean prompts", "clean_refusals", "%.3f"),
               (f"similarity to {first}, clean prompts", "clean_similarity", "%.2f"),
               ("unsafe, says the judge", "unsafe_share", "%.3f"), ("no decision", "no_decision", "%.3f")]
    return [column for column in columns if any(figures[column[1]] for figures in content["arms"].values())]


def _charts(content: Mapping[str, Any]) -> dict[str, Any]:
    reports, arms = content["reports"], list(content["reports"])
    last = content["last"]
    rows = [{"label": f"{row['metric'].replace('_', ' ')}, against {row['against']}", **row}
            for row in content["differences"] if row["arm"] == last and row["stratum"] == "all"]
    plots: dict[str, Any] = {
        "metrics": {metric: charts.interval_bars({arm: reports[arm][metric] for arm in arms}) for metric in METRICS},
        "survival": charts.survival({arm: reports[arm]["histogram"] for arm in arms}, content["threshold"]),
        "colours": {arm: charts.colour(arm, arms) for arm in arms}}
    if rows:
        plots["forest"] = charts.forest(sorted(rows, key=lambda row: arms.index(row["against"])), arms)
    if all("perplexity_interval" in reports[arm] for arm in arms):
        plots["perplexity"] = charts.interval_bars({arm: reports[arm]["perplexity_interval"] for arm in arms}, digits=1)
    if all("continuation_perplexity" in reports[arm] for arm in arms):
        plots["continuations"] = charts.interval_bars(
            {arm: reports[arm]["continuation_perplexity"] for arm in arms}, digits=1)
    if content["seconds"]:
        plots["timings"] = charts.timings(content["seconds"])
    return plots
