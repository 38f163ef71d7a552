"""Requests to the deployed model as a component: REST and gRPC, whole and streamed."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def smoke(
    recipe: str,
    deployment: dsl.Input[dsl.Artifact],
    answers: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    from pathlib import Path

    from llm_detox.runs.pipeline_step import log_metrics, pipeline_step
    from llm_detox.serve.smoke import smoke

    with pipeline_step("smoke", recipe) as settings:
        result = smoke(settings, deployment=Path(deployment.path), output=Path(answers.path))
        log_metrics(result, metrics)
