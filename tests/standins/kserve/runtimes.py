"""Which runtime serves a model, as KServe's controller decides, and its refusals."""

from __future__ import annotations

from typing import Any

from tests.standins import Unmeasured

Object = dict[str, Any]


class SpecRefused(Exception):
    """The controller does not take the spec: `reason` and `message` stand in `modelStatus.lastFailureInfo`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message


def runtime_of(service: Object, others: list[Object]) -> Object:
    """The runtime that the model names.

    Raises:
        SpecRefused: it is not there, or does not take the format.
    """
    model, namespace = service["spec"]["predictor"]["model"], service["metadata"]["namespace"]
    if "runtime" not in model:
        raise Unmeasured("a model that names no runtime")
    runtimes = [one for one in others if one["kind"] == "ServingRuntime" and one["metadata"]["namespace"] == namespace]
    runtimes += [one for one in others if one["kind"] == "ClusterServingRuntime"]
    runtime = next((one for one in runtimes if one["metadata"]["name"] == model["runtime"]), None)
    if runtime is None:
        raise SpecRefused("RuntimeNotRecognized", "Waiting for runtime to become available")
    if model["modelFormat"]["name"] not in {one["name"] for one in runtime["spec"]["supportedModelFormats"]}:
        raise SpecRefused("NoSupportingRuntime", "Specified runtime does not support specified framework/version")
    return runtime
