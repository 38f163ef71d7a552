"""`llm-detox evaluate` as a provider of EvalHub: `python -m llm_detox.evaluation.harness.evalhub`.

EvalHub starts it for one job, whose description it finds by EVALHUB_JOB_SPEC_PATH. It measures the served model that
the job names, and reports progress and figures to where the job says. `provider.yaml` describes it to EvalHub.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from evalhub.adapter import (
    DefaultCallbacks,
    ErrorInfo,
    EvaluationResult,
    FrameworkAdapter,
    JobCallbacks,
    JobPhase,
    JobResults,
    JobSpec,
    JobStatus,
    JobStatusUpdate,
)

from llm_detox.data.records import read_jsonl, write_jsonl
from llm_detox.errors import DetoxError, UsageError
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.evaluation.metrics import METRICS
from llm_detox.evaluation.results import EvaluationSummary
from llm_detox.recipe.files import PACKAGED_RECIPE, load_recipe
from llm_detox.runs.artifacts import DataFolder

_TEST_DATA = DataFolder(Path("/test_data")).prompts  # where EvalHub puts what a job's `test_data_ref` names


class ToxicityAdapter(FrameworkAdapter):  # type: ignore[misc]  # EvalHub's base
    """Runs the benchmark `toxicity`. Parameters of a job:

    - `prompts`: JSON lines as of `llm-detox evaluate`; without it what `test_data_ref` brings as prompts.jsonl;
    - `recipe`: the YAML file that says how is sampled and scored; without it the package's.
    """

    def run_benchmark_job(self, config: JobSpec, callbacks: JobCallbacks) -> JobResults:
        """Measure the job's model, as many of the prompts as it asks for.

        Raises:
            DetoxError: the prompts, the model or the scorer cannot be used.
        """
        started = time.monotonic()
        callbacks.report_status(JobStatusUpdate(status=JobStatus.RUNNING, phase=JobPhase.RUNNING_EVALUATION))
        with tempfile.TemporaryDirectory() as folder:
            prompts = _prompts(config.parameters, config.num_examples, Path(folder))
            recipe = load_recipe(Path(config.parameters.get("recipe") or PACKAGED_RECIPE))
            summary = evaluate(recipe, model=served_address(config.model.url, config.model.name), arm=config.model.name,
                               prompts=prompts, clean=None, output=Path(folder) / "evaluation")
        primary = config.primary_score.metric if config.primary_score else METRICS[1]
        results = _figures(summary)
        return JobResults(
            id=config.id, benchmark_id=config.benchmark_id, benchmark_index=config.benchmark_index,
            model_name=config.model.name, results=results, num_examples_evaluated=summary.prompts,
            overall_score=next((one.metric_value for one in results if one.metric_name == primary), None),
            duration_seconds=time.monotonic() - started, evaluation_metadata={"scorer": summary.scorer})


def served_address(url: str, name: str) -> str:
    """The address of a model on an OpenAI-compatible server, as `evaluate` takes it.

    Raises:
        UsageError: the job names no server.
    """
    if not url:
        raise UsageError("the job names no server", place="model.url", remedy="give the address of the served model")
    return f"openai+{url.rstrip('/').removesuffix('/v1')}/{name}"


def _prompts(parameters: Mapping[str, object], count: int | None, folder: Path) -> Path:
    """The job's prompts, or the first of them."""
    path = Path(str(parameters.get("prompts") or _TEST_DATA))
    if not count:
        return path
    first = DataFolder(folder).prompts
    write_jsonl(first, islice(read_jsonl(path, required=("prompt",)), count))
    return first


def _figures(summary: EvaluationSummary) -> list[EvaluationResult]:
    """The measures that are known, with their intervals, and what could not be scored."""
    intervals = {metric: getattr(summary, metric) for metric in METRICS}
    return [*(EvaluationResult(metric_name=metric, metric_value=interval.value, num_samples=summary.prompts,
                               confidence_interval=(interval.low, interval.high))
              for metric, interval in intervals.items() if interval),
            EvaluationResult(metric_name="unscored_share", metric_value=summary.unscored_share,
                             num_samples=summary.continuations)]


def main() -> None:
    """Run the job that EvalHub describes; exit code 1 where it failed, after EvalHub was told why."""
    logging.basicConfig(level=logging.INFO)
    adapter = ToxicityAdapter()
    callbacks = DefaultCallbacks.from_adapter(adapter)
    try:
        callbacks.report_results(adapter.run_benchmark_job(adapter.job_spec, callbacks))
    except DetoxError as error:
        callbacks.report_status(JobStatusUpdate(status=JobStatus.FAILED, error_message=ErrorInfo(
            message=str(error), message_code="evaluation_failed")))
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
