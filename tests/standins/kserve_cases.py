"""The recorded cases of KServe: what was given, what was made, and what of it is not KServe's doing."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.standins.kserve.platform import FLAVOURS, Flavour
from tests.standins.recordings import ROOT, documents, documents_of

Object = dict[str, Any]
CASES = sorted(str(path.parent.relative_to(ROOT / "kserve")) for path in ROOT.glob("kserve/*/*/given.yaml"))
MODELS = [case for case in CASES if not case.endswith("guard-graph")]
KINDS = ("Deployment", "Service", "HorizontalPodAutoscaler", "Ingress", "Pod")

# The Secrets were in the namespace of the recordings, but are not in given.yaml.
SECRETS: list[Object] = [
    {"kind": "Secret", "metadata": {"name": "llm-detox-s3", "namespace": "llm-detox",
                                    "annotations": {"serving.kserve.io/s3-endpoint": "s3.example.com"}},
     "stringData": {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}},
    {"kind": "Secret", "metadata": {"name": "storage-config", "namespace": "llm-detox"},
     "stringData": {"llm-detox-s3": json.dumps({"type": "s3", "bucket": "models",
                                                "cabundle_configmap": "odh-kserve-custom-ca-bundle"})}},
]
# Each platform's first case shows these, later ones do not: one case followed the other under the same names, so what
# was still there of the case before seems to have been taken for the new one's own, and then gone with its owner.
GONE_WHEN_RECORDED = {
    case: {"HorizontalPodAutoscaler"} | ({"Service", "Ingress"} if case.startswith("kserve-0.20") else set())
    for case in MODELS if not case.endswith("/caikit-tgis")
}
# Left over from the case `grpc`, whose given.yaml has it.
LEFT_OVER = {case: {"llm-detox-tls"} for case in
             ("opendatahub-3.5/caikit-tgis", "opendatahub-3.5/auth", "opendatahub-3.5/custom-ca")}
# The recording shows a shortened name; the API server's pull policy there shows that the name had its tag.
SHORTENED_IMAGES = {"opendatahub-3.5/caikit-engine": ("engine", "quay.io/llm-detox/engine:0.1.0")}
# Written by others than KServe: the controllers of Deployments and HorizontalPodAutoscalers, and the kubelet.
STATUS_OF_OTHERS = {"Deployment", "HorizontalPodAutoscaler", "Pod"}
REVISION = "deployment.kubernetes.io/revision"
RANDOM = (
    (re.compile(r"kube-api-access-[a-z0-9]{5}\b"), "kube-api-access-xxxxx"),
    (re.compile(r"(predictor-[0-9a-f]{7,10})-[a-z0-9]{5}\b"), r"\1-xxxxx"),
)


def flavour_of(case: str) -> Flavour:
    return next(one for one in FLAVOURS if case.startswith(one.name))


def inputs_of(case: str) -> list[Object]:
    return documents(ROOT / "kserve" / case / "given.yaml") + SECRETS


def recording_of(case: str) -> list[Object]:
    """made.yaml without the random parts of names."""
    text = (ROOT / "kserve" / case / "made.yaml").read_text("utf-8")
    for pattern, plain in RANDOM:
        text = pattern.sub(plain, text)
    objects = documents_of(text)
    if case in SHORTENED_IMAGES:
        shortened, whole = SHORTENED_IMAGES[case]
        objects = json.loads(json.dumps(objects).replace(f'"image": "{shortened}"', f'"image": "{whole}"'))
    for one in objects:
        one.get("metadata", {}).get("annotations", {}).pop(REVISION, None)
    return objects


def without_status_of_others(one: Object) -> Object:
    return {key: value for key, value in one.items() if key != "status" or one["kind"] not in STATUS_OF_OTHERS}
