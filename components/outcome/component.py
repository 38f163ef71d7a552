"""What became of a run as a component: runs last, however the run ended."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def outcome(
    recipe: str,
    run: str,
    status: dsl.PipelineTaskFinalStatus,
    outcome: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    name: str = "",
    namespace: str = "",
    overrides: list = [],  # noqa: B006 - Kubeflow writes it down
):
    import shutil
    from pathlib import Path

    from llm_detox.runs.artifacts import OutcomeFolder
    from llm_detox.serve.outcome import Ending, write_outcome

    ending = Ending(run, status.state, status.pipeline_task_name or "", status.error_message or "")
    changes = {"deploy.target": "kserve", "deploy.name": name, "deploy.namespace": namespace}
    write_outcome(ending, recipe, changes=changes, overrides=overrides, output=Path(outcome.path))
    shutil.copyfile(OutcomeFolder(Path(outcome.path)).page, page.path)
