"""The measurement of one arm, sampled in shards, as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def measure(
    recipe: str,
    arm: str,
    data: dsl.Input[dsl.Dataset],
    samples: dsl.Input[list[dsl.Dataset]],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    model: dsl.Input[dsl.Model] = None,
):
    from pathlib import Path

    from llm_detox.evaluation.evaluate import evaluate_arm
    from llm_detox.runs.pipeline_step import log_metrics, pipeline_step

    with pipeline_step(f"measure {arm}", recipe) as settings:
        result = evaluate_arm(settings, arm=arm, model=model.path if model else None, data=Path(data.path),
                              output=Path(evaluation.path), samples=[Path(part.path) for part in samples])
        log_metrics(result, metrics)
