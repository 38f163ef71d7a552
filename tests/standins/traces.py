"""Replays of recorded traces: what a wait under test would have seen of the real KServe, second by second.

A trace has the states of an InferenceService and of its Deployment. Pods were not recorded: they are made here of what
the Deployment counts. `PHASES` says for each change in the traces where a wait for it should end.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from llm_detox.cluster.objects import Event, InferenceService, Pod
from tests.standins.recordings import ROOT, documents

Object = dict[str, Any]
TRACES = ROOT / "kserve" / "opendatahub-3.5" / "traces"
NAME, NAMESPACE = "llm-detox", "llm-detox"
NAMES = sorted(path.stem for path in TRACES.glob("*.yaml"))

# States in which KServe had not yet looked at the Deployment that was read a moment later: its status is about the
# state before ("before"), or about a Deployment that had no status yet ("new").
LAGS = {
    ("auth-toggle", 0.3): "before", ("auth-toggle", 5.9): "before", ("replace-crash", 1.4): "before",
    ("rolling-two-replicas", 0.9): "before", ("stop-start", 4.5): "new",
}
# States whose `modelStatus` was written a moment before or after the conditions beside it, from other pods.
MODEL_STATUS_LAGS = {("replace-crash", 39.0)}
# Stopping takes two writes: the first has dropped the runtime's name.
WITHOUT_RUNTIME_NAME = {("stop-start", 0.3)}


@dataclass(frozen=True)
class State:
    """What stood in the cluster from this second on; `deployment` is None where there is none."""

    seconds: float
    service: Object
    deployment: Object | None


@dataclass(frozen=True)
class Phase:
    """One change in a trace, and where a wait for it should end. All times are seconds of the trace.

    Args:
        trace: the file's name without its ending.
        change: what was done, in words.
        begins: the first state after the change.
        ends: the next change, which the replay leaves out: the last state before it stays for ever.
        generation: the Deployment's generation from which on its template is the wanted one; None: it never is.
        ready: when the pods of the wanted spec, and no others, serve; None: never.
        failure: words that the error must have where it never gets ready.
        fails_from: when they stand there first.
        heals: failures that stand there on the way to `ready`, and pass: a wait that gives up at once is wrong.
        mistaken: states with `Ready: True` and `UpToDate` that are not `ready`: a wait that believes them is wrong.
        warnings: events that were there.
    """

    trace: str
    change: str
    begins: float
    ends: float | None
    generation: int | None
    ready: float | None = None
    failure: tuple[str, ...] = ()
    fails_from: float | None = None
    heals: tuple[float, ...] = ()
    mistaken: tuple[float, ...] = ()
    warnings: tuple[Event, ...] = ()

    def __str__(self) -> str:
        return f"{self.trace}: {self.change}"


_NO_RUNTIME = Event("1", 1, NAME, "InternalError",
                    "No ServingRuntimes or ClusterServingRuntimes with the name: llm-detox-caikit-tgis")
_OUT_OF_MEMORY = ("BlockedByFailedLoad", "CUDA out of memory")
_WRONG_FORMAT = ("NoSupportingRuntime", "Specified runtime does not support specified framework/version")
PHASES = (
    Phase("first-start-through-every-failure", "deployed", 0.0, None, 1, ready=26.8, heals=(10.9, 19.1)),
    Phase("replace-slow", "another path", 0.6, None, 3, ready=16.1),
    Phase("replace-crash", "another path", 1.4, 11.2, 4, failure=_OUT_OF_MEMORY, fails_from=2.2, mistaken=(1.4,)),
    Phase("replace-crash", "the path put back", 11.2, 24.2, 5, ready=16.0, heals=(11.2, 11.5)),
    Phase("replace-crash", "stopped", 24.2, 28.4, None, failure=("Stopped",), fails_from=24.2),
    Phase("replace-crash", "started", 28.4, 39.0, 1, ready=28.7),
    Phase("replace-crash", "protected", 39.0, None, 2, ready=39.3),
    Phase("rolling-two-replicas", "another path", 0.9, None, 3, ready=31.9, mistaken=(0.9, 6.3, 16.4, 22.0, 31.7)),
    Phase("stop-start", "stopped", 0.3, 4.5, None, failure=("Stopped",), fails_from=0.3),
    Phase("stop-start", "started", 4.5, None, 1, ready=4.7),
    Phase("auth-toggle", "protected", 0.3, 5.6, 2, ready=0.6, mistaken=(0.3,)),
    Phase("auth-toggle", "not protected", 5.6, None, 3, ready=6.2),
    Phase("running-model-changed-to-a-wrong-format", "another format", 1.1, None, None, failure=_WRONG_FORMAT,
          fails_from=1.1),
    Phase("runtime-does-not-take-the-format", "deployed", 0.0, None, None, failure=_WRONG_FORMAT, fails_from=0.0),
    Phase("runtime-not-there", "deployed", 0.0, None, None, fails_from=0.0, warnings=(_NO_RUNTIME,),
          failure=("RuntimeNotRecognized", "Waiting for runtime to become available")),
)


def states_of(trace: str) -> list[State]:
    """The states of a trace, as manifests."""
    return [State(one["seconds"], _service(one["inferenceservice"]), _deployment(one["deployment"]))
            for one in documents(TRACES / f"{trace}.yaml")]


@dataclass
class Clock:
    """A clock in place of the module `time`: it moves only when somebody sleeps."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class ReplayedCluster:
    """What a wait asks of a cluster, answered from a phase of a trace.

    Args:
        phase: the change that is waited for.
        annotation: the predictor's annotation that tells whose pods these are.
        digest: its value for the wanted spec.
        read_deployment: makes of a manifest what the wait under test takes.
        clock: starts at the change. Replace the module `time` of the wait under test by it.
    """

    phase: Phase
    annotation: str
    digest: str
    read_deployment: Callable[[Object], Any] = lambda manifest: manifest
    clock: Clock = field(default_factory=Clock)
    namespace: str = NAMESPACE

    def __post_init__(self) -> None:
        end = float("inf") if self.phase.ends is None else self.phase.ends
        self._states = [one for one in states_of(self.phase.trace) if self.phase.begins <= one.seconds < end]
        self.clock.now = self.phase.begins

    @property
    def state(self) -> State:
        """What stands in the cluster now."""
        return [one for one in self._states if one.seconds <= self.clock.now + 1e-6][-1]

    def service(self, name: str) -> InferenceService | None:
        """The InferenceService: it carries the wanted digest from the start of the phase."""
        manifest = deepcopy(self.state.service)
        manifest["spec"]["predictor"]["annotations"] = {self.annotation: self.digest}
        return InferenceService.of(manifest) if name == NAME else None

    def deployment(self, name: str) -> Any:
        """The predictor's Deployment, by its own name or the model's; None where there is none."""
        manifest = deepcopy(self.state.deployment)
        if manifest is None or name not in (NAME, f"{NAME}-predictor"):
            return None
        manifest["spec"]["template"]["metadata"]["annotations"] = {self.annotation: self._template_digest()}
        return self.read_deployment(manifest)

    def pods(self, name: str) -> list[Pod]:
        """The pods that the Deployment counts: first those of the wanted template, then the others."""
        deployment = self.state.deployment
        if deployment is None or name != NAME:
            return []
        counts = deployment["status"]
        # Until the Deployment's controller has seen its last change, its counts are about the template before.
        seen = counts.get("observedGeneration") == deployment["metadata"]["generation"]
        digest = self._template_digest() if seen else "before"
        current, ready = counts.get("updatedReplicas", 0), counts.get("readyReplicas", 0)
        others = counts.get("replicas", 0) - current
        others_ready = min(others, ready)
        model = self.state.service["status"]["modelStatus"]
        return [*(_pod(f"new-{index}", self.annotation, digest, index < ready - others_ready, model)
                  for index in range(current)),
                *(_pod(f"old-{index}", self.annotation, "before", index < others_ready, model)
                  for index in range(others))]

    def warnings(self, name: str) -> list[Event]:
        return list(self.phase.warnings) if name == NAME else []

    def _template_digest(self) -> str:
        deployment, wanted = self.state.deployment, self.phase.generation
        arrived = deployment is not None and wanted is not None and deployment["metadata"]["generation"] >= wanted
        return self.digest if arrived else "before"


def _service(given: Object) -> Object:
    return {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "status": given["status"],
            "metadata": {"name": NAME, "namespace": NAMESPACE, "generation": given["generation"],
                         "annotations": given["annotations"]},
            "spec": {"predictor": {"model": {"runtime": "llm-detox-caikit-tgis"}}}}


def _deployment(given: Object | None) -> Object | None:
    return given and {"apiVersion": "apps/v1", "kind": "Deployment", "status": given["status"],
                      "metadata": {"name": f"{NAME}-predictor", "namespace": NAMESPACE,
                                   "generation": given["generation"]},
                      "spec": {"replicas": given["replicas"], "template": {"metadata": {}}}}


def _pod(suffix: str, annotation: str, digest: str, ready: bool, model: Object) -> Pod:
    names = {"storage-initializer": "initContainerStatuses", "kserve-container": "containerStatuses"}
    states: dict[str, Object] = {"storage-initializer": {"terminated": {"exitCode": 0, "reason": "Completed"}},
                                 "kserve-container": {"running": {}}}
    target = "" if ready else model["states"]["targetModelState"]
    if target == "Loading":
        states = {"storage-initializer": {"running": {}},
                  "kserve-container": {"waiting": {"reason": "PodInitializing"}}}
    elif target == "FailedToLoad":
        failure = model["lastFailureInfo"]
        # Only the storage initializer asks S3.
        name = "storage-initializer" if "botocore" in failure["message"] else "kserve-container"
        states[name] = {"terminated": {"exitCode": failure["exitCode"], "reason": "Error",
                                       "message": failure["message"]}}
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": str(ready)}]
    return Pod.of({
        "metadata": {"name": f"{NAME}-predictor-{suffix}", "annotations": {annotation: digest}},
        "status": {"phase": "Running" if ready else "Pending", "conditions": conditions,
                   **{field: [{"name": name, "restartCount": 0, "state": states[name]}]
                      for name, field in names.items()}}})
