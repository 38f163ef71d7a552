"""The first step of a run in a cluster as a component: one checked recipe out of the parameters."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def resolve_recipe(
    recipe: str,
    resolved: dsl.OutputPath(str),
    parts: dsl.OutputPath(list),
    model: str = "",
    texts: str = "",
    text_column: str = "",
    label_column: str = "",
    publish_url: str = "",
    name: str = "",
    namespace: str = "",
    rollout: str = "",
    runtime: str = "",
    overrides: list = [],  # noqa: B006 - Kubeflow writes it down
    shards: int = 1,
):
    import json
    from pathlib import Path

    from llm_detox.runs.folders import shard_names
    from llm_detox.runs.pipeline_step import pipeline_step

    changes = {
        "model.source": model,
        "data.texts.source": texts,
        "data.texts.text_column": text_column,
        "data.texts.label_column": label_column,
        "publish.url": publish_url,
        "deploy.target": "kserve",
        "deploy.name": name,
        "deploy.namespace": namespace,
        "deploy.kserve.rollout": rollout,
        "deploy.kserve.runtime": runtime,
    }
    with pipeline_step("resolve-recipe", recipe, changes, overrides) as whole:
        Path(resolved).write_text(whole.model_dump_json(), "utf-8")
        Path(parts).write_text(json.dumps(shard_names(shards)), "utf-8")
