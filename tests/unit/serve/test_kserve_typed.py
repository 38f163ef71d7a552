"""What is sent and read has a field in KServe's own SDK."""

from __future__ import annotations

from typing import Any

import pytest

from llm_detox.errors import UsageError
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.deploy import DeploySection, KserveSection
from llm_detox.serve.kserve.render import inference_service
from llm_detox.serve.kserve.typed import require_known_fields, unknown_fields


def rendered(**kserve: Any) -> Any:
    section = DeploySection(target="kserve", kserve=KserveSection(**kserve))
    return inference_service(section, ConnectionSection(), f"s3://bucket/m/{'1' * 64}", namespace="p").first()


@pytest.mark.parametrize("kserve", [
    {"platform": platform, "serving": serving, "replicas": 2, "tolerations": ["gpu"], "node_selector": {"a": "b"}}
    for platform in ("kserve", "openshift-ai") for serving in ("caikit-tgis", "vllm")])
def test_all_fields_of_what_is_sent_exist(kserve: Any) -> None:
    require_known_fields(rendered(**kserve))


@pytest.mark.parametrize("path", [
    ("spec", "predictor", "replicas"), ("spec", "predictors"), ("spec", "predictor", "model", "storage", "uri"),
    ("spec", "predictor", "model", "resources", "limit"), ("spec", "predictor", "deploymentStrategy", "kind"),
    ("spec", "predictor", "securityContext", "runAsAnybody"), ("metadata", "label")])
def test_a_field_that_does_not_exist_is_named_with_its_path(path: tuple[str, ...]) -> None:
    thing = rendered()
    place = thing
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = {}
    with pytest.raises(UsageError, match=".".join(path)):
        require_known_fields(thing)


def test_fields_in_lists_are_checked_too() -> None:
    thing = rendered(tolerations=["gpu"])
    thing["spec"]["predictor"]["tolerations"][0]["effekt"] = "NoSchedule"
    assert list(unknown_fields(thing, "V1beta1InferenceService")) == ["spec.predictor.tolerations[0].effekt"]


def test_the_status_that_is_read_is_the_sdks() -> None:
    """As `InferenceService.of` reads it."""
    read = {"status": {"modelStatus": {"transitionStatus": "UpToDate", "lastFailureInfo": {
        "reason": "ModelLoadFailed", "message": "no", "exitCode": 1}}, "conditions": [], "address": {"url": "http://m"}}}
    assert not list(unknown_fields(read, "V1beta1InferenceService"))
