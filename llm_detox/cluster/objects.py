"""What a cluster says about its objects, as far as it is read here: one dataclass a kind, made from the API's values.

What is absent reads as empty: a controller that has not begun has written no status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# An object as its YAML has it: what is built here and sent, and what `kubectl apply` compares.
Manifest = dict[str, Any]

STOP = "serving.kserve.io/stop"
AUTH = "security.opendatahub.io/enable-auth"
VISIBILITY, EXPOSED = "networking.kserve.io/visibility", "exposed"


@dataclass(frozen=True)
class Condition:
    """One of the conditions in a status; `status` is True, False or Unknown."""

    kind: str
    status: str = "Unknown"
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Termination:
    """How a container or a model load ended; `exit_code` is None where it is not known."""

    exit_code: int | None
    reason: str
    message: str

    @classmethod
    def of(cls, value: Mapping[str, Any] | None) -> Termination | None:
        if not value:
            return None
        return cls(value.get("exitCode"), value.get("reason") or "", value.get("message") or "")


@dataclass(frozen=True)
class Container:
    """A container of a pod: why it waits, how it ended, how it ended before, and how often it was restarted."""

    name: str
    waiting_reason: str
    waiting_message: str
    termination: Termination | None
    last_termination: Termination | None
    restarts: int

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> Container:
        state = status.get("state") or {}
        waiting = state.get("waiting") or {}
        return cls(
            status["name"], waiting.get("reason") or "", waiting.get("message") or "",
            Termination.of(state.get("terminated")), Termination.of((status.get("lastState") or {}).get("terminated")),
            int(status.get("restartCount") or 0))


@dataclass(frozen=True)
class Pod:
    """A pod; `leaving` is one that is being removed."""

    name: str
    annotations: Mapping[str, str]
    leaving: bool
    phase: str
    reason: str
    message: str
    conditions: Mapping[str, Condition]
    init_containers: tuple[Container, ...]
    containers: tuple[Container, ...]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Pod:
        metadata, status = manifest["metadata"], manifest.get("status") or {}
        return cls(
            metadata["name"], metadata.get("annotations") or {}, bool(metadata.get("deletionTimestamp")),
            status.get("phase") or "", status.get("reason") or "", status.get("message") or "", conditions_of(status),
            tuple(Container.of(one) for one in status.get("initContainerStatuses") or ()),
            tuple(Container.of(one) for one in status.get("containerStatuses") or ()))

    @property
    def ready(self) -> bool:
        return not self.leaving and is_true(self.conditions, "Ready")


@dataclass(frozen=True)
class Event:
    """An event of kind Warning; `count` grows where it comes again."""

    uid: str
    count: int
    about: str
    reason: str
    message: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Event:
        return cls(str(manifest["metadata"].get("uid")), int(manifest.get("count") or 1),
                   str(manifest["involvedObject"].get("name") or ""), manifest.get("reason") or "",
                   str(manifest.get("message") or ""))


@dataclass(frozen=True)
class InferenceService:
    """An InferenceService of KServe.

    Args:
        manifest: the whole object, for what is sent back.
        pod_annotations: those that KServe copies to the pods.
        leaving: it is being removed.
        transition, failure: what KServe says about loading the model.
        url: where it answers, as the status says; empty before it does.
    """

    manifest: Manifest
    name: str
    namespace: str
    resource_version: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    pod_annotations: Mapping[str, str]
    leaving: bool
    conditions: Mapping[str, Condition]
    transition: str
    failure: Termination | None
    url: str

    @classmethod
    def of(cls, manifest: Manifest) -> InferenceService:
        metadata, status = manifest["metadata"], manifest.get("status") or {}
        model = status.get("modelStatus") or {}
        predictor = (manifest.get("spec") or {}).get("predictor") or {}
        return cls(
            manifest, metadata["name"], metadata.get("namespace") or "", str(metadata.get("resourceVersion") or ""),
            metadata.get("labels") or {}, metadata.get("annotations") or {}, predictor.get("annotations") or {},
            "deletionTimestamp" in metadata, conditions_of(status), model.get("transitionStatus") or "",
            Termination.of(model.get("lastFailureInfo")), (status.get("address") or {}).get("url") or "")

    @property
    def ready(self) -> bool:
        """What the condition says; it may be about an earlier change."""
        return is_true(self.conditions, "Ready")

    @property
    def is_stopped(self) -> bool:
        """Whether somebody wants it stopped; the pods may not be gone yet."""
        return self.annotations.get(STOP, "").lower() == "true"

    @property
    def is_protected(self) -> bool:
        """Whether OpenShift AI lets only requests with a token through."""
        return self.annotations.get(AUTH, "").lower() == "true"

    @property
    def is_exposed(self) -> bool:
        """Whether OpenShift AI makes a Route to it."""
        return self.labels.get(VISIBILITY) == EXPOSED


@dataclass(frozen=True)
class Deployment:
    """The Deployment that KServe makes of an InferenceService.

    Args:
        generation, observed_generation: of its spec, and of the spec that the counts are about.
        wanted: how many pods there shall be.
        updated, replicas, available: pods of its present template, of any template, and those that take requests.
        pod_annotations: of its template.
    """

    name: str
    generation: int
    observed_generation: int
    wanted: int
    updated: int
    replicas: int
    available: int
    pod_annotations: Mapping[str, str]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Deployment:
        metadata, spec, status = manifest["metadata"], manifest["spec"], manifest.get("status") or {}
        wanted = spec.get("replicas")
        updated, replicas, available = (
            int(status.get(key) or 0) for key in ("updatedReplicas", "replicas", "availableReplicas"))
        return cls(metadata["name"], int(metadata.get("generation") or 0), int(status.get("observedGeneration") or 0),
                   1 if wanted is None else int(wanted), updated, replicas, available,
                   (spec["template"].get("metadata") or {}).get("annotations") or {})

    @property
    def is_rolled_out(self) -> bool:
        """Whether all pods are of the present template and take requests, and no other pod is left."""
        return (self.observed_generation >= self.generation and 0 < self.wanted <= self.available
                and self.updated == self.replicas == self.wanted)


@dataclass(frozen=True)
class Runtime:
    """A ServingRuntime or ClusterServingRuntime: the names of the model formats that it takes."""

    name: str
    formats: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Runtime:
        formats = manifest["spec"].get("supportedModelFormats") or ()
        return cls(manifest["metadata"]["name"], tuple(one["name"] for one in formats))


@dataclass(frozen=True)
class TrainJob:
    """A training job; `nodes` says in words how many of its nodes do what, `suspended` that a queue holds it back."""

    name: str
    leaving: bool
    complete: bool
    failed: bool
    message: str
    nodes: str
    suspended: bool

    @classmethod
    def of(cls, manifest: Mapping[str, Any], replicated: str = "node") -> TrainJob:
        """`replicated` is what Trainer's torch runtimes call the job of the nodes."""
        metadata, status = manifest["metadata"], manifest.get("status") or {}
        conditions = conditions_of(status)
        nodes = ", ".join(f"{count} {state}" for one in status.get("jobsStatus") or () if one["name"] == replicated
                          for state in ("active", "ready", "succeeded", "failed") if (count := one.get(state)))
        failed = is_true(conditions, "Failed")
        return cls(metadata["name"], "deletionTimestamp" in metadata, is_true(conditions, "Complete"), failed,
                   conditions["Failed"].message if failed else "", nodes, is_true(conditions, "Suspended"))


def conditions_of(status: Mapping[str, Any]) -> dict[str, Condition]:
    """The conditions of a status, by kind."""
    return {one["type"]: Condition(one["type"], one.get("status") or "Unknown", one.get("reason") or "",
                                   one.get("message") or "")
            for one in reversed(status.get("conditions") or ())}


def is_true(conditions: Mapping[str, Condition], kind: str) -> bool:
    """Whether a condition is there and holds."""
    return kind in conditions and conditions[kind].status == "True"
