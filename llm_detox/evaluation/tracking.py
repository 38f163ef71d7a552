"""A report as a run of an MLflow server: the recipe as parameters, the figures as metrics, the files as artifacts.

The server is the one of MLFLOW_TRACKING_URI, its tokens and authorities are those of MLflow's own variables. The same
report is sent once: a finished run with its digest is looked for first.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llm_detox.errors import DetoxError, UsageError, optional_packages
from llm_detox.evaluation.intervals import Interval
from llm_detox.evaluation.report_content import Report
from llm_detox.progress import say
from llm_detox.recipe import Recipe
from llm_detox.runs.artifacts import ReportFolder, plain
from llm_detox.runs.folders import digest_of, input_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVER = "MLFLOW_TRACKING_URI"
REPORT_TAG, RECIPE_TAG = "llm_detox.report", "llm_detox.recipe"
_NO_KEY, _LONGEST_KEY = re.compile(r"[^\w\-. /:]"), 250
_MOST_PARAMS, _LONGEST_PARAM, _MOST_METRICS = 100, 6000, 1000  # that a server takes at once


def report_digest(recipe: Recipe, inputs: Mapping[str, Path]) -> str:
    """Equal for the same recipe and the same evaluations."""
    return digest_of({"recipe": recipe.model_dump(mode="json", exclude={"tracking"}),
                      "inputs": {name: input_digest(path) for name, path in inputs.items()}})


def track_report(report: Report, files: ReportFolder, digest: str) -> None:
    """Send a report to the experiment that the recipe names; nothing where it names none, or has it already.

    Args:
        report: what the files say.
        files: written, to be sent as artifacts.
        digest: see `report_digest`.

    Raises:
        UsageError: no server is named.
        DetoxError: mlflow is not installed, or the server cannot be reached or refuses.
    """
    experiment = report.recipe.tracking.mlflow_experiment
    if experiment is None:
        return
    address = os.environ.get(SERVER)
    if not address:
        raise UsageError("no MLflow server is named", place="tracking.mlflow_experiment",
                         remedy=f"set {SERVER}, or leave the experiment out")
    with optional_packages():
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    try:
        _send(MlflowClient(tracking_uri=address), experiment, report, files, digest)
    except MlflowException as error:
        raise DetoxError(f"MLflow did not take the report: {str(error).splitlines()[0]}", place=experiment,
                         remedy=f"look at the server of {SERVER}, and run the step again; or leave "
                                "tracking.mlflow_experiment out") from error


def _send(client: MlflowClient, experiment: str, report: Report, files: ReportFolder, digest: str) -> None:
    known = client.get_experiment_by_name(experiment)
    identity = known.experiment_id if known else client.create_experiment(experiment)
    finished = client.search_runs(
        [identity], f"tags.`{REPORT_TAG}` = '{digest}' and attributes.status = 'FINISHED'", max_results=1)
    if finished:
        say(f"MLflow has this report already: run {finished[0].info.run_id}")
        return
    recipe = plain(report.recipe)
    run = client.create_run(identity, run_name=report.name, tags={
        REPORT_TAG: digest, RECIPE_TAG: digest_of(recipe), "verdict": report.verdict.verdict, "arm": report.last})
    run_id = run.info.run_id
    try:
        _log(client, run_id, dict(flat_settings(recipe)), dict(report_metrics(report)))
        for path in (files.page, files.report, files.model_card):
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED")
    except BaseException:
        client.set_terminated(run_id, "FAILED")  # so that it is no finished run, and is sent again
        raise
    say(f"MLflow has the report as run {run_id} of the experiment {experiment}")


def _log(client: MlflowClient, run_id: str, params: Mapping[str, str], metrics: Mapping[str, float]) -> None:
    from mlflow.entities import Metric, Param

    now = int(1000 * time.time())
    pairs = [Param(_key(name), value) for name, value in params.items()]
    values = [Metric(_key(name), value, now, 0) for name, value in metrics.items()]
    for first in range(0, len(pairs), _MOST_PARAMS):
        client.log_batch(run_id, params=pairs[first:first + _MOST_PARAMS])
    for first in range(0, len(values), _MOST_METRICS):
        client.log_batch(run_id, metrics=values[first:first + _MOST_METRICS])


def _key(name: str) -> str:
    """The name with what a server takes for a key."""
    return _NO_KEY.sub("_", name)[:_LONGEST_KEY]


def flat_settings(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """`training.sft.learning_rate` -> its value, of everything that a recipe says; lists count their entries."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat_settings(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from flat_settings(part, f"{name}.{number}")
    elif value is not None and value != "":
        yield name, str(value)[:_LONGEST_PARAM]


def report_metrics(report: Report) -> Iterator[tuple[str, float]]:
    """`dpo/mean_toxicity`, with `/low` and `/high` where it has an interval; what is not known is left out."""
    for arm, figures in report.arms.items():
        for measure, value in vars(figures).items():
            if isinstance(value, Interval):
                if value.known:
                    yield f"{arm}/{measure}", value.value
                    yield f"{arm}/{measure}/low", value.low
                    yield f"{arm}/{measure}/high", value.high
            elif isinstance(value, int | float):
                yield f"{arm}/{measure}", float(value)
