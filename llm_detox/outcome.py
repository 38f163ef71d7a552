"""What became of a pipeline run: written when it ends, however it ends, after what it left behind is removed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.folders import step_folder
from llm_detox.progress import say
from llm_detox.recipe import DeploySection
from llm_detox.recipe_file import settle_recipe

OUTCOME = "outcome.json"
_AWAY_SECONDS = 60.0


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
        changes, overrides: see `settle_recipe`.

    Returns:
        The fields of `ending`, `recipe` (its name), `ended` (UTC), and for a cluster `failures` (step and message
        each), `removed` (a canary that this run left), `serving` (the address that is served now) and `ready`;
        `unseen` says why these are not known.
    """
    told: dict[str, Any] = {**asdict(ending), "ended": datetime.now(UTC).isoformat("T", "seconds")}
    try:
        settled = settle_recipe(recipe, changes=changes, overrides=overrides)
        told["recipe"] = settled.name
        if settled.deploy.target == "kserve":
            told |= _tidy_up(settled.deploy, ending.run)
    except DetoxError as error:
        told["unseen"] = error.message
    with step_folder(output, "outcome", settings=asdict(ending), inputs={}) as folder:
        (folder / OUTCOME).write_text(json.dumps(told, indent=2, ensure_ascii=False), "utf-8")
        (folder / "outcome.md").write_text("\n".join(lines(told)) + "\n", "utf-8")
        folder.result.update(told)
    for line in lines(told):
        say(line)
    return told


def lines(told: Mapping[str, Any]) -> list[str]:
    """The outcome for people, as Markdown."""
    found = [f"**{told['state']}**: run {told['run']} of {told.get('recipe', 'a recipe that cannot be read')}"]
    if told["state"] != "SUCCEEDED":
        failures = told.get("failures") or [{"step": told["task"], "message": told["message"]}]
        found += [f"- failed: {one['step'] or 'a step'}: {one['message'] or 'its log says why'}" for one in failures]
    if told.get("removed"):
        found.append(f"- removed: the canary {told['removed']}, which this run left behind")
    if "serving" in told:
        state = "ready" if told["ready"] else "not ready"
        found.append(f"- serving now: {told['serving']} ({state})" if told["serving"] else "- serving now: nothing")
    if told.get("unseen"):
        found.append(f"- not looked at: {told['unseen']}")
    return found


def _tidy_up(settings: DeploySection, run: str) -> dict[str, Any]:
    from llm_detox.deploy.kserve import remove_leftover
    from llm_detox.deploy.kserve_api import Cluster
    from llm_detox.deploy.kserve_render import ADDRESS
    from llm_detox.deploy.kserve_status import condition

    cluster = Cluster.connect(settings.namespace, away_seconds=_AWAY_SECONDS)
    failures = [failure for pod in cluster.pods_of_run(run) for failure in _failures(pod)]
    removed = remove_leftover(settings, run, cluster)
    live = cluster.service(settings.name)
    return {
        "failures": failures,
        "removed": removed,
        "serving": live["metadata"].get("annotations", {}).get(ADDRESS) if live else None,
        "ready": live is not None and condition(live, "Ready").get("status") == "True",
    }


def _failures(pod: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """What the containers of a step's pod ended with; `pipeline_step` leaves its error as their last words."""
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            yield _last_words(str(ended.get("message") or ""), pod["metadata"]["name"],
                              f"{ended.get('reason', 'ended')}, exit code {ended['exitCode']}")


def _last_words(message: str, pod: str, otherwise: str) -> dict[str, str]:
    try:
        told = json.loads(message)
        return {"step": str(told["step"]), "message": str(told["message"])}
    except (ValueError, KeyError, TypeError):
        return {"step": pod, "message": message.strip() or otherwise}
