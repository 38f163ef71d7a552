"""Is an InferenceService ready, and if not, why, and can it still heal? And waiting for it, with the reasons shown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from llm_detox.cluster.api import Cluster
from llm_detox.cluster.objects import Container, Event, InferenceService, Pod
from llm_detox.errors import DetoxError
from llm_detox.progress import human_seconds, say
from llm_detox.serve.kserve.render import VERSION

_BLOCKED = {
    "BlockedByFailedLoad": "read the logs: oc logs <pod> -c storage-initializer, then -c kserve-container",
    "InvalidSpec": "compare the InferenceService with the ServingRuntime that it names",
}
_PULL = {"ErrImagePull", "ImagePullBackOff"}
_MANY_RESTARTS = 3
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Patience:
    """Seconds: for all, for the controllers to begin, for pods that nobody admits, for a failure to turn out stale, and
    between two looks."""

    ready: float = 1800.0
    start: float = 300.0
    pending: float = 600.0
    settle: float = 20.0
    poll: float = 2.0


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
    patience: Literal["settle", "pending", "start", "none"] = "none"
    remedy: str = "see the events: oc get events --sort-by=.lastTimestamp"


def is_ready(service: InferenceService, pods: Sequence[Pod], version: str) -> bool:
    """Whether the version wanted, and no other, takes the requests.

    The condition `Ready` alone is not enough: it stays true for the old pods while the new ones come up, and it may
    be older than the last change.
    """
    ready = [pod for pod in pods if pod.ready]
    return (is_seen(service) and service.ready and service.transition in ("", "UpToDate")
            and bool(ready) and all(_version(pod) == version for pod in ready))


def is_seen(service: InferenceService) -> bool:
    """Whether the controller has looked at the last change."""
    return service.observed_generation >= service.generation


def reasons(service: InferenceService, pods: Sequence[Pod], warnings: Sequence[Event], version: str) -> list[Reason]:
    """All that stands between the service and being ready, the most telling first."""
    if not is_seen(service):
        return [Reason("unseen", "the KServe controller has not seen the change yet", "start",
                       "check that the controller runs: oc get pods -A -l control-plane=kserve-controller-manager")]
    known = [*_of_model(service)]
    for pod in pods:
        if _version(pod) == version and not pod.leaving:
            known += _of_pod(pod)
    known += [reason for event in warnings for reason in _of_event(event)]
    return known or [_of_coming_up(service, pods, version)]


def noted_warnings(cluster: Cluster, name: str) -> set[tuple[str, int]]:
    """The warnings that are there already: what they say is about an earlier change."""
    return {(event.uid, event.count) for event in cluster.warnings(name)}


def wait_until_ready(cluster: Cluster, name: str, version: str, patience: Patience,
                     known: set[tuple[str, int]]) -> InferenceService:
    """Wait until pods of this version, and only they, take requests.

    Args:
        cluster: where.
        name: the InferenceService.
        version: what its pods must hold.
        patience: how long.
        known: what `noted_warnings` gave before the change.

    Returns:
        The InferenceService as it is then.

    Raises:
        DetoxError: it was removed, does not heal, or takes too long; with the last reason and what helps.
    """
    started, shown = time.monotonic(), _ShownReasons()
    while True:
        service = cluster.service(name)
        if service is None:
            raise DetoxError("the InferenceService was removed in the meantime", place=name, remedy="deploy again")
        pods = cluster.pods(name)
        if is_ready(service, pods, version):
            say(f"{name}: ready after {human_seconds(time.monotonic() - started)}")
            return service
        warnings = [event for event in cluster.warnings(name) if (event.uid, event.count) not in known]
        current = reasons(service, pods, warnings, version)
        shown.update(name, current, started)
        _give_up_where_it_cannot_heal(name, current, shown.since, patience, started)
        time.sleep(patience.poll)


def urls(service: InferenceService, rest_url: str | None = None, grpc_url: str | None = None) -> dict[str, str]:
    """Where the model answers: what the recipe says, else the status, else KServe's naming rule.

    Returns:
        `rest` and `grpc`.
    """
    rest = rest_url or service.url or f"http://{service.name}-predictor.{service.namespace}.svc.cluster.local:8080"
    parts = urlsplit(rest)
    scheme = "grpcs" if parts.scheme == "https" else "grpc"
    host = service.grpc_url.partition("://")[2] or service.grpc_url or f"{parts.hostname}:8085"
    return {"rest": rest.rstrip("/"), "grpc": grpc_url or f"{scheme}://{host}"}


@dataclass
class _ShownReasons:
    """Which reasons there are since when, and what was said about them."""

    since: dict[str, float] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    last: float = 0.0

    def update(self, name: str, current: list[Reason], started: float) -> None:
        now = time.monotonic()
        self.since = {reason.key: self.since.get(reason.key, now) for reason in current}
        fresh = [reason for reason in current if reason.text not in self.said]
        if not fresh and now - self.last >= _SECONDS_BETWEEN_LINES:
            fresh = current[:1]
        for reason in fresh:
            say(f"{name}: {reason.text} ({human_seconds(now - started)})")
            self.said.add(reason.text)
            self.last = now


def _give_up_where_it_cannot_heal(
    name: str, current: list[Reason], since: dict[str, float], patience: Patience, started: float
) -> None:
    now = time.monotonic()
    limits = {"settle": patience.settle, "pending": patience.pending, "start": patience.start}
    for reason in current:
        if reason.patience in limits and now - since[reason.key] >= limits[reason.patience]:
            raise DetoxError(reason.text, place=f"InferenceService {name}", remedy=reason.remedy)
    if now - started >= patience.ready:
        raise DetoxError(f"not ready after {human_seconds(patience.ready)}: {current[0].text}",
                         place=f"InferenceService {name}", remedy=current[0].remedy)


def _of_model(service: InferenceService) -> Iterator[Reason]:
    if service.transition not in _BLOCKED:
        return
    failure = service.failure
    cause = ": ".join(part for part in (failure.reason, failure.message) if part) if failure else ""
    code = f" (exit code {failure.exit_code})" if failure and failure.exit_code else ""
    yield Reason(f"model {service.transition}", f"{service.transition}: {cause or 'no details'}{code}", "settle",
                 _BLOCKED[service.transition])


def _of_pod(pod: Pod) -> Iterator[Reason]:
    scheduled = pod.conditions.get("PodScheduled")
    if scheduled and scheduled.status == "False":
        yield Reason(f"{pod.name} unscheduled", f"pod {pod.name} waits for a node: "
                     f"{scheduled.message or scheduled.reason}", "pending",
                     "free a GPU, add a node, or set deploy.kserve.gpus, tolerations or node_selector")
    for container in (*pod.init_containers, *pod.containers):
        yield from _of_container(pod.name, container)


def _of_container(pod: str, container: Container) -> Iterator[Reason]:
    place, last = f"pod {pod}, container {container.name}", container.last_termination
    reason, message = container.waiting_reason, container.waiting_message
    key = f"{pod} {container.name} {reason}"
    if reason in _PULL:
        yield Reason(f"{pod} {container.name} image", f"{place}: the image cannot be pulled: {message or reason}",
                     "pending", "check the image's name in manifests/settings and the pull secret")
    elif reason in ("InvalidImageName", "ErrImageNeverPull"):
        yield Reason(key, f"{place}: {reason}: {message}", "settle", "correct the image in manifests/settings")
    elif reason in ("CreateContainerConfigError", "CreateContainerError"):
        yield Reason(key, f"{place}: {message or reason}", "settle", "make the Secret or ConfigMap that it names")
    elif last and container.restarts >= _MANY_RESTARTS:
        cause = last.message or last.reason or "no message"
        remedy = ("give it more memory: deploy.kserve.memory" if last.reason == "OOMKilled"
                  else f"oc logs {pod} -c {container.name} --previous")
        yield Reason(key, f"{place} ended {container.restarts} times (exit code {last.exit_code}): {cause}", "settle",
                     remedy)


def _of_event(event: Event) -> Iterator[Reason]:
    key = f"event {event.about} {event.reason}"
    if "exceeded quota" in event.message:
        yield Reason(key, f"the quota does not admit the pod: {event.message}", "pending",
                     "raise the quota, or set deploy.kserve.cpu, memory or gpus lower")
    elif event.reason in ("FailedCreate", "FailedMount", "FailedAttachVolume", "InternalError"):
        yield Reason(key, f"{event.reason}: {event.message}", "pending")
    elif event.reason in ("FailedScheduling", "Unhealthy", "BackOff", "Failed", "Evicted"):
        yield Reason(key, f"{event.reason}: {event.message}")


def _of_coming_up(service: InferenceService, pods: Sequence[Pod], version: str) -> Reason:
    if not any(_version(pod) == version for pod in pods):
        return Reason("no pod", "no pod of this version yet", "start")
    if any(pod.ready and _version(pod) != version for pod in pods):
        return Reason("old pod", "a pod of the version before still takes requests")
    ready = service.conditions.get("Ready")
    return Reason("coming up", (ready.message or ready.reason if ready else "")
                  or "the model is being fetched and loaded")


def _version(pod: Pod) -> str | None:
    return pod.annotations.get(VERSION)
