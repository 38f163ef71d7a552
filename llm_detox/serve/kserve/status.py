"""Is an InferenceService ready, and if not, why, and can it still heal? And waiting for it, with the reasons shown.

Ready means that the pods of exactly the wanted spec serve, and no others. KServe's own words do not say so: its
condition `Ready` stays true for the old pods until the controller acts, and in the middle of a rolling update, and its
`observedGeneration` is the Deployment's. So the wanted spec has a digest, which the Deployment's template and the pods
carry, and the Deployment says whether its roll-out is over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llm_detox.cluster.api import Cluster
from llm_detox.cluster.objects import STOP, Container, Deployment, Event, InferenceService, Pod, is_true
from llm_detox.errors import DetoxError
from llm_detox.progress import human_seconds, say
from llm_detox.serve.kserve.render import SPEC

Limit = Literal["settle", "failing", "pending", "start", "none"]
_BLOCKED: dict[str, tuple[Limit, str]] = {
    "BlockedByFailedLoad": (
        "failing", "read the logs: oc logs <pod> -c storage-initializer, then -c kserve-container"),
    "InvalidSpec": ("settle", "compare the InferenceService with the ServingRuntime that it names: "
                              "deploy.kserve.serving and runtime"),
}
_CONTROLLER = "check that the controller runs: oc get pods -A -l control-plane=kserve-controller-manager"
_ROUTE = "look for the Route of the model's name and whether a router has admitted it: oc describe route"
_PULL = {"ErrImagePull", "ImagePullBackOff"}
_MANY_RESTARTS = 3
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Patience:
    """Seconds: for all, for the controllers to begin, for pods that nobody admits, for a model that fails to load and
    may do better at the next start, for a failure to turn out stale, and between two looks."""

    ready: float = 1800.0
    start: float = 300.0
    pending: float = 600.0
    failing: float = 300.0
    settle: float = 20.0
    poll: float = 2.0

    def limit(self, of: Limit) -> float:
        return {"start": self.start, "pending": self.pending, "failing": self.failing, "settle": self.settle,
                "none": self.ready}[of]


@dataclass(frozen=True)
class Reason:
    """Why it is not ready yet.

    Args:
        key: what stays the same while the reason stays.
        text: for people.
        patience: how long it may last: "settle" (it does not heal; a moment for stale news), "failing" (the next start
            may heal it), "pending" (others may make room), "start" (the controllers have to begin), "none" (it is part
            of coming up).
        remedy: what helps.
    """

    key: str
    text: str
    patience: Limit = "none"
    remedy: str = "see the events: oc get events --sort-by=.lastTimestamp"


@dataclass(frozen=True)
class View:
    """What stands in the cluster at one moment.

    Args:
        service, deployment, pods: the InferenceService, and what was made of it.
        warnings: events that have come since the change.
        digest: of the wanted spec; None for what an earlier release deployed, which has none.
    """

    service: InferenceService
    deployment: Deployment | None
    pods: Sequence[Pod]
    digest: str | None
    warnings: Sequence[Event] = ()

    @property
    def is_arrived(self) -> bool:
        """Whether the controllers have acted on the wanted spec."""
        return self.deployment is not None and self.is_wanted(self.deployment.pod_annotations)

    @property
    def is_ready(self) -> bool:
        """Whether pods of the wanted spec, and no others, take the requests."""
        ready = [pod for pod in self.pods if pod.ready]
        return (self.deployment is not None and self.is_arrived and self.deployment.is_rolled_out
                and self.service.ready and self.service.transition in ("", "UpToDate")
                and bool(ready) and all(self.is_wanted(pod.annotations) for pod in ready))

    def is_wanted(self, annotations: Mapping[str, str]) -> bool:
        """Whether a template or pod with these annotations follows the wanted spec."""
        return self.digest is None or annotations.get(SPEC) == self.digest

    def reasons(self) -> list[Reason]:
        """All that stands between the service and being ready, the most telling first."""
        if self.service.is_stopped:
            return [Reason("stopped", "Stopped: somebody stopped the model", "settle",
                           f"start it in the dashboard, or deploy again; the annotation is {STOP}")]
        known = [*_of_model(self.service)]
        for pod in self.pods:
            if self.is_wanted(pod.annotations) and not pod.leaving:
                known += _of_pod(pod)
        known += [reason for event in self.warnings for reason in _of_event(event)]
        return known or [self._coming_up()]

    def _coming_up(self) -> Reason:
        deployment = self.deployment
        if deployment is None or not self.is_arrived:
            return Reason("unseen", "the KServe controller has not acted on the change yet", "start", _CONTROLLER)
        if not any(self.is_wanted(pod.annotations) for pod in self.pods):
            return Reason("no pod", "no pod of this version yet", "start")
        if any(pod.ready and not self.is_wanted(pod.annotations) for pod in self.pods):
            return Reason("old pod", f"a pod of the version before still takes requests ({deployment.updated} of "
                                     f"{deployment.wanted} are replaced)")
        conditions = self.service.conditions
        if (deployment.is_rolled_out and is_true(conditions, "PredictorReady")
                and not is_true(conditions, "IngressReady")):
            return Reason("no address", "its pods serve; KServe waits for its Route or Ingress", "pending", _ROUTE)
        ready = conditions.get("Ready")
        return Reason("coming up", (ready.message or ready.reason if ready else "")
                      or "the model is being fetched and loaded")


def noted_warnings(cluster: Cluster, name: str) -> set[tuple[str, int]]:
    """The warnings that are there already: what they say is about an earlier change."""
    return {(event.uid, event.count) for event in cluster.warnings(name)}


def wait_until_ready(cluster: Cluster, name: str, digest: str | None, patience: Patience,
                     known: set[tuple[str, int]]) -> InferenceService:
    """Wait until pods of the wanted spec, and only they, take requests.

    Args:
        cluster: where.
        name: the InferenceService.
        digest: of the spec that its pods must follow; see `View`.
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
        view = View(service, cluster.deployment(name), cluster.pods(name), digest,
                    [event for event in cluster.warnings(name) if (event.uid, event.count) not in known])
        if view.is_ready:
            say(f"{name}: ready after {human_seconds(time.monotonic() - started)}")
            return service
        current = view.reasons()
        shown.update(name, current, started)
        _give_up_where_it_cannot_heal(name, current, shown.since, patience, started)
        time.sleep(patience.poll)


@dataclass
class _ShownReasons:
    """Which reasons there are since when, and what was said about them."""

    since: dict[str, float] = field(default_factory=dict)
    failing: dict[str, float] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    last: float = 0.0

    def update(self, name: str, current: list[Reason], started: float) -> None:
        now = time.monotonic()
        # A model that fails looks as if it came up between two starts: its time counts from the first failure.
        self.failing |= {reason.key: now for reason in current
                         if reason.patience == "failing" and reason.key not in self.failing}
        known = self.since | self.failing
        self.since = {reason.key: known.get(reason.key, now) for reason in current}
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
    for reason in current:
        if reason.patience != "none" and now - since[reason.key] >= patience.limit(reason.patience):
            raise DetoxError(reason.text, place=f"InferenceService {name}", remedy=reason.remedy)
    if now - started >= patience.ready:
        raise DetoxError(f"not ready after {human_seconds(patience.ready)}: {current[0].text}",
                         place=f"InferenceService {name}", remedy=current[0].remedy)


def _of_model(service: InferenceService) -> Iterator[Reason]:
    """What KServe says of the model, and of its own work. An old failure stays in the status after it has healed: only
    with the transition does it mean anything."""
    if service.transition in _BLOCKED:
        failure = service.failure
        cause = ": ".join(part for part in (failure.reason, failure.message) if part) if failure else ""
        code = f" (exit code {failure.exit_code})" if failure and failure.exit_code else ""
        patience, remedy = _BLOCKED[service.transition]
        yield Reason(f"model {service.transition}", f"{service.transition}: {cause or 'no details'}{code}", patience,
                     remedy)
    ready = service.conditions.get("Ready")
    if ready and ready.reason == "ReconcileFailed":
        yield Reason("reconcile", f"ReconcileFailed: {ready.message}", "pending")


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
