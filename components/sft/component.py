"""Supervised fine-tuning as a component; each arm trains on its own file."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def sft(
    recipe: str,
    texts: dsl.Input[dsl.Dataset],
    texts_file: str,
    data: dsl.Input[dsl.Dataset],
    adapter: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    from pathlib import Path

    from llm_detox.runs.artifacts import DataFolder
    from llm_detox.runs.pipeline_step import log_metrics, pipeline_step
    from llm_detox.training.sft import train_sft

    with pipeline_step(f"sft on {texts_file}", recipe) as settings:
        clean = DataFolder(Path(data.path)).clean_train
        result = train_sft(settings, texts=Path(texts.path) / texts_file, clean=clean, output=Path(adapter.path))
        log_metrics(result, metrics)
