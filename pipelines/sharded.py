"""What the pipelines of a cluster are put together from: an outcome at every end, and steps that pods share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kfp import dsl

from components.detoxify.component import detoxify
from components.join.component import join
from components.measure.component import measure
from components.outcome.component import outcome
from components.sample.component import sample

RUN = dsl.PIPELINE_JOB_ID_PLACEHOLDER


@contextmanager
def outcome_written(**parameters: Any) -> Iterator[None]:
    """Whatever becomes of the steps in the block, the outcome is written after them."""
    with dsl.ExitHandler(outcome(run=RUN, **parameters), name="steps"):
        yield


class Sharded:
    """Steps that many pods share: the shards side by side, then what puts them together."""

    def __init__(self, parts: Any) -> None:
        self._parts = parts

    def rewrite(self, *, recipe: Any, data: Any) -> dsl.PipelineTask:
        with dsl.ParallelFor(self._parts, name="detoxify-shards") as shard:
            part = detoxify(recipe=recipe, data=data, shard=shard)
        return join(recipe=recipe, data=data, parts=dsl.Collected(part.outputs["rewritten"]))

    def measure(self, *, recipe: Any, arm: str, data: Any, **model: Any) -> dsl.PipelineTask:
        with dsl.ParallelFor(self._parts, name=f"sample-{arm}-shards") as shard:
            part = sample(recipe=recipe, arm=arm, shard=shard, data=data, **model)
        return measure(recipe=recipe, arm=arm, data=data, samples=dsl.Collected(part.outputs["samples"]), **model)
