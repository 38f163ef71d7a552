"""What a deployment is: `deployment.json` beside it, and what the deploy step gives back for each target."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.processes import Process
from llm_detox.runs.artifacts import DeploymentFolder

PROTOCOLS = ("rest", "grpc", "openai")  # by which a deployed model can be asked, those of `urls`
_SCHEMA = 1


@dataclass(frozen=True)
class LocalDeployment:
    """A model that is served on this machine.

    Args:
        model_id: the id that requests give.
        address, digest: of the published version.
        rest_url, grpc_address: where it answers; `urls` has all protocols.
        model: the folder that is served.
    """

    model_id: str
    address: str | None
    digest: str | None
    rest_url: str
    grpc_address: str
    urls: Mapping[str, str]
    model: str


@dataclass(frozen=True)
class KserveDeployment:
    """A model that is served in a cluster.

    Args:
        model_id: the id that requests give, and the name of the InferenceService.
        rest_url, grpc_url: where it answers over HTTP, and over gRPC; None where gRPC is not offered.
        urls: protocol -> address, for the clients.
        address, version: what was published.
        namespace: the project.
        rollout: "created", "unchanged", "replaced", or "promoted" after a canary.
        previous: the address before; None for the first.
    """

    model_id: str
    rest_url: str
    grpc_url: str | None
    urls: Mapping[str, str]
    address: str
    version: str
    namespace: str
    rollout: str
    previous: str | None

    def text(self) -> str:
        """The content of `deployment.json`."""
        return json.dumps({
            "schema": _SCHEMA, "target": "kserve", "name": self.model_id, "namespace": self.namespace,
            "address": self.address, "version": self.version, "urls": dict(self.urls),
            "previous": self.previous, "rollout": self.rollout}, indent=2)


@dataclass(frozen=True)
class DeploymentState:
    """`deployment.json` as it is read by those who ask the model or end it.

    Args:
        name: the id that requests give.
        urls: protocol -> address.
        address, digest: of the version that is served; None for a folder that was not published.
        model, started, processes: of a local deployment: the folder, the time in UTC, what serves it.
    """

    name: str
    urls: Mapping[str, str]
    address: str | None = None
    digest: str | None = None
    model: str = ""
    started: str = ""
    processes: tuple[Process, ...] = ()

    def write(self, deployment: Path) -> None:
        """Put a local deployment's `deployment.json` into its folder, in one step, for the owner alone."""
        served = {"address": self.address, **({"digest": self.digest} if self.digest else {})}
        value = {"schema": _SCHEMA, "target": "local", "name": self.name, "model": self.model, "urls": dict(self.urls),
                 "started": self.started, **served, "processes": [asdict(one) for one in self.processes]}
        path = DeploymentFolder(deployment).deployment
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
        new.replace(path)


def read_state(deployment: Path) -> DeploymentState:
    """The state of a deployment folder, or of the file `deployment.json` itself.

    Raises:
        DetoxError: there is none.
    """
    path = DeploymentFolder(deployment).deployment if deployment.is_dir() else deployment
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return DeploymentState(
            value.get("name", ""), value.get("urls", {}), value.get("address"), value.get("digest"),
            value.get("model", ""), value.get("started", ""),
            tuple(Process(**one) for one in value.get("processes", ())))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        raise DetoxError("this is not a deployment (no readable deployment.json)", place=str(deployment),
                         remedy="pass the folder that `llm-detox deploy` wrote") from None


def note_version(deployment: Path, *, address: str, digest: str) -> None:
    """Write down that another version is served now; a reader sees the old content or the new one."""
    replace(read_state(deployment), address=address, digest=digest).write(deployment)
