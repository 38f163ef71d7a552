"""Writes down each status that an InferenceService has, and compares the row with a recorded trace in kind."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What a wait can tell states by: names, counts and times aside."""

    ready: str
    reason: str
    predictor: str
    transition: str
    active: str
    target: str
    failure: str
    scheme: str

    @classmethod
    def of(cls, status: Object) -> Kind:
        """The kind of a status."""
        conditions = {one["type"]: one for one in status["conditions"]}
        model, ready = status.get("modelStatus", {}), conditions.get("Ready", {})
        states = model.get("states", {})
        return cls(ready.get("status", ""), ready.get("reason", ""),
                   conditions.get("PredictorReady", {}).get("reason", ""), model.get("transitionStatus", ""),
                   states.get("activeModelState", ""), states.get("targetModelState", ""),
                   model.get("lastFailureInfo", {}).get("message", ""),
                   status.get("address", {}).get("url", "").partition(":")[0])


def row_of(statuses: list[Object]) -> list[Kind]:
    """The kinds one after the other, each once."""
    kinds = [Kind.of(one) for one in statuses]
    return [one for index, one in enumerate(kinds) if index == 0 or kinds[index - 1] != one]


def missing_from(row: list[Kind], wanted: list[Kind]) -> list[Kind]:
    """Those wanted that do not come in the row, in their order."""
    place, missing = 0, []
    for one in wanted:
        if one in row[place:]:
            place = row.index(one, place)
        else:
            missing.append(one)
    return missing


class Recorder:
    """Watches an InferenceService until the block ends."""

    def __init__(self, client: Any, namespace: str, name: str = "llm-detox") -> None:
        from kubernetes import client as kubernetes
        from kubernetes import watch

        self._custom = kubernetes.CustomObjectsApi(client)
        self._namespace, self._name, self._watch = namespace, name, watch.Watch()
        self.statuses: list[Object] = []
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._watch.stop()

    def row(self) -> list[Kind]:
        """The kinds so far."""
        return row_of(list(self.statuses))

    def _run(self) -> None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        while not self._over:
            with suppress(ApiException, HTTPError):  # the server may just have started
                self._follow()

    def _follow(self) -> None:
        for event in self._watch.stream(
                self._custom.list_namespaced_custom_object, "serving.kserve.io", "v1beta1", self._namespace,
                "inferenceservices", timeout_seconds=300):
            status = event["object"].get("status")
            named = event["object"]["metadata"]["name"] == self._name
            if named and status and (not self.statuses or self.statuses[-1] != status):
                self.statuses.append(status)
