"""The local target: a published model, fetched back and served on this machine by detached processes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from llm_detox import __version__, processes
from llm_detox.errors import DetoxError, clear_disk_errors
from llm_detox.processes import Process
from llm_detox.progress import say
from llm_detox.runs.folders import MANIFEST
from llm_detox.runs.locks import locked
from llm_detox.serve.deployment import DeploymentState, LocalDeployment, read_state
from llm_detox.serve.local_stack import Ports, start, wait_until_ready
from llm_detox.storage import fetch_model


def deploy_local(address: str, *, name: str, output: Path, rest_port: int = 0, grpc_port: int = 0) -> LocalDeployment:
    """Fetch a published model with checksums and serve it; returns when a generation has come back from it.

    Args:
        address: what `publish` returned.
        name: the id under which the model answers.
        output: a new folder for the model, the logs and `deployment.json`.
        rest_port, grpc_port: wanted ports; 0 takes free ones.

    Raises:
        DetoxError: the folder exists, a port is in use, the model cannot be fetched, or it does not get ready; then
            nothing is left running.
    """
    with clear_disk_errors(output, "choose another --output"), locked(output):
        if output.exists():
            raise DetoxError("the output exists already", place=str(output),
                             remedy="choose another --output, or stop and remove this deployment")
        ports = Ports.choose(rest_port, grpc_port)
        output.mkdir(parents=True)
        return _deploy(address, name, output, ports)


def _deploy(address: str, name: str, output: Path, ports: Ports) -> LocalDeployment:
    try:
        fetched = fetch_model(address, output / "model")
        state = serve_folder(output / "model", name=name, ports=ports, output=output, address=fetched.address,
                             digest=fetched.digest)
    except BaseException:
        stop_local(output)
        shutil.rmtree(output, ignore_errors=True)
        raise
    deployed = LocalDeployment(name, state.address, state.digest, state.urls["rest"],
                               state.urls["grpc"].removeprefix("grpc://"), state.urls, state.model)
    manifest = {"schema": 1, "kind": "deployment", "code_version": __version__, "result": asdict(deployed)}
    (output / MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")
    return deployed


def serve_folder(model: Path, *, name: str, ports: Ports, output: Path, address: str | None = None,
                 digest: str | None = None, lifeline: bool = False) -> DeploymentState:
    """Start the topology on a Caikit folder and write `deployment.json`; returns its content.

    Args:
        model: the folder, or a link to it.
        name: the id under which the model answers.
        ports: see `Ports.choose`.
        output: the folder of the deployment, for the logs and `deployment.json`.
        address, digest: of the version, where it was published.
        lifeline: whether its processes end with this one, even where it is killed.

    Raises:
        DetoxError: it does not get ready; then nothing is left running.
    """
    started: list[Process] = []
    try:
        started = start(model, name, ports, output / "logs", lifeline=lifeline)
        state = DeploymentState(name, ports.urls(), address, digest, str(model.absolute()),
                                datetime.now(UTC).isoformat("T", "seconds"), tuple(started))
        state.write(output)  # before it is ready, so that an interrupted start can be cleaned up
        wait_until_ready(started, ports, name)
    except BaseException:
        processes.stop_all(started)
        raise
    say(f"{name} answers at {state.urls['rest']} (REST) and {state.urls['grpc']} (gRPC)")
    return state


def stop_local(deployment: Path) -> list[str]:
    """End exactly the processes of a deployment; returns the names of those that were running.

    A process counts as ours only while its start time is the noted one. A folder without a deployment has none.
    """
    try:
        state = read_state(deployment)
    except DetoxError:
        return []
    return [process.name for process in processes.stop_all(state.processes[::-1])]
