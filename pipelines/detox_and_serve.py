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
from llm_detox.runs.artifacts import ARMS, DataFolder, RewrittenFolder

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

    raw = sft(recipe=recipe, texts=texts.outputs["data"], texts_file=DataFolder.texts, data=texts.outputs["data"])
    raw.set_display_name("sft-raw")
    detoxified = sft(
        recipe=recipe,
        texts=rewritten.outputs["rewritten"],
        texts_file=RewrittenFolder.records,
        data=texts.outputs["data"],
    )
    detoxified.set_display_name("sft-detoxified")
    preferred = dpo(
        recipe=recipe,
        sft_adapter=detoxified.outputs["adapter"],
        rewritten=rewritten.outputs["rewritten"],
        data=texts.outputs["data"],
    )

    arms = dict(zip(ARMS, (None, raw, detoxified, preferred), strict=True))
    measured = {}
    for arm, trained in arms.items():
        model = {"model": trained.outputs["adapter"]} if trained else {}
        measured[arm] = measure(recipe=recipe, arm=arm, data=texts.outputs["data"], **model)
        measured[arm].set_display_name(f"evaluate-{arm}")

    compared = report(
        recipe=recipe,
        data=texts.outputs["data"],
        rewritten=rewritten.outputs["rewritten"],
        raw_adapter=raw.outputs["adapter"],
        detoxified_adapter=detoxified.outputs["adapter"],
        dpo_adapter=preferred.outputs["adapter"],
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
