"""The deployment of a published model as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def deploy(recipe: str, address: str, deployment: dsl.Output[dsl.Artifact], run: str = ""):
    from pathlib import Path

    from llm_detox.runs.pipeline_step import pipeline_step
    from llm_detox.serve import deploy

    with pipeline_step("deploy", recipe) as settings:
        deploy(settings, address=address, output=Path(deployment.path), run=run)
