"""KServe's controller at work in a namespace: it writes what the measured functions of `tests.standins.kserve` say."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from tests.standins.cluster.api import Api
from tests.standins.cluster.worker import Worker
from tests.standins.kserve.controller import objects_of
from tests.standins.kserve.graph import graph_objects_of, graph_status
from tests.standins.kserve.platform import OPENDATAHUB, SERVICE_LABEL, Flavour, ReconcileFailed, predictor_name
from tests.standins.kserve.runtimes import SpecRefused
from tests.standins.kserve.status import loading_of, refusal_status, status_of

Object = dict[str, Any]
_FINALIZERS = {"InferenceService": ["inferenceservice.finalizers"], "InferenceGraph": ["inferencegraph.finalizers"]}
_KEPT = "deployment.kubernetes.io/"  # annotations of the Deployment's own controller


class KServe(Worker):
    """The controller.

    Args:
        api: the administrator's.
        namespace: where.
        flavour: which platform.
    """

    kinds = ("InferenceService", "InferenceGraph", "ServingRuntime", "ClusterServingRuntime", "Pod", "Deployment",
             "Route")

    def __init__(self, api: Api, namespace: str, flavour: Flavour) -> None:
        super().__init__(api, namespace)
        self.flavour = flavour
        self._written: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()

    def look(self) -> None:
        for service in self.api.list("InferenceService", self.namespace):
            if self._lives(service):
                self._reconcile(service)
        if self.flavour == OPENDATAHUB:
            for graph in self.api.list("InferenceGraph", self.namespace):
                if self._lives(graph):
                    self._reconcile_graph(graph)

    def _lives(self, one: Object) -> bool:
        """Let go of what is being removed (its own objects go by their owner), hold what is not."""
        metadata, wanted = one["metadata"], _FINALIZERS[one["kind"]]
        current = metadata.get("finalizers", [])
        if leaving := "deletionTimestamp" in metadata:
            finalizers = [name for name in current if name not in wanted]
        else:
            finalizers = [*current, *(name for name in wanted if name not in current)]
        if finalizers != current:
            self.api.merge(one["kind"], self.namespace, metadata["name"], {
                "metadata": {"uid": metadata["uid"], "finalizers": finalizers}})
        return not leaving and finalizers == current

    def _reconcile(self, service: Object) -> None:
        runtimes = [*self.api.list("ServingRuntime", self.namespace), *self.api.list("ClusterServingRuntime", "")]
        previous = service.get("status") or None
        try:
            objects = objects_of(service, runtimes, self.flavour)
        except SpecRefused as refusal:
            self._tell(service, refusal)
            self._set_status(service, refusal_status(refusal, previous))
            return
        except ReconcileFailed as failure:
            self._set_status(service, _failed_status(failure, previous))
            return
        self._write(service, objects, _names_of_all(service))
        pods = self._pods(service)
        deployment = self.api.get("Deployment", self.namespace, predictor_name(service))
        if (objects and deployment is None) or self._pods(service) != pods:
            return  # all that a status says is of one moment
        loading = loading_of(sorted(pods, key=_age, reverse=True))
        route = self.api.get("Route", self.namespace, service["metadata"]["name"])
        self._set_status(service, status_of(service, self.flavour, deployment if objects else None, loading, previous,
                                            route))

    def _pods(self, service: Object) -> list[Object]:
        return self.api.list("Pod", self.namespace, f"{SERVICE_LABEL}={service['metadata']['name']}")

    def _reconcile_graph(self, graph: Object) -> None:
        objects = graph_objects_of(graph, self.flavour)
        self._write(graph, objects, [])
        deployment = self.api.get("Deployment", self.namespace, graph["metadata"]["name"])
        conditions = (deployment or {}).get("status", {}).get("conditions", ())
        if deployment and any((one["type"], one["status"]) == ("Available", "True") for one in conditions):
            self._set_status(graph, graph_status(deployment))

    def _write(self, owner: Object, objects: list[Object], all_names: list[tuple[str, str]]) -> None:
        """Make or change the owner's objects, and remove those of `all_names` that it no longer has."""
        uid = owner["metadata"]["uid"]
        text = json.dumps(objects, sort_keys=True)
        first = objects[0] if objects else None
        there = first and self.api.get(first["kind"], self.namespace, first["metadata"]["name"])
        if self._written.get(uid) == text and (there or not first):
            return
        wanted = {(one["kind"], one["metadata"]["name"]) for one in objects}
        for kind, name in all_names:
            if (kind, name) not in wanted:
                self.api.delete(kind, self.namespace, name)
        for one in objects:
            self._put(owner, one)
        self._written[uid] = text

    def _put(self, owner: Object, wanted: Object) -> None:
        one, given = deepcopy(wanted), wanted["metadata"]
        one["metadata"]["ownerReferences"] = [{
            "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True}]
        live = self.api.get(one["kind"], self.namespace, given["name"])
        if live is None:
            self.api.create(one)
            return
        one["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
        one["metadata"]["annotations"] |= {
            key: value for key, value in live["metadata"].get("annotations", {}).items() if key.startswith(_KEPT)}
        self.api.replace(one)

    def _set_status(self, one: Object, status: Object) -> None:
        if one.get("status") != status:
            self.api.replace({**one, "status": status}, sub="status")

    def _tell(self, service: Object, refusal: SpecRefused) -> None:
        """The event that was recorded with a runtime that is not there."""
        given = service["metadata"]
        name = service["spec"]["predictor"]["model"]["runtime"]
        if refusal.reason != "RuntimeNotRecognized" or (given["uid"], name) in self._told:
            return
        self._told.add((given["uid"], name))
        self.api.create({
            "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": "InternalError", "count": 1,
            "metadata": {"generateName": f"{given['name']}.", "namespace": self.namespace},
            "message": f"No ServingRuntimes or ClusterServingRuntimes with the name: {name}",
            "involvedObject": {"apiVersion": service["apiVersion"], "kind": service["kind"], "name": given["name"],
                               "namespace": self.namespace, "uid": given["uid"]}})


def _names_of_all(service: Object) -> list[tuple[str, str]]:
    name = predictor_name(service)
    return [("Deployment", name), ("Service", name), ("HorizontalPodAutoscaler", name),
            ("Ingress", service["metadata"]["name"])]


def _age(pod: Object) -> tuple[bool, str]:
    """The newest comes last; times have whole seconds, so that a pod that leaves may look as new as its successor."""
    return "deletionTimestamp" not in pod["metadata"], pod["metadata"]["creationTimestamp"]


def _failed_status(failure: ReconcileFailed, previous: Object | None) -> Object:
    status = deepcopy(previous) if previous else {"deploymentMode": "Standard", "conditions": []}
    status["conditions"] = [one for one in status["conditions"] if one["type"] != "Ready"] + [
        {"type": "Ready", "status": "False", "reason": "ReconcileFailed", "message": str(failure)}]
    return status
