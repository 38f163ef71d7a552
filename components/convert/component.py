"""The conversion to a Caikit folder as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def convert(
    recipe: str, adapter: dsl.Input[dsl.Model], report: dsl.Input[dsl.Artifact], model: dsl.Output[dsl.Model]
):
    from pathlib import Path

    from llm_detox.export.converting import convert
    from llm_detox.runs.artifacts import ReportFolder
    from llm_detox.runs.pipeline_step import pipeline_step

    with pipeline_step("convert", recipe):
        convert(model=adapter.path, card=ReportFolder(Path(report.path)).model_card, output=Path(model.path))
