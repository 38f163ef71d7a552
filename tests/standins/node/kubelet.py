"""A kubelet whose pods are processes of this machine, with the manifest's own commands, volumes and probes."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.standins.cluster.api import Api
from tests.standins.cluster.kubelet import NODE, Kubelet, PodEvent, PodRun
from tests.standins.cluster.pod_state import ContainerState, PodState, Terminated, Waiting
from tests.standins.node.container import Container, Program, command_of
from tests.standins.node.enter import Mount
from tests.standins.node.environment import ConfigError, user_of, variables
from tests.standins.node.images import image_of
from tests.standins.node.policy import lets_out
from tests.standins.node.sandbox import Refused, Sandbox
from tests.standins.node.volumes import MountFailed, fill_volumes, mounts_of

Object = dict[str, Any]
STORE_FILE = "/run/store.json"
_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Store:
    """The object store that the storage initializer of a pod finds.

    Args:
        folder: `<folder>/<bucket>/<key>` are its objects.
        endpoint: its URL.
        access_key, secret_key: who may read.
        authority: PEM of its certificate's authority; empty where everybody trusts it.
    """

    folder: str
    endpoint: str
    access_key: str
    secret_key: str
    authority: str = ""


class ProcessKubelet(Kubelet):
    """Runs pods.

    Args:
        api: the administrator's.
        namespace: where.
        store: for the storage initializers.
        factor: periods, delays and back-offs of the manifests are divided by it.
        arbitrary_user: the number that OpenShift would give to the project's pods; None for plain Kubernetes.
    """

    def __init__(self, api: Api, namespace: str, store: Store | None = None, factor: float = 5.0,
                 arbitrary_user: int | None = None) -> None:
        super().__init__(api, namespace)
        self.store, self.factor, self.arbitrary_user = store, factor, arbitrary_user
        self.folder = Path(tempfile.mkdtemp(prefix="node-"))
        self.by_name: dict[str, RunningPod] = {}
        if api.get("Node", "", NODE) is None:  # endpoints are only made of pods whose node is known
            api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})

    def start(self, pod: Object, address: str) -> PodRun:
        folder = self.folder / f"{len(self.by_name)}"
        folder.mkdir()
        run = self.by_name[pod["metadata"]["name"]] = RunningPod(pod, address, folder, self)
        return run

    def log(self, pod: str, container: str) -> str:
        """What a container has printed, of all its starts."""
        return self.by_name[pod].log(container)

    def connect(self, address: str, port: int) -> socket.socket:
        """A connection to a pod's address.

        Raises:
            Refused: no such pod, or nothing listens there.
        """
        for run in self.by_name.values():
            if run.address == address:
                return run.sandbox.connect(port)
        raise Refused(f"dial tcp {address}:{port}: no route to host")

    def end(self) -> None:
        super().end()
        shutil.rmtree(self.folder, ignore_errors=True)


class RunningPod:
    """A pod's containers: first the init containers, one after the other, then the others together."""

    def __init__(self, pod: Object, address: str, folder: Path, kubelet: ProcessKubelet) -> None:
        self.pod, self.address, self._folder, self._kubelet = pod, address, folder, kubelet
        self.sandbox = Sandbox(folder, address)
        self._init: list[Container] = []
        self._containers: list[Container] = []
        self._waits: dict[str, Waiting] = {}
        self._news: list[PodEvent] = []
        self._end, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._bring_up, name=pod["metadata"]["name"], daemon=True)
        self._thread.start()

    def state(self) -> PodState:
        spec = self.pod["spec"]
        return PodState(self._states(self._init, spec.get("initContainers", ())),
                        self._states(self._containers, spec["containers"]))

    def events(self) -> list[PodEvent]:
        with self._lock:
            news, self._news = self._news, []
        return news

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(Container.stop, [*self._init, *self._containers]))
        self.sandbox.close()

    def log(self, name: str) -> str:
        """What a container has printed."""
        for container in (*self._init, *self._containers):
            if container.state.name == name and container.log.exists():
                return container.log.read_text("utf-8", "replace")
        return ""

    def _states(self, running: list[Container], specs: list[Object]) -> tuple[ContainerState, ...]:
        states = {one.state.name: one.state for one in running}
        initial = Waiting("PodInitializing" if self._init else "ContainerCreating")
        return tuple(states.get(one["name"]) or ContainerState(one["name"], self._waits.get(one["name"], initial))
                     for one in specs)

    def _tell(self, event: PodEvent) -> None:
        with self._lock:
            if event not in self._news:
                self._news.append(event)

    def _bring_up(self) -> None:
        while not self.sandbox.is_up or not self._fill_volumes():
            if self._end.wait(0.05 if not self.sandbox.is_up else _AGAIN_SECONDS):
                return
        policy = self.pod["spec"].get("restartPolicy", "Always")
        for specification in self.pod["spec"].get("initContainers", ()):
            container = self._start(specification, self._init, "Never" if policy == "Never" else "OnFailure")
            while container and container.state.now != Terminated(0):
                if self._end.wait(0.05):
                    return
        for specification in self.pod["spec"]["containers"]:
            self._start(specification, self._containers, policy)

    def _fill_volumes(self) -> bool:
        try:
            fill_volumes(self.pod, self._folder / "volumes", self.address, self._kubelet.api)
        except MountFailed as failure:
            self._tell(PodEvent("FailedMount", str(failure)))
            return False
        return True

    def _start(self, specification: Object, group: list[Container], restarts: str) -> Container | None:
        """Start a container as soon as it can be; None where the pod ends first."""
        told: set[str] = set()
        while True:
            try:
                program = self._program(specification)
                break
            except _NotStarted as refusal:
                self._waits[specification["name"]] = refusal.state
                if str(refusal) not in told:
                    self._tell(PodEvent("Failed", f"Error: {refusal}"))
                    told.add(str(refusal))
            if self._end.wait(_AGAIN_SECONDS):
                return None
        container = Container(
            specification, program, self.sandbox, self._folder / specification["name"], restarts=restarts,
            factor=self._kubelet.factor, tell=self._tell,
            grace_seconds=self.pod["spec"].get("terminationGracePeriodSeconds", 30) / self._kubelet.factor)
        group.append(container)
        container.start()
        return container

    def _program(self, specification: Object) -> Program:
        image = image_of(specification)
        if image is None:
            words = f'Back-off pulling image "{specification["image"]}": ErrImagePull: not found'
            raise _NotStarted(Waiting("ImagePullBackOff", words))
        try:
            environment = variables(specification, image, self.pod, self.address, self._kubelet.api)
            user = user_of(specification, image, self.pod, self._kubelet.arbitrary_user)
        except ConfigError as refusal:
            raise _NotStarted(Waiting("CreateContainerConfigError", str(refusal))) from None
        command = command_of(specification, image.entrypoint, environment)
        mounts = mounts_of(specification, self._folder / "volumes")
        if specification in self.pod["spec"].get("initContainers", ()) and self._kubelet.store:
            mounts += self._store_mounts(self._kubelet.store)
        return Program(command, environment, user, mounts)

    def _store_mounts(self, store: Store) -> list[Mount]:
        """There is no way out of a pod's network here: the initializer finds the store in a file, and its folder."""
        policies = self._kubelet.api.list("NetworkPolicy", self._kubelet.namespace)
        port = urlsplit(store.endpoint).port or {"http": 80, "https": 443}[urlsplit(store.endpoint).scheme]
        file = self._folder / "store.json"
        file.write_text(json.dumps({**asdict(store), "folder": "/run/store",
                                    "reachable": lets_out(policies, self.pod, port)}), "utf-8")
        return [Mount(str(file), STORE_FILE, read_only=True), Mount(store.folder, "/run/store", read_only=True)]


class _NotStarted(Exception):
    """A container that cannot be started yet."""

    def __init__(self, state: Waiting) -> None:
        super().__init__(state.message)
        self.state = state
