"""What a pipeline component does around its step: the recipe as a value, the error as one message, the metrics."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from llm_detox.errors import DetoxError
from llm_detox.progress import human_seconds, one_voice, say
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import resolve_recipe

ERROR_FILE_VARIABLE = "LLM_DETOX_ERROR_FILE"


class MetricsArtifact(Protocol):
    """The part of a Kubeflow `Metrics` artifact that is used here."""

    @property
    def path(self) -> str: ...

    def log_metric(self, metric: str, value: float) -> None: ...


@contextmanager
def pipeline_step(
    name: str, recipe: str, changes: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> Iterator[Recipe]:
    """Run one step's body: yields the recipe; a `DetoxError` ends the process with its message, without a traceback.

    Whatever error it ends with is left where the runner looks for it.

    Args:
        name: the step, named in messages.
        recipe: the recipe as JSON, as the pipeline passes it on.
        changes, overrides: other values for single keys (see `resolve_recipe`).
    """
    import time

    one_voice()
    started = time.monotonic()
    say(f"== {name} ==")
    try:
        yield resolve_recipe(recipe, changes=changes, overrides=overrides)
    except DetoxError as error:
        _tell_the_runner(name, error)
        print(f"error in {name}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        _tell_the_runner(name, DetoxError(f"{type(error).__name__}: {error}", remedy="its log has the traceback"))
        raise
    say(f"== {name} done in {human_seconds(time.monotonic() - started)} ==")


def _tell_the_runner(name: str, error: DetoxError) -> None:
    """Leave the error where the local runner looks for it, and in a cluster `outcome`, in the status of the pod."""
    if path := os.environ.get(ERROR_FILE_VARIABLE):
        message = {"step": name, "message": _short(error.message, 1800), "place": _short(error.place, 300),
                   "remedy": _short(error.remedy, 600)}
        Path(path).write_text(json.dumps(message, ensure_ascii=False), "utf-8")


def _short(text: str | None, longest: int) -> str | None:
    """At most so many bytes: a pod's status keeps 4096, and cuts what is longer, which is no JSON then."""
    if text is None or len(text.encode()) <= longest:
        return text
    return text.encode()[:longest].decode(errors="ignore") + " ..."


def log_metrics(result: Mapping[str, Any], metrics: MetricsArtifact) -> None:
    """Put a step's figures into the pipeline's metrics, and into the artifact's file.

    Without a file there, Kubeflow's local cache takes the step's outputs for lost and does the step again.
    """
    figures = dict(_figures(result))
    for name, value in figures.items():
        metrics.log_metric(name, value)
    Path(metrics.path).parent.mkdir(parents=True, exist_ok=True)
    Path(metrics.path).write_text(json.dumps(figures, indent=2), "utf-8")


def _figures(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in result.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)
        elif isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
            yield name, float(value["value"])
