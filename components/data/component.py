"""The data step as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def data(recipe: str, data: dsl.Output[dsl.Dataset], metrics: dsl.Output[dsl.Metrics]):
    from pathlib import Path

    from llm_detox.data.prepare import prepare_data
    from llm_detox.runs.pipeline_step import log_metrics, pipeline_step

    with pipeline_step("data", recipe) as settings:
        log_metrics(prepare_data(settings, output=Path(data.path)), metrics)
