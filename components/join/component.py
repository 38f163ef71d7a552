"""The joining of the shards of detoxify as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def join(
    recipe: str,
    data: dsl.Input[dsl.Dataset],
    parts: dsl.Input[list[dsl.Dataset]],
    rewritten: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    from pathlib import Path

    from llm_detox.rephrase.detoxify import join_shards
    from llm_detox.runs.artifacts import DataFolder
    from llm_detox.runs.pipeline_step import log_metrics, pipeline_step

    with pipeline_step("join", recipe):
        folders = [Path(part.path) for part in parts]
        result = join_shards(folders, texts=DataFolder(Path(data.path)).texts, output=Path(rewritten.path))
        log_metrics(result, metrics)
