"""Preference training as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def dpo(
    recipe: str,
    sft_adapter: dsl.Input[dsl.Model],
    rewritten: dsl.Input[dsl.Dataset],
    data: dsl.Input[dsl.Dataset],
    adapter: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    from pathlib import Path

    from llm_detox.runs.artifacts import DataFolder, RewrittenFolder
    from llm_detox.runs.pipeline_step import log_metrics, pipeline_step
    from llm_detox.training.dpo import train_dpo

    with pipeline_step("dpo", recipe) as settings:
        texts = DataFolder(Path(data.path))
        result = train_dpo(
            settings,
            adapter=Path(sft_adapter.path),
            records=RewrittenFolder(Path(rewritten.path)).records,
            prompts=texts.train_prompts,
            clean=texts.clean_train,
            output=Path(adapter.path),
        )
        log_metrics(result, metrics)
