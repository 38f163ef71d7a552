"""The measurement of one arm as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def evaluate(
    recipe: str,
    arm: str,
    data: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    model: dsl.Input[dsl.Model] = None,
):
    from pathlib import Path

    from llm_detox.evaluation.evaluate import evaluate
    from llm_detox.runs.artifacts import DataFolder
    from llm_detox.runs.pipeline_step import log_metrics, pipeline_step

    with pipeline_step(f"evaluate {arm}", recipe) as settings:
        texts = DataFolder(Path(data.path))
        result = evaluate(
            settings,
            model=model.path if model else settings.model.source,
            arm=arm,
            prompts=texts.prompts,
            clean=texts.clean,
            output=Path(evaluation.path),
        )
        log_metrics(result, metrics)
