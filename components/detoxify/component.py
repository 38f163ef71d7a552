"""The detoxify step as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def detoxify(
    recipe: str, data: dsl.Input[dsl.Dataset], rewritten: dsl.Output[dsl.Dataset], metrics: dsl.Output[dsl.Metrics]
):
    from pathlib import Path

    from llm_detox.pipeline_step import log_metrics, pipeline_step
    from llm_detox.rephrase.detoxify import detoxify

    with pipeline_step("detoxify", recipe) as settings:
        result = detoxify(settings, texts=Path(data.path) / "texts.jsonl", output=Path(rewritten.path))
        log_metrics(result, metrics)
