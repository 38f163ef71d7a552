"""The pipeline's steps, each alone: data, detoxify, sft, dpo, evaluate, report, convert, publish, deploy, smoke."""

from __future__ import annotations

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
from llm_detox.errors import UsageError
from llm_detox.progress import say

if TYPE_CHECKING:
    from llm_detox.recipe import Recipe


def data(
    recipe: RecipeFile,
    output: Output,
    skip_bad_records: Annotated[int | None, typer.Option(
        help="Leave out so many bad records, and list them; the recipe's data.skip_bad_records.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Read, clean and split the texts and the prompts."""
    given = [] if skip_bad_records is None else [f"data.skip_bad_records={skip_bad_records}"]
    settings = read_recipe(recipe, [*(overrides or ()), *given])
    from llm_detox.data.prepare import prepare_data

    show_outcome(prepare_data(settings, output=output), output, as_json)


def detoxify(
    recipe: RecipeFile,
    texts: Annotated[Path, typer.Option("--input", help='JSON lines {"id", "text"}; id may be missing.')],
    output: Output,
    shard: Annotated[str, typer.Option(help="i/n: only the i-th of n parts, counted from 0.")] = "0/1",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Rewrite the toxic records. Each keeps its original, its scores and the reason."""
    settings = read_recipe(recipe, overrides, texts)
    from llm_detox.rephrase.detoxify import detoxify as run
    from llm_detox.runs.folders import read_shard

    show_outcome(run(settings, texts=texts, output=output, shard=read_shard(shard)), output, as_json)


def sft(
    recipe: RecipeFile,
    texts: Annotated[Path, typer.Option("--input", help="JSON lines with a text, or detoxified records.")],
    output: Output,
    clean: Annotated[Path | None, typer.Option(help="Clean passages to mix in, JSON lines.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune an adapter on text (QLoRA)."""
    settings = read_recipe(recipe, overrides, texts)
    from llm_detox.training.sft import train_sft

    show_outcome(train_sft(settings, texts=texts, clean=clean, output=output), output, as_json)


def dpo(
    recipe: RecipeFile,
    adapter: Annotated[Path, typer.Option(help="The SFT step's folder.")],
    output: Output,
    records: Annotated[Path | None, typer.Option(help="The detoxify step's records.jsonl; needed for rewrite_pairs.")]
    = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts for sampled pairs, JSON lines; needed for max_pairs.")]
    = None,
    clean: Annotated[Path | None, typer.Option(help="Clean passages to keep fluency, JSON lines.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the adapter further on preference pairs (DPO)."""
    settings = read_recipe(recipe, overrides)
    for path, what in ((adapter, "the adapter"), (records, "the records file"), (prompts, "the prompts file")):
        if path:
            existing(path, what)
    from llm_detox.training.dpo import train_dpo

    result = train_dpo(settings, adapter=adapter, records=records, prompts=prompts, clean=clean, output=output)
    show_outcome(result, output, as_json)


def evaluate(
    recipe: RecipeFile,
    model: Annotated[str, typer.Option(help="Hub id, folder, s3://, package://, an adapter folder, or an address: "
                                      "grpc://HOST:PORT/NAME, http://..., fmaas://..., openai+http://...")],
    prompts: Annotated[Path, typer.Option(help='RealToxicityPrompts records or {"prompt": "..."} lines.')],
    output: Output,
    clean: Annotated[Path | None, typer.Option(help="Clean passages for perplexity, JSON lines.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="Harmless texts of the training texts' kind, JSON lines: what "
                                                       "the model learnt of them.")] = None,
    arm: Annotated[str, typer.Option(help="The name of this model in the report.")] = "model",
    generations: Annotated[
        list[Path] | None, typer.Option(help="Score these continuations instead of sampling: generations.jsonl of "
                                             "shards, or of another tool. Repeatable.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: only the i-th of n parts, counted from 0.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure how toxic and how fluent a model writes.

    `evaluate compare A B` sets two or more evaluations beside each other.
    """
    settings = read_recipe(recipe, overrides)
    for path in (prompts, *(generations or ())):
        existing(path, "the file")
    from llm_detox.evaluation.evaluate import evaluate as run
    from llm_detox.runs.folders import read_shard

    result = run(settings, model=model, arm=arm, prompts=prompts, clean=clean, held_out=held_out,
                 output=output, generations=generations or (), shard=read_shard(shard) if shard else None)
    show_outcome(result, output, as_json)


def report(
    recipe: RecipeFile,
    evaluations: Annotated[list[str], typer.Option("--arm", help="name=FOLDER of an evaluation, the base first.")],
    output: Output,
    records: Annotated[Path | None, typer.Option(help="The detoxify step's records.jsonl.")] = None,
    steps: Annotated[list[str] | None, typer.Option("--step", help="name=FOLDER of a finished step.")] = None,
    judge: Annotated[Path | None, typer.Option(
        help="What `llm-detox judge` wrote about labelled conversations: its precision and recall.")] = None,
    lm_eval: Annotated[list[str] | None, typer.Option(
        help="name=FILE: results_*.json of lm-evaluation-harness about an arm, to show beside ours. Repeatable.")]
    = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare the arms and decide the verdict.

    Writes HTML, Markdown, JSON and a model card. Exit code 3: the gate is not passed.
    """
    settings = read_recipe(recipe, overrides)
    from llm_detox.errors import GateNotPassed
    from llm_detox.evaluation.report import write_report

    result = write_report(settings, evaluations=_named(evaluations, "--arm"), records=records,
                          steps=_named(steps or [], "--step"), output=output,
                          judge=existing(judge, "the judge's folder") if judge else None,
                          harness=_pairs(lm_eval or [], "--lm-eval"))
    show_outcome(result, output, as_json)
    if result.verdict != "pass":
        raise GateNotPassed(f"the verdict is {result.verdict}", place=settings.name,
                            remedy=f"reasons: {'; '.join(result.reasons)}")


def _named(pairs: list[str], option: str) -> dict[str, Path]:
    """The folders of each option, by name; the last one of a name counts."""
    return dict(_pairs(pairs, option))


def _pairs(pairs: list[str], option: str) -> list[tuple[str, Path]]:
    from llm_detox.errors import UsageError

    named = []
    for pair in pairs:
        name, separator, path = pair.partition("=")
        if not separator:
            raise UsageError(f"{pair!r} is not name=PATH", place=option,
                             remedy=f"for example {option} base=runs/base")
        named.append((name, existing(Path(path), "the path")))
    return named


def convert(
    output: Output,
    model: Annotated[str | None, typer.Option(
        "--model", "--input",
        help="Adapter or model folder, hub id, s3://, package://; else the recipe's model.")] = None,
    card: Annotated[Path | None, typer.Option(help="Model card, or the report folder that holds it.")] = None,
    oldest_reader: Annotated[
        str | None, typer.Option(help="Refuse what this transformers release cannot read.")] = None,
    verify_with: Annotated[
        list[str] | None, typer.Option(help="A Python that must read the same greedy tokens. Repeatable.")] = None,
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Merge the adapter into a folder to serve. Caikit, TGIS and vLLM load it."""
    settings = read_optional_recipe(recipe, overrides)
    source = model or (settings.model.source if settings else None)
    if source is None:
        raise UsageError("which model?", place="convert", remedy="give --model, or --recipe")
    from llm_detox.export import convert as run

    result = run(model=source, output=output, card=card, oldest_reader=oldest_reader)
    if verify_with:
        from llm_detox.export.verify import verify

        show_outcome({**result, "verified": verify(output, verify_with)["readers"]}, output, as_json)
        return
    show_outcome(result, output, as_json)


def publish(
    folder: Annotated[Path, typer.Argument(help="What `convert` wrote.", show_default=False)],
    url: Annotated[str | None, typer.Argument(
        help="s3://bucket/prefix, or oci://registry/repository[:tag]; else the recipe's publish.url.")] = None,
    base: Annotated[str | None, typer.Option(
        help="oci://: the image to put the model on; else the recipe's publish.base_image.")] = None,
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Put a converted model into S3, or push it as an image. Prints its content address."""
    settings = read_optional_recipe(recipe, overrides)
    url = url or (settings.publish.url if settings else None)
    base = base or (settings.publish.base_image if settings else None)
    if url is None:
        raise UsageError("where to?", place="publish", remedy="give s3://bucket/prefix, or --recipe")
    existing(folder, "the folder")
    from llm_detox.storage import publish as run

    result = run(folder, url, base)
    if as_json:
        show_outcome(result, None, as_json)
    else:
        print(result.address)


def deploy(
    recipe: RecipeFile,
    address: Annotated[str, typer.Option(
        "--input", "--address", help="The s3:// or oci:// address that `publish` printed.")],
    output: Output,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="KServe: let the cluster check the objects, print them as YAML, and change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a published model until `llm-detox stop DIR`. This command itself ends when it is ready."""
    settings = read_recipe(recipe, overrides)
    if dry_run:
        _show_dry_run(settings, address)
        return
    from llm_detox.serve import deploy as run

    show_outcome(run(settings, address=address, output=output), output, as_json)
    if settings.deploy.target == "local":
        say(f"end it with: llm-detox stop {output}")


def _show_dry_run(recipe: Recipe, address: str) -> None:
    from llm_detox.errors import UsageError

    if recipe.deploy.target != "kserve":
        raise UsageError("a local deployment sends nothing", place="--dry-run", remedy="--set deploy.target=kserve")
    from llm_detox.serve.kserve.deploy import dry_run

    print(dry_run(recipe.deploy, recipe.cluster, address=address), end="")


def smoke(
    recipe: RecipeFile,
    deployment: Annotated[Path, typer.Option("--input", "--deployment", help="The folder that `deploy` wrote.")],
    output: Output,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Ask a deployed model over REST and gRPC. Whole and streamed answers are scored."""
    settings = read_recipe(recipe, overrides)
    existing(deployment, "the deployment")
    from llm_detox.serve.smoke import smoke as run

    show_outcome(run(settings, deployment=deployment, output=output), output, as_json)
