"""The upload to S3, or to a registry of images, as a component.

Credentials come from the environment (in a cluster from a Secret)."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def publish(recipe: str, model: dsl.Input[dsl.Model]) -> str:
    from pathlib import Path

    from llm_detox.runs.pipeline_step import pipeline_step
    from llm_detox.storage import publish

    with pipeline_step("publish", recipe) as settings:
        result = publish(Path(model.path), settings.publish.url, settings.publish.base_image)
    return result.address
