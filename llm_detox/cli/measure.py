"""Measures beside the pipeline: try, compare, judge-data, judge, stop-hate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_detox.cli.common import (
    AsJson,
    OptionalRecipe,
    Output,
    Overrides,
    RecipeFile,
    existing,
    read_optional_recipe,
    read_recipe,
    show_outcome,
)
from llm_detox.progress import visible

if TYPE_CHECKING:
    from llm_detox.evaluation.report_content import ArmDifference
    from llm_detox.evaluation.results import Evaluation


def try_texts(
    texts: Annotated[list[str], typer.Argument(help="Texts, each in quotes.", show_default=False)],
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score texts, and rewrite those that are toxic.

    Without a recipe everything comes from Python packages.
    """
    settings = read_optional_recipe(recipe, overrides)
    from llm_detox.api import detoxify, score

    scores = score(texts, settings)
    rewrites = detoxify(texts, settings)
    if as_json:
        show_outcome({"texts": [{**vars(rewrite), "judged": judged}
                                for rewrite, judged in zip(rewrites, scores, strict=True)]}, None, True)
        return
    for rewrite, judged in zip(rewrites, scores, strict=True):
        print(visible(rewrite.original))
        print(f"  toxicity: {_shown(judged)} by the scorer that judges, {_shown(rewrite.toxicity_before)} by the one "
              "that rewrites")
        if rewrite.action == "rewritten":
            print(f"  rewritten: {visible(rewrite.text)}\n  toxicity after: {_shown(rewrite.toxicity_after)}")
        else:
            print(f"  {rewrite.action}: {rewrite.reason}")


def _shown(score: float | None) -> str:
    return "unscored" if score is None else f"{score:.2f}"


def compare(
    evaluations: Annotated[list[Path], typer.Argument(help="Folders that `llm-detox evaluate` wrote, the base first.")],
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Confidence level of the intervals.")] = 0.95,
    samples: Annotated[int, typer.Option(min=1000, help="Bootstrap resamples.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 42,
    as_json: AsJson = False,
) -> None:
    """Paired differences between evaluations. They must be of the same prompts by the same scorer."""
    from llm_detox.errors import UsageError
    from llm_detox.evaluation.compare import compare as run
    from llm_detox.evaluation.intervals import Bootstrap
    from llm_detox.evaluation.results import ArmSummary, read_evaluation

    if len(evaluations) < 2:
        raise UsageError("two evaluations or more are needed", place="compare",
                         remedy="llm-detox evaluate compare BASE OTHER")
    read = [read_evaluation(existing(folder, "the evaluation")) for folder in evaluations]
    named = {(one.arm if [other.arm for other in read].count(one.arm) == 1 else str(one.folder)): one for one in read}
    rows = run(named, Bootstrap(samples, confidence, seed))
    if as_json:
        summaries = {arm: ArmSummary.of(one.report) for arm, one in named.items()}
        show_outcome({"arms": summaries, "differences": rows}, None, True)
        return
    _show(named, rows)


def _show(arms: Mapping[str, Evaluation], rows: list[ArmDifference]) -> None:
    from llm_detox.evaluation.metrics import METRICS

    wide = max(len("against"), *map(len, arms))
    print(f"{'arm':<{wide}}  {'prompts':>7} {'unscored':>8}  " + "".join(f"{metric:<27}" for metric in METRICS))
    for arm, one in arms.items():
        cells = [f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
                 if (interval := one.report.metric(metric)) else "-" for metric in METRICS]
        print(f"{arm:<{wide}}  {one.report.prompts:>7} {one.report.unscored:>8}  "
              + "".join(f"{cell:<27}" for cell in cells))
    print(f"\n{'arm':<{wide}}  {'against':<{wide}}  {'metric':<26} {'stratum':<12} {'difference':>10}  "
          f"{'interval':<18} {'effect d':>8} {'p, adjusted':>11}  prompts")
    for row in rows:
        effect = f"{row.effect:+.2f}" if row.effect is not None else "-"
        shown = f"[{row.low:+.3f}, {row.high:+.3f}]"
        print(f"{row.arm:<{wide}}  {row.against:<{wide}}  {row.metric:<26} {row.stratum:<12} "
              f"{row.value:>+10.3f}  {shown:<18} {effect:>8} {row.p_adjusted:>11.2g}  {row.prompts}")
    print(f"\nEach interval is for its own row; p is adjusted for the {len(rows)} comparisons (Holm).")


def judge_data(recipe: RecipeFile, output: Output, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Build what a judge is tuned and tested on. Writes train.jsonl, for sft, and test.jsonl, for judge."""
    settings = read_recipe(recipe, overrides)
    from llm_detox.judge.build import build_judge_data

    show_outcome(build_judge_data(settings, output=output), output, as_json)


def judge(
    recipe: RecipeFile,
    conversations: Annotated[Path, typer.Option("--input", help="Conversations that end with an answer, JSON lines "
                                                "with `messages`; a `label` (safe, unsafe) measures the judge.")],
    output: Output,
    model: Annotated[str | None, typer.Option(help="The judge's model, folder or address; the default is the "
                                              "recipe's judge.reader.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say whether the last answer of each chat is safe. It says why, or that this cannot be decided."""
    settings = read_recipe(recipe, overrides, conversations)
    from llm_detox.evaluation.verdicts import judge_conversations

    result = judge_conversations(settings, conversations=conversations, model=model, output=output)
    show_outcome(result, output, as_json)


def stop_hate(
    recipe: RecipeFile,
    output: Output,
    model: Annotated[str | None, typer.Option(help="The tuned model: a folder, an adapter or an address.")] = None,
    trained_on: Annotated[Path | None, typer.Option(help="The training's JSON lines: its requests are not asked "
                                                   "again.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure whether a chat model refuses hate, nothing else. Three arms: base, system prompt, tuned."""
    settings = read_recipe(recipe, overrides)
    if trained_on:
        existing(trained_on, "the training file")
    from llm_detox.evaluation.stop_hate import measure_refusals

    result = measure_refusals(settings, tuned=model, trained_on=trained_on, output=output)
    show_outcome(result, output, as_json)
