"""What a policy scanner is given: all objects, and the pods that KServe makes of the ServingRuntimes as Deployments.

Scanners know the kinds of Kubernetes only; a ServingRuntime would pass unread.

    python -m tests.manifests.scan FOLDER && checkov --directory FOLDER --framework kubernetes
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from tests.manifests.kustomize import Object, documented, overlay, pick, with_components

PLATFORMS = ("overlays/kserve", "overlays/openshift-ai")


def scanned(folder: Path) -> list[Object]:
    """The objects of both platforms with all components that go together, each once."""
    found: dict[str, Object] = {}
    for platform in PLATFORMS:
        model = pick(overlay(f"{platform}/model"), "InferenceService")
        for thing in with_components(folder / Path(platform).name, platform, documented()[platform]):
            if thing["kind"] == "ServingRuntime":
                thing = deployment(thing, model)
            found[f"{thing['kind']}/{thing['metadata']['name']}"] = thing
    return list(found.values())


def deployment(runtime: Object, service: Object) -> Object:
    """The Deployment that KServe makes of a runtime and an InferenceService."""
    predictor, spec = service["spec"]["predictor"], runtime["spec"]
    name, labels = runtime["metadata"]["name"], {"serving.kserve.io/inferenceservice": service["metadata"]["name"]}
    pod = {key: predictor[key] for key in ("serviceAccountName", "automountServiceAccountToken", "securityContext",
                                           "tolerations") if key in predictor}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": runtime["metadata"]["namespace"], "labels": labels},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {**pod, "containers": spec["containers"], "volumes": spec["volumes"]}}},
    }


if __name__ == "__main__":
    import tempfile

    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        (target / "objects.yaml").write_text(yaml.safe_dump_all(scanned(Path(work))), "utf-8")
    print(target / "objects.yaml")
