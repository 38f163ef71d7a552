"""A kubelet and scheduler for the pods of one namespace. What happens in a pod is somebody else's: see `PodRun`."""

from __future__ import annotations

import itertools
import threading
import time
from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from tests.standins.cluster.api import Api, ApiAway, ApiError
from tests.standins.cluster.pod_state import PodState
from tests.standins.cluster.worker import Worker

Object = dict[str, Any]
NODE = "standin-node"
_LEAVING_SECONDS = 0.3  # other controllers see that it leaves before it has left, as they do everywhere
_numbers = itertools.count(256 * 2 + 1)  # one address a pod in all of a session


@dataclass(frozen=True)
class PodEvent:
    """An event about a pod, of kind Warning unless it is said to be normal."""

    reason: str
    message: str
    normal: bool = False


class PodRun(Protocol):
    """A pod on the node."""

    def state(self) -> PodState:
        """As it is now."""

    def events(self) -> list[PodEvent]:
        """What has happened since this was asked last."""

    def stop(self) -> None:
        """End it; returns when nothing of it is left."""


class Kubelet(Worker):
    """Schedules pods that a controller made, reports their states and events, and ends those that are removed."""

    kinds = ("Pod",)

    def __init__(self, api: Api, namespace: str, pause_seconds: float = 0.1) -> None:
        super().__init__(api, namespace, pause_seconds)
        self._pods: list[Object] = []
        self.runs: dict[str, PodRun] = {}
        self._written: dict[str, Object] = {}
        self._addresses: dict[str, str] = {}
        self._leaving: dict[str, threading.Thread] = {}

    @abstractmethod
    def start(self, pod: Object, address: str) -> PodRun:
        """Begin with a pod.

        Args:
            pod: as its controller and the webhooks left it.
            address: its own.
        """

    def look(self) -> None:
        """Pods are asked for when one has changed; what happens in them is looked at each time."""
        if self.changed:
            self._pods = [one for one in self.api.list("Pod", self.namespace) if one["metadata"].get("ownerReferences")]
        for pod in self._pods:
            uid = pod["metadata"]["uid"]
            if "deletionTimestamp" in pod["metadata"]:
                self._let_go(pod)
                continue
            if uid not in self.runs:
                number = next(_numbers)
                self._addresses[uid] = f"10.244.{number // 256}.{number % 256}"
                self.runs[uid] = self.start(pod, self._addresses[uid])
            self._report(pod, self.runs[uid], self._addresses[uid])
        for uid in set(self.runs) - {one["metadata"]["uid"] for one in self._pods}:
            self.runs.pop(uid).stop()

    def end(self) -> None:
        for thread in self._leaving.values():
            thread.join()
        for run in self.runs.values():
            run.stop()

    def _let_go(self, pod: Object) -> None:
        """End the pod, then remove it; the other pods are not kept waiting."""
        uid = pod["metadata"]["uid"]
        if uid in self._leaving:
            return
        run = self.runs.pop(uid, None)

        def end() -> None:
            if run is not None:
                run.stop()
            time.sleep(_LEAVING_SECONDS)
            with suppress(ApiError, ApiAway):
                self.api.delete("Pod", self.namespace, pod["metadata"]["name"], grace_seconds=0)

        self._leaving[uid] = threading.Thread(target=end, daemon=True)
        self._leaving[uid].start()

    def _report(self, pod: Object, run: PodRun, address: str) -> None:
        name, state = pod["metadata"]["name"], run.state()
        if not state.unscheduled and "nodeName" not in pod["spec"]:
            self.api.create({"apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": NODE},
                             "metadata": {"name": name, "namespace": self.namespace}}, sub="binding")
            pod["spec"]["nodeName"] = NODE
        uid, status = pod["metadata"]["uid"], state.as_status(pod, address)
        if self._written.get(uid) != status:
            self.api.merge("Pod", self.namespace, name, {"status": status}, sub="status")
            self._written[uid] = status
        for event in run.events():
            self.api.create(_event(pod, event))


def _event(pod: Object, event: PodEvent) -> Object:
    given = pod["metadata"]
    return {"apiVersion": "v1", "kind": "Event", "type": "Normal" if event.normal else "Warning", "count": 1,
            "metadata": {"generateName": f"{given['name']}.", "namespace": given["namespace"]},
            "reason": event.reason, "message": event.message, "source": {"component": "kubelet", "host": NODE},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": given["name"], "uid": given["uid"],
                               "namespace": given["namespace"]}}
