"""The local target: a published model, fetched back and served on this machine by detached processes."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_detox import __version__, processes
from llm_detox.errors import DetoxError
from llm_detox.processes import Process
from llm_detox.progress import say
from llm_detox.runs.artifacts import DeploymentFolder
from llm_detox.runs.folders import MANIFEST
from llm_detox.serve.local_stack import Ports, start, wait_until_ready
from llm_detox.storage import fetch_model


def deploy_local(address: str, *, name: str, output: Path, rest_port: int = 0, grpc_port: int = 0) -> dict[str, Any]:
    """Fetch a published model with checksums and serve it; returns when a generation has come back from it.

    Args:
        address: what `publish` returned.
        name: the id under which the model answers.
        output: a new folder for the model, the logs and `deployment.json`.
        rest_port, grpc_port: wanted ports; 0 takes free ones.

    Returns:
        `model_id`, `address`, `digest`, `rest_url`, `grpc_address`, `urls` (rest, grpc, fmaas, engine) and `model`
        (the folder served).

    Raises:
        DetoxError: the folder exists, a port is in use, the model cannot be fetched, or it does not get ready; then
            nothing is left running.
    """
    if output.exists():
        raise DetoxError("the output exists already", place=str(output),
                         remedy="choose another --output, or stop and remove this deployment")
    ports = Ports.choose(rest_port, grpc_port)
    output.mkdir(parents=True)
    try:
        fetched = fetch_model(address, output / "model")
        state = serve_folder(output / "model", name=name, ports=ports, output=output,
                             about={"address": fetched["address"], "digest": fetched["digest"]})
    except BaseException:
        stop_local(output)
        shutil.rmtree(output, ignore_errors=True)
        raise
    urls = state["urls"]
    result = {"model_id": name, "address": state["address"], "digest": state["digest"], "rest_url": urls["rest"],
              "grpc_address": urls["grpc"].removeprefix("grpc://"), "urls": urls, "model": state["model"]}
    manifest = {"schema": 1, "kind": "deployment", "code_version": __version__, "result": result}
    (output / MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")
    return result


def serve_folder(model: Path, *, name: str, ports: Ports, output: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Start the topology on a Caikit folder and write `deployment.json`; returns its content.

    Raises:
        DetoxError: it does not get ready; then nothing is left running.
    """
    started: list[Process] = []
    try:
        started = start(model, name, ports, output / "logs")
        state = {"schema": 1, "target": "local", "name": name, "model": str(model.absolute()), "urls": ports.urls(),
                 "started": datetime.now(UTC).isoformat("T", "seconds"), **about,
                 "processes": [process.as_dict() for process in started]}
        # First of all, so that an interrupted start can be cleaned up.
        _write_private(DeploymentFolder(output).deployment, state)
        wait_until_ready(started, ports, name)
    except BaseException:
        processes.stop_all(started)
        raise
    say(f"{name} answers at {state['urls']['rest']} (REST) and {state['urls']['grpc']} (gRPC)")
    return state


def update_state(deployment: Path, changes: dict[str, Any]) -> None:
    """Note what is served now in `deployment.json`; a reader sees the old content or the new one."""
    new = deployment / f"{DeploymentFolder.deployment}.new"
    _write_private(new, {**read_state(deployment), **changes})
    new.replace(DeploymentFolder(deployment).deployment)


def read_state(deployment: Path) -> dict[str, Any]:
    """The state of a deployment folder, or of the file `deployment.json` itself.

    Raises:
        DetoxError: there is none.
    """
    path = DeploymentFolder(deployment).deployment if deployment.is_dir() else deployment
    try:
        state: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise DetoxError("this is no deployment (no readable deployment.json)", place=str(deployment),
                         remedy="pass the folder that `llm-detox deploy` wrote") from None
    return state


def stop_local(deployment: Path) -> list[str]:
    """End exactly the processes of a deployment; returns the names of those that were running.

    A process counts as ours only while its start time is the noted one. A folder without a deployment has none.
    """
    try:
        state = read_state(deployment)
    except DetoxError:
        return []
    ours = [Process(**one) for one in reversed(state.get("processes", ()))]
    return [process.name for process in processes.stop_all(ours)]


def is_serving(deployment: Path) -> bool:
    """Whether all processes of a deployment run."""
    found = [Process(**one) for one in read_state(deployment).get("processes", ())]
    return bool(found) and all(processes.is_running(process) for process in found)


def _write_private(path: Path, value: object) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
