"""The pipelines as a cluster runs them: parameters over the recipe, shards side by side, and an outcome at every end.

The first step makes one checked recipe out of the parameters, so that a wrong one ends the run at once. An empty
parameter leaves the recipe's own value. `outcome` runs last, whatever happened.
"""

from kfp import dsl

from components.data.component import data
from components.deploy.component import deploy
from components.publish.component import publish
from components.resolve_recipe.component import resolve_recipe
from components.smoke.component import smoke
from components.train_scorer.component import train_scorer
from llm_detox.runs.artifacts import BASE
from pipelines.detox_and_serve import DESCRIPTION, graph
from pipelines.sharded import RUN, Sharded, outcome_written


@dsl.pipeline(name="detox-and-serve", description=DESCRIPTION)
def detox_and_serve(
    recipe: str,
    model: str = "",
    texts: str = "",
    text_column: str = "",
    label_column: str = "",
    publish_url: str = "",
    name: str = "",
    namespace: str = "",
    rollout: str = "",
    runtime: str = "",
    overrides: list = [],  # noqa: B006 - Kubeflow writes it down
    shards: int = 1,
):
    """Run a recipe.

    Args:
        recipe: the recipe, as JSON or YAML.
        model: model.source: a hub id, s3://bucket/key or package://distribution/path.
        texts: data.texts.source: the comments to learn from.
        text_column: data.texts.text_column.
        label_column: data.texts.label_column.
        publish_url: publish.url: s3://bucket/prefix.
        name: deploy.name: of the InferenceService.
        namespace: deploy.namespace: the project that serves.
        rollout: deploy.kserve.rollout: replace or canary.
        runtime: deploy.kserve.runtime: the ServingRuntime.
        overrides: other keys, as key=value.
        shards: how many pods share detoxify, and the sampling of each arm.
    """
    with outcome_written(recipe=recipe, name=name, namespace=namespace, overrides=overrides):
        resolved = resolve_recipe(
            recipe=recipe, model=model, texts=texts, text_column=text_column, label_column=label_column,
            publish_url=publish_url, name=name, namespace=namespace, rollout=rollout, runtime=runtime,
            overrides=overrides, shards=shards)
        sharded = Sharded(resolved.outputs["parts"])
        graph(resolved.outputs["resolved"], rewrite=sharded.rewrite, measure=sharded.measure, run=RUN)


@dsl.pipeline(name="evaluate-only", description="Measure the toxicity and fluency of the recipe's model, and no more.")
def evaluate_only(
    recipe: str,
    model: str = "",
    overrides: list = [],  # noqa: B006 - Kubeflow writes it down
    shards: int = 1,
):
    """Measure a model by the same prompts, scorers and intervals as `detox-and-serve`.

    Args:
        recipe: the recipe, as JSON or YAML.
        model: what is measured, in place of the recipe's model: a hub id, or the s3:// address of a published one.
        overrides: other keys, as key=value.
        shards: how many pods share the sampling.
    """
    with outcome_written(recipe=recipe, overrides=overrides):
        resolved = resolve_recipe(recipe=recipe, model=model, overrides=overrides, shards=shards)
        plain = resolved.outputs["resolved"]
        texts = data(recipe=plain)
        Sharded(resolved.outputs["parts"]).measure(recipe=plain, arm=BASE, data=texts.outputs["data"])


@dsl.pipeline(name="train-judge", description="Train the scorer that judges, measure it on other records, publish it.")
def train_judge(
    recipe: str,
    records: str,
    publish_url: str,
    labelled: str = "",
    held_out: float = 0.2,
    overrides: list = [],  # noqa: B006 - Kubeflow writes it down
):
    """Train a scorer for `scoring.judging` of later runs: `source` is what `publish` returns, `kind` is attributes.

    Args:
        recipe: the recipe, as JSON or YAML.
        records: records with stored scores: a hub id, s3://bucket/key or package://distribution/path.
        publish_url: where it goes: s3://bucket/prefix, another than the models', whose pointer it would move.
        labelled: labelled text for the supporting scorer; empty takes the packaged one.
        held_out: share of the records that only measures.
        overrides: other keys, as key=value.
    """
    with outcome_written(recipe=recipe, overrides=overrides):
        resolved = resolve_recipe(recipe=recipe, publish_url=publish_url, overrides=overrides)
        plain = resolved.outputs["resolved"]
        trained = train_scorer(recipe=plain, records=records, labelled=labelled, held_out=held_out)
        publish(recipe=plain, model=trained.outputs["scorer"])


@dsl.pipeline(name="promote", description="Serve a published version, and ask it over REST and gRPC.")
def promote(
    recipe: str,
    address: str,
    name: str = "",
    namespace: str = "",
    rollout: str = "",
    runtime: str = "",
    overrides: list = [],  # noqa: B006 - Kubeflow writes it down
):
    """Serve a version that is published already, such as an older one, or one that a person has looked at.

    Args:
        recipe: the recipe, as JSON or YAML; its `deploy` section says where and how.
        address: what `publish` returned: s3://bucket/prefix/version.
        name: deploy.name: of the InferenceService.
        namespace: deploy.namespace: the project that serves.
        rollout: deploy.kserve.rollout: replace or canary.
        runtime: deploy.kserve.runtime: the ServingRuntime.
        overrides: other keys, as key=value.
    """
    with outcome_written(recipe=recipe, name=name, namespace=namespace, overrides=overrides):
        resolved = resolve_recipe(recipe=recipe, name=name, namespace=namespace, rollout=rollout, runtime=runtime,
                                  overrides=overrides)
        plain = resolved.outputs["resolved"]
        deployed = deploy(recipe=plain, address=address, run=RUN)
        smoke(recipe=plain, deployment=deployed.outputs["deployment"])
