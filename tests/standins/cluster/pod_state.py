"""The states of a pod's containers, and the status that a kubelet writes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Waiting:
    """Not started, or to be started again."""

    reason: str = "PodInitializing"
    message: str = ""


@dataclass(frozen=True)
class Running:
    """Started; whether it may take requests is said beside it."""


@dataclass(frozen=True)
class Terminated:
    """Ended."""

    exit_code: int
    reason: str = ""
    message: str = ""

    def as_state(self) -> Object:
        reason = self.reason or ("Error" if self.exit_code else "Completed")
        return {"exitCode": self.exit_code, "reason": reason, **({"message": self.message} if self.message else {})}


@dataclass(frozen=True)
class ContainerState:
    """One container: what it does, how it ended before, how often it was started again, and whether it is ready."""

    name: str
    now: Waiting | Running | Terminated = Waiting()
    last: Terminated | None = None
    restarts: int = 0
    ready: bool = False
    started: bool = False

    def as_status(self, image: str) -> Object:
        """As the pod's status has it."""
        if isinstance(self.now, Waiting):
            message = {"message": self.now.message} if self.now.message else {}
            state: Object = {"waiting": {"reason": self.now.reason, **message}}
        elif isinstance(self.now, Running):
            state = {"running": {}}
        else:
            state = {"terminated": self.now.as_state()}
        return {"name": self.name, "image": image, "imageID": "", "ready": self.ready, "started": self.started,
                "restartCount": self.restarts, "state": state,
                "lastState": {"terminated": self.last.as_state()} if self.last else {}}


@dataclass(frozen=True)
class PodState:
    """A pod: its containers, and why no node takes it, where that is so."""

    init: tuple[ContainerState, ...] = ()
    containers: tuple[ContainerState, ...] = ()
    unscheduled: str = ""

    @property
    def initialized(self) -> bool:
        return all(isinstance(one.now, Terminated) and one.now.exit_code == 0 for one in self.init)

    @property
    def ready(self) -> bool:
        return not self.unscheduled and all(one.ready for one in self.containers)

    def as_status(self, pod: Object, address: str) -> Object:
        """The pod's whole status."""
        if self.unscheduled:
            return {"phase": "Pending", "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": self.unscheduled}]}
        conditions = [{"type": kind, "status": str(holds)} for kind, holds in (
            ("PodScheduled", True), ("Initialized", self.initialized), ("ContainersReady", self.ready),
            ("Ready", self.ready))]
        spec = pod["spec"]
        return {"phase": self._phase(spec.get("restartPolicy", "Always")), "conditions": conditions,
                "podIP": address, "podIPs": [{"ip": address}], "hostIP": "127.0.0.1",
                "initContainerStatuses": _statuses(self.init, spec.get("initContainers", ())),
                "containerStatuses": _statuses(self.containers, spec["containers"])}

    def _phase(self, restarts: str) -> str:
        """`Running` from when each container has been started once; ended pods only where none is started again."""
        ends = [one.now for one in self.containers if isinstance(one.now, Terminated)]
        if restarts != "Always" and len(ends) == len(self.containers):
            if all(one.exit_code == 0 for one in ends):
                return "Succeeded"
            return "Failed" if restarts == "Never" else "Running"
        begun = [one for one in self.containers if not isinstance(one.now, Waiting) or one.restarts]
        return "Running" if self.initialized and len(begun) == len(self.containers) else "Pending"


def _statuses(states: Sequence[ContainerState], specs: Sequence[Object]) -> list[Object]:
    images = {one["name"]: one["image"] for one in specs}
    return [one.as_status(images[one.name]) for one in states]
