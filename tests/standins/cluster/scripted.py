"""A kubelet in whose pods happens what a test says, at the time that it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.standins.cluster.api import Api
from tests.standins.cluster.kubelet import Kubelet, PodEvent, PodRun
from tests.standins.cluster.pod_state import ContainerState, PodState, Running, Terminated, Waiting

Object = dict[str, Any]
INITIALIZER = "storage-initializer"
Look = Callable[[Object], PodState]
_MAIN = "kserve-container"


@dataclass(frozen=True)
class Course:
    """What happens in a pod: looks, each from a second on, and events at their second."""

    steps: tuple[tuple[float, Look], ...]
    events: tuple[tuple[float, PodEvent], ...] = ()

    def at(self, seconds: float) -> Look:
        """The look at this time since the pod was made, or since the test gave it this course."""
        return [look for start, look in self.steps if start <= seconds][-1]


def loading(pod: Object) -> PodState:
    """The storage initializer fetches the model."""
    return _pod(pod, initializer=Running(), others=Waiting())


def starting(pod: Object) -> PodState:
    """The model is there; the containers run, and are not ready."""
    return _pod(pod)


def serving(pod: Object) -> PodState:
    """All containers are ready."""
    return _pod(pod, ready=True)


def creating(pod: Object) -> PodState:
    """On its node, and nothing has been started."""
    return _pod(pod, initializer=Waiting(), others=Waiting())


def initializer_failed(message: str, exit_code: int = 1) -> Look:
    """The storage initializer has ended with an error."""
    ended = Terminated(exit_code, message=message)
    return lambda pod: _pod(pod, initializer=ended, others=Waiting())


def crashed(message: str, exit_code: int = 1, *, reason: str = "Error") -> Look:
    """The model's own container has ended with an error; it is not started again yet."""
    ended = Terminated(exit_code, reason, message)
    return lambda pod: _pod(pod, main=ContainerState(_MAIN, ended, started=False))


def restarting(message: str, restarts: int, exit_code: int = 1, *, reason: str = "Error") -> Look:
    """The model's own container has ended this often, and waits for its next start."""
    pause = Waiting("CrashLoopBackOff", f"back-off restarting failed container={_MAIN}")
    return lambda pod: _pod(pod, main=ContainerState(_MAIN, pause, Terminated(exit_code, reason, message), restarts))


def waiting(reason: str, message: str) -> Look:
    """The model's own container cannot be started: `ErrImagePull`, `CreateContainerConfigError` ..."""
    return lambda pod: _pod(pod, main=ContainerState(_MAIN, Waiting(reason, message)))


def unscheduled(message: str) -> Look:
    """No node takes the pod."""
    return lambda pod: PodState(unscheduled=message)


def ready_after(seconds: float) -> Course:
    """Loads in the first half of the time, starts in the second, and serves."""
    return Course(((0.0, loading), (seconds / 2, starting), (seconds, serving)))


def stays(look: Look) -> Course:
    """One look, for ever."""
    return Course(((0.0, look),))


def without_gpu() -> Course:
    """No node has room for the pod."""
    return stays(unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."))


def never_pulled(image: str) -> Course:
    """A registry that does not give the image."""
    words = f'Back-off pulling image "{image}": ErrImagePull: not found'
    return Course(((0.0, waiting("ErrImagePull", words)), (0.5, waiting("ImagePullBackOff", words))),
                  ((0.0, PodEvent("Failed", f'Failed to pull image "{image}": not found')),))


def out_of_memory(restarts: int = 3) -> Course:
    """Killed for memory again and again."""
    steps: list[tuple[float, Look]] = [(0.0, starting)]
    for count in range(1, restarts + 1):
        steps += [(0.4 * count, crashed("", 137, reason="OOMKilled")),
                  (0.4 * count + 0.2, restarting("", count, 137, reason="OOMKilled"))]
    return Course(tuple(steps))


READY = Course(((0.0, starting), (0.2, serving)))
BLOCKED = stays(crashed("safetensors header too large"))


class ScriptedKubelet(Kubelet):
    """Pods get ready soon, unless `play` says otherwise."""

    def __init__(self, api: Api, namespace: str, pause_seconds: float = 0.1) -> None:
        super().__init__(api, namespace, pause_seconds)
        self._courses: list[_Played] = []

    def play(self, course: Course, *, model: str | None = None, where: Callable[[Object], bool] = lambda pod: True
             ) -> None:
        """From now on this happens in pods, those that are there already too.

        Args:
            course: what happens.
            model: in those of this InferenceService; None takes all.
            where: in those for which this holds.
        """
        label = "serving.kserve.io/inferenceservice"
        self._courses.append(_Played(course, lambda pod: where(pod) and model in (
            None, pod["metadata"]["labels"].get(label))))

    def course_of(self, pod: Object) -> tuple[Course, float]:
        """What was last said about the pod, and when."""
        return next(((one.course, one.since) for one in reversed(self._courses) if one.holds(pod)), (READY, 0.0))

    def start(self, pod: Object, address: str) -> PodRun:
        return _ScriptedRun(self, pod)


@dataclass(frozen=True)
class _Played:
    course: Course
    holds: Callable[[Object], bool]
    since: float = field(default_factory=time.monotonic)


@dataclass
class _ScriptedRun:
    kubelet: ScriptedKubelet
    pod: Object
    begin: float = field(default_factory=time.monotonic)
    _told: set[PodEvent] = field(default_factory=set)

    def state(self) -> PodState:
        course, seconds = self._now()
        return course.at(seconds)(self.pod)

    def events(self) -> list[PodEvent]:
        course, seconds = self._now()
        news = [event for start, event in course.events if start <= seconds and event not in self._told]
        self._told.update(news)
        return news

    def stop(self) -> None:
        """Nothing runs."""

    def _now(self) -> tuple[Course, float]:
        course, since = self.kubelet.course_of(self.pod)
        return course, time.monotonic() - max(since, self.begin)


def _pod(pod: Object, *, initializer: Waiting | Running | Terminated = Terminated(0),  # noqa: B008 - frozen
         others: Waiting | Running = Running(), main: ContainerState | None = None, ready: bool = False  # noqa: B008
         ) -> PodState:
    """The initializer, and all other containers alike save `main`, if that is given."""
    init = tuple(ContainerState(one["name"], initializer, ready=initializer == Terminated(0))
                 for one in pod["spec"].get("initContainers", ()))
    containers = tuple(
        main if main and one["name"] == main.name
        else ContainerState(one["name"], others, ready=ready, started=isinstance(others, Running))
        for one in pod["spec"]["containers"])
    return PodState(init, containers)
