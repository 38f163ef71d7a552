"""The training of a scorer that judges as a component."""

from kfp import dsl

from components.images import WORKBENCH


@dsl.component(base_image=WORKBENCH, install_kfp_package=False)
def train_scorer(
    recipe: str,
    records: str,
    scorer: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    labelled: str = "",
    held_out: float = 0.2,
):
    from pathlib import Path

    from llm_detox.data.sources import fetch
    from llm_detox.runs.pipeline_step import log_metrics, pipeline_step
    from llm_detox.scoring.train_scorer import train_scorer

    with pipeline_step("train_scorer", recipe):
        source = fetch(records, kind="dataset")
        result = train_scorer(source, output=Path(scorer.path), held_out=held_out, labelled=labelled or None)
        log_metrics(result, metrics)
