"""What a pipeline component does around its step: the recipe as a value, the error as one message, the metrics."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llm_detox.errors import DetoxError, disk_error, optional_packages
from llm_detox.progress import human_seconds, one_voice, safe_output, say
from llm_detox.recipe import Recipe
from llm_detox.recipe.addresses import check_store
from llm_detox.recipe.files import resolve_recipe
from llm_detox.runs.artifacts import plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ERROR_FILE_VARIABLE = "LLM_DETOX_ERROR_FILE"
# Together with their JSON they stay under the 4096 bytes that a pod's status keeps.
_MESSAGE_BYTES, _PLACE_BYTES, _REMEDY_BYTES = 1800, 300, 600


@dataclass(frozen=True)
class StepError:
    """What a step that failed leaves for its runner: which step, and its error with place and remedy."""

    step: str
    message: str
    place: str | None
    remedy: str | None

    @classmethod
    def of(cls, step: str, error: DetoxError) -> StepError:
        """Short enough for a pod's status."""
        return cls(step, str(_shortened(error.message, _MESSAGE_BYTES)), _shortened(error.place, _PLACE_BYTES),
                   _shortened(error.remedy, _REMEDY_BYTES))

    @classmethod
    def read(cls, text: str) -> StepError | None:
        """From what was left; None where it is something else."""
        try:
            value = json.loads(text)
            return cls(str(value["step"]), str(value["message"]), value.get("place"), value.get("remedy"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def text(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


class MetricsArtifact(Protocol):
    """The part of a Kubeflow `Metrics` artifact that is used here."""

    @property
    def path(self) -> str: ...

    def log_metric(self, metric: str, value: float) -> None: ...


@contextmanager
def pipeline_step(
    name: str, recipe: str, changes: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> Iterator[Recipe]:
    """Run one step's body: yields the recipe; a `DetoxError`, or a full disk, ends the process with a message alone.

    Any error is also written to the file that the pipeline's runner reads, $LLM_DETOX_ERROR_FILE.

    Args:
        name: the step, named in messages.
        recipe: the recipe as JSON, as the pipeline passes it on.
        changes, overrides: other values for single keys (see `resolve_recipe`).

    Raises:
        SystemExit: a `DetoxError`, with its exit code; a disk that is full or cannot be written.
    """
    one_voice()
    started = time.monotonic()
    with safe_output():
        say(f"== {name} ==")
        try:
            resolved = resolve_recipe(recipe, changes=changes, overrides=overrides)
            _check_store()
            with optional_packages():
                yield resolved
        except Exception as error:
            clear = error if isinstance(error, DetoxError) else disk_error(
                error, "the step's disk", "give it more room: ephemeral storage in a cluster")
            if clear is None:
                _write_error(name, DetoxError(f"{type(error).__name__}: {error}", remedy="its log has the traceback"))
                raise
            _write_error(name, clear)
            say(f"error in {name}: {clear}")
            raise SystemExit(clear.exit_code) from None
        say(f"== {name} done in {human_seconds(time.monotonic() - started)} ==")


def _check_store() -> None:
    """The store's settings are wrong for the first step as they are for the last, which would find out after hours."""
    try:
        check_store()
    except ValueError as error:
        raise DetoxError(str(error), place="the store's environment variables",
                         remedy="correct them in the Secret with the store's keys (cluster.s3_secret)") from None


def _write_error(name: str, error: DetoxError) -> None:
    """For the local runner; in a cluster the file is the status of the pod, which the step `outcome` reads."""
    if path := os.environ.get(ERROR_FILE_VARIABLE):
        with suppress(OSError):  # on a full disk the message is still in the log
            Path(path).write_text(StepError.of(name, error).text(), "utf-8")


def _shortened(text: str | None, longest: int) -> str | None:
    """At most `longest` bytes of UTF-8: a pod's status is cut at 4096 bytes, and half an object is no JSON."""
    if text is None or len(text.encode()) <= longest:
        return text
    return text.encode()[:longest].decode(errors="ignore") + " ..."


def log_metrics(result: DataclassInstance | Mapping[str, Any], metrics: MetricsArtifact) -> None:
    """Put a step's figures into the pipeline's metrics, and into the artifact's file.

    Without that file Kubeflow's local cache takes the step's outputs for lost and runs the step again.
    """
    figures = dict(_figures(plain(result)))
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
