"""The detoxify step as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def detoxify(
    recipe: str,
    data: dsl.Input[dsl.Dataset],
    rewritten: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    shard: str = "0/1",
):
    from pathlib import Path

    from llm_detox.rephrase.detoxify import detoxify
    from llm_detox.runs.artifacts import DataFolder
    from llm_detox.runs.folders import read_shard
    from llm_detox.runs.pipeline_step import log_metrics, pipeline_step

    with pipeline_step("detoxify" if shard == "0/1" else f"detoxify, shard {shard}", recipe) as settings:
        texts = DataFolder(Path(data.path)).texts
        result = detoxify(settings, texts=texts, output=Path(rewritten.path), shard=read_shard(shard))
        log_metrics(result, metrics)
