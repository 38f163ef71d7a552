"""One shard of an arm's continuations as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def sample(
    recipe: str,
    arm: str,
    shard: str,
    data: dsl.Input[dsl.Dataset],
    samples: dsl.Output[dsl.Dataset],
    model: dsl.Input[dsl.Model] = None,
):
    from pathlib import Path

    from llm_detox.evaluation.evaluate import evaluate
    from llm_detox.runs.artifacts import DataFolder
    from llm_detox.runs.folders import read_shard
    from llm_detox.runs.pipeline_step import pipeline_step

    with pipeline_step(f"sample {arm}, shard {shard}", recipe) as settings:
        evaluate(
            settings,
            model=model.path if model else settings.model.source,
            arm=arm,
            prompts=DataFolder(Path(data.path)).prompts,
            clean=None,
            output=Path(samples.path),
            shard=read_shard(shard),
        )
