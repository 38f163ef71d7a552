"""What became of a pipeline run: written when it ends, however it ends, after what it left behind is removed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_detox.cluster.objects import InferenceService, Pod
from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.recipe.deploy import DeploySection
from llm_detox.recipe.files import resolve_recipe
from llm_detox.runs.artifacts import OutcomeFolder
from llm_detox.runs.folders import step_folder
from llm_detox.runs.pipeline_step import StepError

_AWAY_SECONDS = 60.0
_GOOD = frozenset({"SUCCEEDED", "COMPLETE", "RUNNING", "CACHED"})
_NODE_NAME = "workflows.argoproj.io/node-name"
_ATTEMPT = re.compile(r"\((\d+)\)$")


@dataclass(frozen=True)
class Ending:
    """How the pipeline server says that a run ended.

    Args:
        run: its id.
        state: as the exit handler is told it. In Kubeflow Pipelines 2.16 a good run is COMPLETE or RUNNING; others are
            FAILED or CANCELED. Newer servers and local runs say SUCCEEDED.
        task: the part of the pipeline that ended so.
        message: the cause, where the server tells it.
    """

    run: str
    state: str
    task: str = ""
    message: str = ""

    @property
    def is_good(self) -> bool:
        """Whether no step failed, and nobody ended the run."""
        return self.state in _GOOD


@dataclass(frozen=True)
class PodFailure:
    """The last attempt at a step failed without words of its own; `message` is what its pod says."""

    step: str
    message: str


@dataclass(frozen=True)
class Steps:
    """What the pods of a run say: the steps that failed, and the gate ("passed", "not passed", None: no report)."""

    failures: tuple[StepError | PodFailure, ...]
    gate: str | None


@dataclass(frozen=True)
class Served:
    """What the cluster serves now: an address, and whether it is ready."""

    address: str | None
    ready: bool


@dataclass
class Outcome:
    """What became of a run; None is what nobody could or had to look at.

    Args:
        ending: how it ended.
        ended: when, in UTC.
        recipe: its name.
        steps: what its pods say.
        canaries: the canary that it left, which was removed; empty where it left none.
        ended_jobs: training that it left running, which was removed.
        served: what is served now.
        unseen: why some of these are not known.
    """

    ending: Ending
    ended: str
    recipe: str | None = None
    steps: Steps | None = None
    canaries: tuple[str, ...] | None = None
    ended_jobs: tuple[str, ...] | None = None
    served: Served | None = None
    unseen: str | None = None

    def as_json(self) -> dict[str, object]:
        """The content of `outcome.json`: what is not known has no key."""
        value: dict[str, object] = {**asdict(self.ending), "ended": self.ended}
        if self.recipe is not None:
            value["recipe"] = self.recipe
        if self.steps is not None:
            value["failures"] = [asdict(one) for one in self.steps.failures]
            value |= {"gate": self.steps.gate} if self.steps.gate else {}
        if self.canaries is not None:
            value["removed"] = next(iter(self.canaries), None)
        if self.served is not None:
            value |= {"serving": self.served.address, "ready": self.served.ready}
        if self.ended_jobs is not None:
            value["ended_jobs"] = list(self.ended_jobs)
        if self.unseen is not None:
            value["unseen"] = self.unseen
        return value

    def lines(self) -> list[str]:
        """For people, as Markdown."""
        state = "SUCCEEDED" if self.ending.is_good else self.ending.state
        text = [f"**{state}**: run {self.ending.run} of {self.recipe or 'a recipe that cannot be read'}"]
        if not self.ending.is_good:
            failures = (self.steps.failures if self.steps else ()) or (
                PodFailure(self.ending.task, self.ending.message),)
            text += [line for one in failures for line in _failure_lines(one)]
        elif self.steps and self.steps.gate == "not passed":
            text.append("- the model did not pass the gate: nothing was published; the report says why")
        text += [f"- removed: the canary {name}, which this run left behind" for name in self.canaries or ()]
        if self.ended_jobs:
            text.append(f"- removed: the training jobs {', '.join(self.ended_jobs)}, which this run left running")
        if self.served:
            ready = "ready" if self.served.ready else "not ready"
            text.append(f"- serving now: {self.served.address} ({ready})" if self.served.address
                        else "- serving now: nothing")
        if self.unseen:
            text.append(f"- not looked at: {self.unseen}")
        return text


def write_outcome(
    ending: Ending, recipe: str, *, output: Path, changes: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = ()
) -> Outcome:
    """Remove what a run left half done in its cluster, and write what became of it.

    Nothing that is missing or unreachable here is an error: the run has its outcome already, and the words say what
    could not be looked at.

    Args:
        ending: how it ended.
        recipe: as the run was given it, maybe wrong.
        output: a new folder: `outcome.json`, and `outcome.md` for people.
        changes, overrides: see `resolve_recipe`.
    """
    outcome = Outcome(ending, datetime.now(UTC).isoformat("T", "seconds"))
    try:
        settings = resolve_recipe(recipe, changes=changes, overrides=overrides)
        outcome.recipe = settings.name
        if settings.deploy.target == "kserve":
            _tidy_up(outcome, settings.deploy, on_nodes=settings.training.job.nodes > 1)
    except DetoxError as error:
        outcome.unseen = error.message
    value, lines = outcome.as_json(), outcome.lines()
    with step_folder(output, "outcome", settings=asdict(ending), inputs={}) as folder:
        (folder / OutcomeFolder.outcome).write_text(json.dumps(value, indent=2, ensure_ascii=False), "utf-8")
        (folder / OutcomeFolder.page).write_text("\n".join(lines) + "\n", "utf-8")
        folder.result.update(value)
    for line in lines:
        say(line)
    return outcome


def _tidy_up(outcome: Outcome, settings: DeploySection, *, on_nodes: bool) -> None:
    """Look at the cluster and remove what is left; each part, whether or not the others can be done."""
    from llm_detox.cluster.api import Cluster
    from llm_detox.cluster.train_job import remove_running
    from llm_detox.serve.kserve.deploy import remove_leftover

    run = outcome.ending.run

    def serving_project() -> Cluster:
        return Cluster.connect(settings.namespace, away_seconds=_AWAY_SECONDS)

    def own_project() -> Cluster:
        return Cluster.connect(away_seconds=_AWAY_SECONDS)

    def look_at_steps() -> None:
        outcome.steps = _steps(own_project().pods_of_run(run))

    def remove_canary() -> None:
        name = remove_leftover(settings, run, serving_project())
        outcome.canaries = (name,) if name else ()

    def look_at_service() -> None:
        outcome.served = _served(serving_project().service(settings.name))

    def remove_jobs() -> None:
        outcome.ended_jobs = tuple(remove_running(own_project(), run))

    unseen = []
    for part in (look_at_steps, remove_canary, look_at_service, *((remove_jobs,) if on_nodes else ())):
        try:
            part()
        except DetoxError as error:
            unseen.append(error.message)
    outcome.unseen = "; ".join(dict.fromkeys(unseen)) or None


def _served(live: InferenceService | None) -> Served:
    from llm_detox.serve.kserve.render import ADDRESS

    return Served(live.annotations.get(ADDRESS), live.ready) if live else Served(None, False)


def _steps(pods: Sequence[Pod]) -> Steps:
    """The failures, of the last attempt at each step only, and what became of the gate, where there is one."""
    last: dict[str, tuple[int, Pod]] = {}
    for pod in pods:
        node, attempt = _node(pod)
        if node not in last or attempt > last[node][0]:
            last[node] = (attempt, pod)
    names = {_step(node) for node in last}
    failures = tuple(one for node, (_, pod) in last.items() if (one := _failure(pod, _step(node))))
    if "report" not in names or failures:
        return Steps(failures, None)
    return Steps(failures, "passed" if "publish" in names else "not passed")


def _node(pod: Pod) -> tuple[str, int]:
    """Where in the run's graph a pod stands, `run.root.steps.sft.executor`, and which attempt it is."""
    name = pod.annotations.get(_NODE_NAME) or pod.name
    attempt = _ATTEMPT.search(name)
    return (name[:attempt.start()], int(attempt[1])) if attempt else (name, 0)


def _step(node: str) -> str:
    """`run.root.steps.sft.executor` and the driver before it, `run.root.steps.sft-driver` -> `sft`."""
    return node.removesuffix(".executor").rpartition(".")[2].removesuffix("-driver")


def _failure(pod: Pod, step: str) -> StepError | PodFailure | None:
    """What a step's pod ended with; `pipeline_step` leaves its error as the last words of its container."""
    for container in pod.containers:
        end = container.termination
        if end and end.exit_code:
            return StepError.read(end.message) or PodFailure(
                step, end.message.strip() or f"{end.reason or 'ended'}, exit code {end.exit_code}")
    if pod.phase == "Failed":  # evicted, or never started
        return PodFailure(step, ": ".join(part for part in (pod.reason, pod.message) if part))
    return None


def _failure_lines(failure: StepError | PodFailure) -> Iterator[str]:
    place = failure.place if isinstance(failure, StepError) else None
    at = f" (at {place})" if place else ""
    yield f"- failed: {failure.step or 'a step'}: {failure.message or 'its log says why'}{at}"
    if isinstance(failure, StepError) and failure.remedy:
        yield f"  - remedy: {failure.remedy}"
