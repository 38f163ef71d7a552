"""`evaluate-only`: measure a model as it is, by the same prompts, scorers and intervals as `detox-and-serve`."""

from typing import NamedTuple

from kfp import dsl

from components.data.component import data
from components.evaluate.component import evaluate


class Measured(NamedTuple):
    """What the pipeline gives back."""

    evaluation: dsl.Artifact


@dsl.pipeline(name="evaluate-only", description="Measure the toxicity and fluency of the recipe's model, and no more.")
def evaluate_only(recipe: str) -> Measured:
    """Measure a model.

    Args:
        recipe: the recipe as JSON; its `model.source` is measured: a hub id, or the s3:// address of a published model.
    """
    texts = data(recipe=recipe)
    measured = evaluate(recipe=recipe, arm="base", data=texts.outputs["data"])
    return Measured(evaluation=measured.outputs["evaluation"])
