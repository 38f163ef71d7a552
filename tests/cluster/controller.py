"""A stand-in for KServe's controller: it makes pods and writes status as a test tells it to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from llm_detox.serve.kserve.render import VERSION

Object = dict[str, Any]
Act = Callable[["Controller", dict[str, Any], int], None]
_KIND = ("serving.kserve.io", "v1beta1")


class Controller:
    """Looks at the InferenceServices of a namespace again and again.

    `play(name, act)` sets what happens to one of them: `act(controller, service, looks)` is called at every look,
    `looks` counting from 0 with each new generation. Others get ready at once.
    """

    def __init__(self, api: Any, namespace: str) -> None:
        from kubernetes import client

        self.core, self.custom, self.namespace = client.CoreV1Api(api), client.CustomObjectsApi(api), namespace
        self._errors = (client.exceptions.ApiException, OSError)
        self._acts: dict[str, Act] = {}
        self._looks: dict[tuple[str, int], int] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.address = "http://model.invalid"
        self.grpc: str | None = None

    def __enter__(self) -> Controller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)

    def play(self, name: str, act: Act) -> None:
        self._acts[name] = act

    def _run(self) -> None:
        from urllib3.exceptions import HTTPError

        while not self._end.wait(0.03):
            try:
                found = self.custom.list_namespaced_custom_object(*_KIND, self.namespace, "inferenceservices")["items"]
                for service in found:
                    if VERSION not in service["spec"]["predictor"].get("annotations", {}):
                        continue  # not one of ours
                    name, generation = service["metadata"]["name"], service["metadata"]["generation"]
                    looks = self._looks[name, generation] = self._looks.get((name, generation), -1) + 1
                    self._acts.get(name, get_ready)(self, service, looks)
                self._sweep({service["metadata"]["name"] for service in found})
            except (*self._errors, HTTPError):
                time.sleep(0.1)  # the API server is away, or the test changed something meanwhile: look again

    def _sweep(self, names: set[str]) -> None:
        """Pods go with what they were made for."""
        for pod in self.core.list_namespaced_pod(self.namespace).items:
            name = (pod.metadata.labels or {}).get("serving.kserve.io/inferenceservice")
            if name is not None and name not in names:
                self.core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=0)

    def status(self, service: Object, *, ready: bool, observed: int | None = None, transition: str = "",
               failure: Object | None = None) -> None:
        """Write the status, as of the generation given (by default the current one)."""
        model: Object = {"transitionStatus": transition or ("UpToDate" if ready else "InProgress"),
                         "states": {"activeModelState": "Loaded" if ready else "Pending", "targetModelState": ""},
                         "lastFailureInfo": failure}
        body = {"status": {
            "observedGeneration": service["metadata"]["generation"] if observed is None else observed,
            "conditions": [{"type": "Ready", "status": str(ready)}], "modelStatus": model,
            "address": {"url": self.address}, "url": self.address,
            "components": {"predictor": {"grpcUrl": self.grpc}} if self.grpc else {}}}
        self.custom.patch_namespaced_custom_object_status(
            *_KIND, self.namespace, "inferenceservices", service["metadata"]["name"], body)

    def pod(self, service: Object, **status: Any) -> str:
        """Make the pod of the service's version, if it is not there, and write its status; returns its name."""
        name, version = service["metadata"]["name"], version_of(service)
        pod = f"{name}-predictor-{version[:8]}"
        if pod not in {one.metadata.name for one in self.core.list_namespaced_pod(self.namespace).items}:
            self.core.create_namespaced_pod(self.namespace, {
                "metadata": {"name": pod, "labels": {"serving.kserve.io/inferenceservice": name},
                             "annotations": {VERSION: version}},
                "spec": {"containers": [{"name": "kserve-container", "image": "none"}]}})
        self.core.patch_namespaced_pod_status(pod, self.namespace, {"status": status})
        return pod

    def only_pod(self, service: Object) -> None:
        """One ready pod of the service's version, and no other."""
        name = self.pod(service, conditions=[{"type": "Ready", "status": "True"}, {"type": "PodScheduled",
                                                                                   "status": "True"}])
        for pod in self.pods(service["metadata"]["name"]):
            if pod.metadata.name != name:
                self.core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=0)

    def pods(self, name: str) -> list[Any]:
        found = self.core.list_namespaced_pod(
            self.namespace, label_selector=f"serving.kserve.io/inferenceservice={name}")
        return list(found.items)

    def warn(self, name: str, about: str, reason: str, message: str) -> None:
        """An event of kind Warning."""
        self.core.create_namespaced_event(self.namespace, {
            "metadata": {"name": name}, "type": "Warning", "reason": reason, "message": message,
            "involvedObject": {"kind": "ReplicaSet", "name": about, "namespace": self.namespace}})


def version_of(service: Object) -> str:
    return str(service["spec"]["predictor"]["annotations"][VERSION])


def get_ready(controller: Controller, service: Object, looks: int) -> None:
    if looks == 0:
        controller.only_pod(service)
        controller.status(service, ready=True)


def slowly(controller: Controller, service: Object, looks: int) -> None:
    """Unseen, then without pods, then loading, then ready."""
    if looks == 5:
        controller.status(service, ready=False)
    elif looks == 10:
        controller.pod(service, conditions=[{"type": "PodScheduled", "status": "True"}])
    elif looks == 15:
        get_ready(controller, service, 0)


def blocked(controller: Controller, service: Object, looks: int) -> None:
    if looks == 0:
        controller.pod(service, conditions=[{"type": "PodScheduled", "status": "True"}])
        controller.status(service, ready=False, transition="BlockedByFailedLoad", failure={
            "reason": "ModelLoadFailed", "message": "safetensors header too large", "exitCode": 1})


def without_gpu(controller: Controller, service: Object, looks: int) -> None:
    if looks == 0:
        controller.status(service, ready=False)
        controller.pod(service, conditions=[{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}])


def over_quota(controller: Controller, service: Object, looks: int) -> None:
    if looks == 0:
        controller.status(service, ready=False)
        name = service["metadata"]["name"]
        controller.warn(f"quota-{service['metadata']['generation']}", f"{name}-predictor-7d9c", "FailedCreate",
                        "pods is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1")


def by_version(**acts: Act) -> Act:
    """An act for versions that begin with the letters given (`v2=blocked`); all others get ready."""

    def act(controller: Controller, service: Object, looks: int) -> None:
        acts.get(f"v{version_of(service)[0]}", get_ready)(controller, service, looks)

    return act
