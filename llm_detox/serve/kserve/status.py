"""Reading what a cluster says about an InferenceService: is it ready, and if not, why, and can it still heal?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from llm_detox.serve.kserve.render import VERSION

Object = dict[str, Any]
Patience = Literal["settle", "pending", "start", "none"]
_BLOCKED = {
    "BlockedByFailedLoad": "read the logs: oc logs <pod> -c storage-initializer, then -c kserve-container",
    "InvalidSpec": "compare the InferenceService with the ServingRuntime that it names",
}
_PULL = {"ErrImagePull", "ImagePullBackOff"}
_MANY_RESTARTS = 3


@dataclass(frozen=True)
class Reason:
    """Why it is not ready yet.

    Args:
        key: what stays the same while the reason stays.
        text: for people.
        patience: how long it may last: "settle" (it does not heal; a moment for stale news), "pending" (others may
            make room), "start" (the controllers have to begin), "none" (it is part of coming up).
        remedy: what helps.
    """

    key: str
    text: str
    patience: Patience = "none"
    remedy: str = "see the events: oc get events --sort-by=.lastTimestamp"


def is_ready(service: Object, pods: Sequence[Object], version: str) -> bool:
    """Whether the version wanted, and no other, takes the requests.

    The condition `Ready` alone is not enough: it stays true for the old pods while the new ones come up, and it may
    be older than the last change.
    """
    status = service.get("status") or {}
    model = status.get("modelStatus") or {}
    ready = [pod for pod in pods if _pod_ready(pod)]
    return (
        seen(service) and condition(service, "Ready").get("status") == "True"
        and model.get("transitionStatus", "") in ("", "UpToDate")
        and bool(ready) and all(_version(pod) == version for pod in ready)
    )


def seen(service: Object) -> bool:
    """Whether the controller has looked at the last change."""
    return int((service.get("status") or {}).get("observedGeneration", -1)) >= int(service["metadata"]["generation"])


def condition(service: Object, kind: str) -> Object:
    conditions = (service.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one.get("type") == kind), {})


def reasons(service: Object, pods: Sequence[Object], warnings: Sequence[Object], version: str) -> list[Reason]:
    """All that stands between the service and being ready, the most telling first."""
    if not seen(service):
        return [Reason("unseen", "the KServe controller has not seen the change yet", "start",
                       "check that the controller runs: oc get pods -A -l control-plane=kserve-controller-manager")]
    found = [*_model(service)]
    for pod in pods:
        if _version(pod) == version and not pod["metadata"].get("deletionTimestamp"):
            found += _pod(pod)
    found += [reason for event in warnings for reason in _event(event)]
    if not found:
        found += _waiting(service, pods, version)
    return found


def _model(service: Object) -> Iterator[Reason]:
    model = service["status"].get("modelStatus") or {}
    failure = model.get("lastFailureInfo") or {}
    transition = model.get("transitionStatus", "")
    if transition in _BLOCKED:
        told = ": ".join(str(failure[key]) for key in ("reason", "message") if failure.get(key))
        code = f" (exit code {failure['exitCode']})" if failure.get("exitCode") else ""
        yield Reason(f"model {transition}", f"{transition}: {told or 'no details'}{code}", "settle",
                     _BLOCKED[transition])


def _pod(pod: Object) -> Iterator[Reason]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for one in status.get("conditions") or ():
        if one.get("type") == "PodScheduled" and one.get("status") == "False":
            yield Reason(f"{name} unscheduled", f"pod {name} waits for a node: {one.get('message', one.get('reason'))}",
                         "pending", "free a GPU, add a node, or set deploy.kserve.gpus, tolerations or node_selector")
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        yield from _container(name, container)


def _container(pod: str, container: Object) -> Iterator[Reason]:
    where, state = f"pod {pod}, container {container['name']}", container.get("state") or {}
    waiting, last = state.get("waiting") or {}, (container.get("lastState") or {}).get("terminated") or {}
    reason, told = waiting.get("reason", ""), waiting.get("message", "")
    key = f"{pod} {container['name']} {reason}"
    if reason in _PULL:
        yield Reason(f"{pod} {container['name']} image", f"{where}: the image does not come: {told or reason}",
                     "pending", "check the image's name in manifests/settings and the pull secret")
    elif reason in ("InvalidImageName", "ErrImageNeverPull"):
        yield Reason(key, f"{where}: {reason}: {told}", "settle", "correct the image in manifests/settings")
    elif reason in ("CreateContainerConfigError", "CreateContainerError"):
        yield Reason(key, f"{where}: {told or reason}", "settle", "make the Secret or ConfigMap that it names")
    elif last and int(container.get("restartCount", 0)) >= _MANY_RESTARTS:
        cause = last.get("message") or last.get("reason") or "no message"
        remedy = ("give it more memory: deploy.kserve.memory" if last.get("reason") == "OOMKilled"
                  else f"oc logs {pod} -c {container['name']} --previous")
        code, times = last.get("exitCode"), container["restartCount"]
        yield Reason(key, f"{where} ended {times} times (exit code {code}): {cause}", "settle", remedy)


def _event(event: Object) -> Iterator[Reason]:
    reason, told = event.get("reason", ""), str(event.get("message", ""))
    key = f"event {event['involvedObject'].get('name')} {reason}"
    if "exceeded quota" in told:
        yield Reason(key, f"the quota does not admit the pod: {told}", "pending",
                     "raise the quota, or set deploy.kserve.cpu, memory or gpus lower")
    elif reason in ("FailedCreate", "FailedMount", "FailedAttachVolume", "InternalError"):
        yield Reason(key, f"{reason}: {told}", "pending")
    elif reason in ("FailedScheduling", "Unhealthy", "BackOff", "Failed", "Evicted"):
        yield Reason(key, f"{reason}: {told}")


def _waiting(service: Object, pods: Sequence[Object], version: str) -> Iterator[Reason]:
    of_version = [pod for pod in pods if _version(pod) == version]
    if not of_version:
        yield Reason("no pod", "no pod of this version yet", "start")
    elif any(_pod_ready(pod) and _version(pod) != version for pod in pods):
        yield Reason("old pod", "a pod of the version before still takes requests")
    else:
        ready = condition(service, "Ready")
        told = ready.get("message") or ready.get("reason") or "the model is being fetched and loaded"
        yield Reason("coming up", str(told))


def _version(pod: Object) -> str | None:
    version = (pod["metadata"].get("annotations") or {}).get(VERSION)
    return None if version is None else str(version)


def _pod_ready(pod: Object) -> bool:
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def urls(service: Object, rest_url: str | None = None, grpc_url: str | None = None) -> dict[str, str]:
    """Where the model answers: what the recipe says, else the status, else KServe's naming rule.

    Returns:
        `rest` and `grpc`.
    """
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    status = service.get("status") or {}
    rest = rest_url or (status.get("address") or {}).get("url") or (
        f"http://{name}-predictor.{namespace}.svc.cluster.local:8080")
    told = ((status.get("components") or {}).get("predictor") or {}).get("grpcUrl")
    parts = urlsplit(rest)
    scheme = "grpcs" if parts.scheme == "https" else "grpc"
    derived = f"{scheme}://{told.partition('://')[2] or told}" if told else f"{scheme}://{parts.hostname}:8085"
    return {"rest": rest.rstrip("/"), "grpc": grpc_url or derived}
