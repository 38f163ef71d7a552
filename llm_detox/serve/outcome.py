"""What became of a pipeline run: written when it ends, however it ends, after what it left behind is removed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import resolve_recipe
from llm_detox.runs.artifacts import OutcomeFolder
from llm_detox.runs.folders import step_folder

_AWAY_SECONDS = 60.0
_NODE_NAME = "workflows.argoproj.io/node-name"
_ATTEMPT = re.compile(r"\((\d+)\)$")


@dataclass(frozen=True)
class Ending:
    """How the pipeline server says that a run ended.

    Args:
        run: its id.
        state: SUCCEEDED, FAILED or CANCELLED.
        task: the part of the pipeline that ended so.
        message: the cause, where the server tells it.
    """

    run: str
    state: str
    task: str = ""
    message: str = ""


def write_outcome(
    ending: Ending, recipe: str, *, output: Path, changes: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Remove what a run left half done in its cluster, and write what became of it.

    Nothing that is missing or unreachable here is an error: the run has its outcome already, and the words say what
    could not be looked at.

    Args:
        ending: how it ended.
        recipe: as the run was given it, maybe wrong.
        output: a new folder: `outcome.json`, and `outcome.md` for people.
        changes, overrides: see `resolve_recipe`.

    Returns:
        The fields of `ending`, `recipe` (its name), `ended` (UTC), and for a cluster `failures` (step, message, place
        and remedy of the last attempt), `gate` ("passed" or "not passed", where a report was made), `removed` (a canary
        that this run left), `ended_jobs` (training that it left running), `serving` (the address that is served now)
        and `ready`; `unseen` says why some of these are not known.
    """
    told: dict[str, Any] = {**asdict(ending), "ended": datetime.now(UTC).isoformat("T", "seconds")}
    try:
        settled = resolve_recipe(recipe, changes=changes, overrides=overrides)
        told["recipe"] = settled.name
        if settled.deploy.target == "kserve":
            told |= _tidy_up(settled, ending.run)
    except DetoxError as error:
        told["unseen"] = error.message
    with step_folder(output, "outcome", settings=asdict(ending), inputs={}) as folder:
        (folder / OutcomeFolder.outcome).write_text(json.dumps(told, indent=2, ensure_ascii=False), "utf-8")
        (folder / OutcomeFolder.page).write_text("\n".join(lines(told)) + "\n", "utf-8")
        folder.result.update(told)
    for line in lines(told):
        say(line)
    return told


def lines(told: Mapping[str, Any]) -> list[str]:
    """The outcome for people, as Markdown."""
    found = [f"**{told['state']}**: run {told['run']} of {told.get('recipe', 'a recipe that cannot be read')}"]
    if told["state"] != "SUCCEEDED":
        failures = told.get("failures") or [{"step": told["task"], "message": told["message"]}]
        found += [line for one in failures for line in _failure_lines(one)]
    elif told.get("gate") == "not passed":
        found.append("- the model did not pass the gate: nothing was published; the report says why")
    if told.get("removed"):
        found.append(f"- removed: the canary {told['removed']}, which this run left behind")
    if told.get("ended_jobs"):
        found.append(f"- removed: the training jobs {', '.join(told['ended_jobs'])}, which this run left running")
    if "serving" in told:
        state = "ready" if told["ready"] else "not ready"
        found.append(f"- serving now: {told['serving']} ({state})" if told["serving"] else "- serving now: nothing")
    if told.get("unseen"):
        found.append(f"- not looked at: {told['unseen']}")
    return found


def _failure_lines(failure: Mapping[str, str | None]) -> Iterator[str]:
    place = f" (at {failure['place']})" if failure.get("place") else ""
    yield f"- failed: {failure['step'] or 'a step'}: {failure['message'] or 'its log says why'}{place}"
    if failure.get("remedy"):
        yield f"  - remedy: {failure['remedy']}"


def _tidy_up(recipe: Recipe, run: str) -> dict[str, Any]:
    """Each of its parts, whether or not the others can be done."""
    from llm_detox.cluster.api import Cluster
    from llm_detox.cluster.train_job import remove_running
    from llm_detox.serve.kserve.deploy import remove_leftover

    settings = recipe.deploy

    def serving_project() -> Cluster:
        return Cluster.connect(settings.namespace, away_seconds=_AWAY_SECONDS)

    def own_project() -> Cluster:
        return Cluster.connect(away_seconds=_AWAY_SECONDS)

    parts: list[Callable[[], dict[str, Any]]] = [
        lambda: _told_by_pods(own_project().pods_of_run(run)),
        lambda: {"removed": remove_leftover(settings, run, serving_project())},
        lambda: _served(serving_project().service(settings.name))]
    if recipe.training.job.nodes > 1:
        parts.append(lambda: {"ended_jobs": remove_running(own_project(), run)})
    told: dict[str, Any] = {}
    unseen = []
    for part in parts:
        try:
            told |= part()
        except DetoxError as error:
            unseen.append(error.message)
    return {**told, **({"unseen": "; ".join(dict.fromkeys(unseen))} if unseen else {})}


def _served(live: dict[str, Any] | None) -> dict[str, Any]:
    from llm_detox.serve.kserve.render import ADDRESS
    from llm_detox.serve.kserve.status import condition

    return {"serving": live["metadata"].get("annotations", {}).get(ADDRESS) if live else None,
            "ready": live is not None and condition(live, "Ready").get("status") == "True"}


def _told_by_pods(pods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The failures, of the last attempt at each step only, and what became of the gate, where there is one."""
    last: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for pod in pods:
        node, attempt = _node(pod)
        if node not in last or attempt > last[node][0]:
            last[node] = (attempt, pod)
    steps = {_step(node) for node in last}
    told: dict[str, Any] = {"failures": [one for node, (_, pod) in last.items() if (one := _failure(pod, _step(node)))]}
    if "report" in steps and not told["failures"]:
        told["gate"] = "passed" if "publish" in steps else "not passed"
    return told


def _node(pod: Mapping[str, Any]) -> tuple[str, int]:
    """Where in the run's graph a pod stands, `run.root.steps.sft.executor`, and which attempt it is."""
    name = str(pod["metadata"].get("annotations", {}).get(_NODE_NAME) or pod["metadata"]["name"])
    attempt = _ATTEMPT.search(name)
    return (name[:attempt.start()], int(attempt[1])) if attempt else (name, 0)


def _step(node: str) -> str:
    """`run.root.steps.sft.executor` and the driver before it, `run.root.steps.sft-driver` -> `sft`."""
    return node.removesuffix(".executor").rpartition(".")[2].removesuffix("-driver")


def _failure(pod: Mapping[str, Any], step: str) -> dict[str, str | None] | None:
    """What a step's pod ended with; `pipeline_step` leaves its error as the last words of its container."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            return _last_words(str(ended.get("message") or ""), step,
                               f"{ended.get('reason', 'ended')}, exit code {ended['exitCode']}")
    if status.get("phase") == "Failed":  # evicted, or never started
        return _last_words("", step, ": ".join(filter(None, (status.get("reason"), status.get("message")))))
    return None


def _last_words(message: str, step: str, otherwise: str) -> dict[str, str | None]:
    try:
        told = json.loads(message)
        return {"step": str(told["step"]), **{key: told.get(key) for key in ("message", "place", "remedy")}}
    except (ValueError, KeyError, TypeError):
        return {"step": step, "message": message.strip() or otherwise}
