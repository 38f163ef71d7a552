"""`detox-and-serve`: from text and a model to a published, served, answering model, if the gate lets it pass.

The graph stands here once. On one machine it runs as it is; in a cluster (`pipelines.cluster`) rewriting and measuring
are split into shards.
"""

from collections.abc import Callable
from typing import NamedTuple

from kfp import dsl

from components.convert.component import convert
from components.data.component import data
from components.deploy.component import deploy
from components.detoxify.component import detoxify
from components.dpo.component import dpo
from components.evaluate.component import evaluate
from components.publish.component import publish
from components.report.component import report
from components.sft.component import sft
from components.smoke.component import smoke
from llm_detox.runs.artifacts import ARMS, DETOXIFIED, DPO, FILTERED, RAW, DataFolder, RewrittenFolder

DESCRIPTION = "Rewrite toxic text, fine-tune (SFT, then DPO), measure all arms alike, serve the model that passes."
Step = Callable[..., dsl.PipelineTask]


class Outcome(NamedTuple):
    """What the pipeline gives back."""

    report: dsl.Artifact
    verdict: str


def graph(recipe: str, *, rewrite: Step, measure: Step, run: str = "") -> dsl.PipelineTask:
    """All steps; returns the report's.

    Args:
        recipe: the recipe as JSON, a value or a pipeline's channel.
        rewrite: makes the step with the output `rewritten`, of `recipe` and `data`.
        measure: makes the step with the output `evaluation`, of `recipe`, `arm`, `data` and maybe `model`.
        run: the id of the run.
    """
    texts = data(recipe=recipe)
    rewritten = rewrite(recipe=recipe, data=texts.outputs["data"])

    tuned = {
        arm: sft(recipe=recipe, texts=folder, texts_file=file, data=texts.outputs["data"])
        for arm, folder, file in (
            (RAW, texts.outputs["data"], DataFolder.texts),
            (FILTERED, rewritten.outputs["rewritten"], RewrittenFolder.kept),
            (DETOXIFIED, rewritten.outputs["rewritten"], RewrittenFolder.records),
        )
    }
    for arm, task in tuned.items():
        task.set_display_name(f"sft-{arm}")
    preferred = dpo(
        recipe=recipe,
        sft_adapter=tuned[DETOXIFIED].outputs["adapter"],
        rewritten=rewritten.outputs["rewritten"],
        data=texts.outputs["data"],
    )

    trained = {**tuned, DPO: preferred}
    measured = {}
    for arm in ARMS:
        model = {"model": trained[arm].outputs["adapter"]} if arm in trained else {}
        measured[arm] = measure(recipe=recipe, arm=arm, data=texts.outputs["data"], **model)
        measured[arm].set_display_name(f"evaluate-{arm}")

    compared = report(
        recipe=recipe,
        data=texts.outputs["data"],
        rewritten=rewritten.outputs["rewritten"],
        **{f"{arm}_adapter": task.outputs["adapter"] for arm, task in trained.items()},
        **{arm: task.outputs["evaluation"] for arm, task in measured.items()},
    )

    with dsl.If(compared.outputs["Output"] == "pass", name="gate"):
        converted = convert(recipe=recipe, adapter=preferred.outputs["adapter"], report=compared.outputs["report"])
        published = publish(recipe=recipe, model=converted.outputs["model"])
        deployed = deploy(recipe=recipe, address=published.output, run=run)
        answered = smoke(recipe=recipe, deployment=deployed.outputs["deployment"])
        for task in (published, deployed, answered):
            task.set_caching_options(False)
    return compared


@dsl.pipeline(name="detox-and-serve", description=DESCRIPTION)
def detox_and_serve(recipe: str) -> Outcome:
    """Run a recipe on one machine.

    Args:
        recipe: the recipe as JSON (`python -m pipelines run` reads it from the YAML file).
    """
    compared = graph(recipe, rewrite=detoxify, measure=evaluate)
    return Outcome(report=compared.outputs["report"], verdict=compared.outputs["Output"])
