"""The comparison of the arms, the verdict for the gate, and the page to read, as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def report(
    recipe: str,
    data: dsl.Input[dsl.Dataset],
    rewritten: dsl.Input[dsl.Dataset],
    raw_adapter: dsl.Input[dsl.Model],
    filtered_adapter: dsl.Input[dsl.Model],
    detoxified_adapter: dsl.Input[dsl.Model],
    dpo_adapter: dsl.Input[dsl.Model],
    base: dsl.Input[dsl.Artifact],
    raw: dsl.Input[dsl.Artifact],
    filtered: dsl.Input[dsl.Artifact],
    detoxified: dsl.Input[dsl.Artifact],
    dpo: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> str:
    import shutil
    from pathlib import Path

    from llm_detox.evaluation.report import write_report
    from llm_detox.runs.artifacts import ARMS, ReportFolder, RewrittenFolder
    from llm_detox.runs.pipeline_step import pipeline_step

    with pipeline_step("report", recipe) as settings:
        arms = dict(zip(ARMS, (base, raw, filtered, detoxified, dpo), strict=True))
        evaluations = {name: Path(artifact.path) for name, artifact in arms.items()}
        tuned = {"raw": raw_adapter, "filtered": filtered_adapter, "detoxified": detoxified_adapter}
        trained = {**{f"sft {name}": adapter for name, adapter in tuned.items()}, "dpo": dpo_adapter}
        made = {"data": data, "detoxify": rewritten, **trained}
        steps = {name: Path(artifact.path) for name, artifact in made.items()}
        result = write_report(
            settings,
            evaluations=evaluations,
            records=RewrittenFolder(Path(rewritten.path)).records,
            steps={**steps, **{f"evaluate {name}": path for name, path in evaluations.items()}},
            output=Path(report.path),
        )
        shutil.copyfile(ReportFolder(Path(report.path)).page, page.path)
    return result.verdict
