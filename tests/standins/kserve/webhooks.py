"""A stand-in for KServe's admission webhooks on InferenceServices and InferenceGraphs: defaults and refusals.

Open Data Hub's second controller (odh-model-controller) has a webhook, too, which makes accounts and storage of the
annotation `opendatahub.io/connections`. It was not running when this was recorded, so nothing stands in for it.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from tests.standins.kserve.platform import DEPLOYMENT_MODE, Refused

Object = dict[str, Any]
VALIDATOR = "inferenceservice.kserve-webhook-server.validator"
_PROTOCOLS = {"vLLM": "v2"}  # of the formats that were recorded, only this one gets a protocol


def admit_service(given: Object) -> Object:
    """An InferenceService that is created, as the webhooks and the controller's finalizer leave it.

    Raises:
        Refused: in the words of the webhook.
    """
    result = deepcopy(given)
    _refuse(result)
    metadata, model = result["metadata"], result["spec"]["predictor"]["model"]
    annotations = metadata.setdefault("annotations", {})
    if annotations.get(DEPLOYMENT_MODE) == "RawDeployment":
        annotations[DEPLOYMENT_MODE] = "Standard"
    form = model["modelFormat"]["name"]
    annotations["modelFormat"] = form
    model.setdefault("name", "")
    if form in _PROTOCOLS:
        model.setdefault("protocolVersion", _PROTOCOLS[form])
    metadata["finalizers"] = ["inferenceservice.finalizers"]
    metadata["generation"] = 1
    return result


def admit_graph(given: Object) -> Object:
    """An InferenceGraph that is created: it keeps `RawDeployment` as it was written."""
    result = deepcopy(given)
    result["metadata"].update(finalizers=["inferencegraph.finalizers"], generation=1)
    return result


def _refuse(service: Object) -> None:
    for index, canary in enumerate(service["spec"].get("canary", ())):
        if not canary.get("predictor", {}).get("name"):
            raise Refused(f'admission webhook "{VALIDATOR}" denied the request: '
                          f"canary[{index}] predictor.name is required")
