"""A stand-in for the status that KServe's controller writes on an InferenceService.

It follows from the Deployment's status and the pods, and partly from the status before: what has been loaded, the last
failure and the predictor's URL stay until the model is stopped.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeGuard

from tests.standins.kserve.controller import host_of
from tests.standins.kserve.platform import EXPOSED, VISIBILITY, Flavour, is_protected, is_stopped, predictor_name
from tests.standins.kserve.runtimes import SpecRefused

Object = dict[str, Any]
_RUNNING = {"severity": "Info", "status": "False", "type": "Stopped"}


@dataclass(frozen=True)
class Loading:
    """What the pods say about loading: how many run, what the model's state would be, and how it failed."""

    running: int
    state: str = "Pending"
    failure: Object | None = None


def status_of(service: Object, flavour: Flavour, deployment: Object | None, loading: Loading,
              previous: Object | None = None, route: Object | None = None) -> Object:
    """The status of a model whose spec the controller takes.

    Args:
        service: as the webhooks left it.
        flavour: the platform.
        deployment: the predictor's, with its status; None before it is there.
        loading: of its pods (`loading_of`).
        previous: the status before.
        route: the Route of its name, if there is one.
    """
    known: Object = previous or {}
    runtime = {"servingRuntimeName": service["spec"]["predictor"]["model"]["runtime"]}
    if is_stopped(service):
        stopped = [{"reason": "Stopped", "status": "False", "type": kind} for kind in ("PredictorReady", "Ready")]
        return {"conditions": [*stopped, {**_RUNNING, "status": "True"}], "deploymentMode": "Standard",
                "modelStatus": {"transitionStatus": ""}, **runtime}
    state = (deployment or {}).get("status", {})
    predictor = _predictor_condition(state)
    addresses = _addresses(service, flavour, route)
    url = known.get("components", {}).get("predictor", {}).get("url")
    if predictor["status"] == "True":
        url = f"http://{host_of(service, flavour, predictor=True)}"
    conditions = _conditions(predictor, has_address=bool(addresses))
    ready = conditions[2]["status"] == "True"
    observed = {key: state[key] for key in ("observedGeneration",) if key in state}
    return {**addresses, **observed, **runtime, "components": {"predictor": {"url": url} if url else {}},
            "conditions": conditions, "deploymentMode": "Standard",
            "modelStatus": _model_status(loading, ready, known.get("modelStatus", {}))}


def refusal_status(refusal: SpecRefused, previous: Object | None = None) -> Object:
    """The status where the controller does not take the spec: all else stays, `Ready: True` of the old pods, too."""
    status = deepcopy(previous) if previous else {"deploymentMode": "Standard", "conditions": [
        {"status": "Unknown", "type": kind} for kind in ("IngressReady", "PredictorReady", "Ready")]}
    model = status.setdefault("modelStatus", {})
    active = model.get("states", {}).get("activeModelState", "")
    model.update(lastFailureInfo={"message": refusal.message, "reason": refusal.reason}, transitionStatus="InvalidSpec",
                 states={"activeModelState": active, "targetModelState": "FailedToLoad"})
    return status


def loading_of(pods: list[Object]) -> Loading:
    """What the pods say, the newest first."""
    running = sum(one.get("status", {}).get("phase") == "Running" for one in pods)
    newest = pods[0].get("status", {}) if pods else {}
    for one in (*newest.get("initContainerStatuses", ()), *newest.get("containerStatuses", ())):
        if one["name"] == "storage-initializer" and "running" in one["state"]:
            return Loading(running, "Loading")
        ended = one["state"].get("terminated") or {}
        if ended.get("exitCode") and one["name"] in ("storage-initializer", "kserve-container"):
            failure = {"exitCode": ended["exitCode"], "message": ended.get("message", ""), "reason": "ModelLoadFailed"}
            return Loading(running, "FailedToLoad", failure)
    return Loading(running)


def _predictor_condition(state: Object) -> Object:
    """The Deployment's `Available`; in its place `Progressing`, once that says that the roll-out is over."""
    conditions = {one["type"]: one for one in state.get("conditions", ())}
    told = conditions.get("Available")
    if told is None:
        return {"status": "False", "type": "PredictorReady"}
    progress = conditions.get("Progressing", {})
    if told["status"] == "True" and progress.get("reason") == "NewReplicaSetAvailable":
        told = progress
    return {**{key: told[key] for key in ("message", "reason", "status")}, "type": "PredictorReady"}


def _conditions(predictor: Object, *, has_address: bool) -> list[Object]:
    if predictor["status"] != "True":
        ready = {**predictor, "type": "Ready"}
    else:
        ready = {"status": "True" if has_address else "Unknown", "type": "Ready"}
    return [{"status": "True" if has_address else "Unknown", "type": "IngressReady"}, predictor, ready, dict(_RUNNING)]


def _addresses(service: Object, flavour: Flavour, route: Object | None) -> Object:
    """`address` is the Service; `url` the same on Open Data Hub, the Ingress's host on plain KServe.

    An exposed model has neither until its Route stands; then `url` is the Route's. (The latter was read in the
    controller's source; it was recorded without a router.)
    """
    visibility = service["metadata"].get("labels", {}).get(VISIBILITY)
    inside = f"{predictor_name(service)}.{service['metadata']['namespace']}.svc.cluster.local"
    address = f"https://{inside}:8443" if flavour.opendatahub and is_protected(service) else f"http://{inside}"
    if flavour.opendatahub and visibility == EXPOSED:
        if not _stands(route, service):
            return {}
        return {"address": {"url": address}, "url": f"https://{route['spec']['host']}"}
    plain = not flavour.opendatahub and visibility != "cluster-local"
    return {"address": {"url": address}, "url": f"http://{host_of(service, flavour)}" if plain else address}


def _stands(route: Object | None, service: Object) -> TypeGuard[Object]:
    """Whether a Route belongs to the model and a router has admitted it."""
    if route is None:
        return False
    owners = {one["uid"] for one in route["metadata"].get("ownerReferences", ())}
    conditions = [one for ingress in route.get("status", {}).get("ingress", ()) for one in ingress["conditions"]]
    return service["metadata"]["uid"] in owners and any(
        (one["type"], one["status"]) == ("Admitted", "True") for one in conditions)


def _model_status(loading: Loading, ready: bool, previous: Object) -> Object:
    state, failure = loading.state, loading.failure or previous.get("lastFailureInfo")
    active = previous.get("states", {}).get("activeModelState", "")
    if ready and state == "Pending" and loading.running:
        state = active = "Loaded"
    transition = {"Loaded": "UpToDate", "FailedToLoad": "BlockedByFailedLoad"}.get(state, "InProgress")
    copies = {"failedCopies": 0} | ({"totalCopies": loading.running} if loading.running else {})
    return {"copies": copies, "transitionStatus": transition,
            "states": {"activeModelState": active, "targetModelState": state},
            **({"lastFailureInfo": failure} if failure else {})}
