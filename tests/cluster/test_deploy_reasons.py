"""Why a model does not come up, as `deploy` tells it, and who may ask it: on a real API server with stand-ins."""

from __future__ import annotations

import time

import pytest

from llm_detox.cluster.objects import AUTH
from llm_detox.errors import DetoxError
from tests.cluster.conftest import NEW, OLD, QUICK, Project, asked_versions, live
from tests.serving.running import wait_for
from tests.standins.cluster.scripted import (
    BLOCKED,
    Course,
    crashed,
    initializer_failed,
    never_pulled,
    out_of_memory,
    ready_after,
    restarting,
    serving,
    starting,
    stays,
    waiting,
    without_gpu,
)

# Reasons


def test_reasons_are_shown_as_they_come_and_a_slow_start_is_waited_for(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.play(ready_after(3.0))
    project.deploy(OLD)
    told = capsys.readouterr().err
    assert told.index("Deployment does not have minimum availability") < told.index("llm-detox: ready after")


def test_a_model_that_cannot_load_ends_the_wait_with_the_cause(any_platform: Project) -> None:
    any_platform.play(BLOCKED)
    started = time.monotonic()
    with pytest.raises(DetoxError, match="BlockedByFailedLoad: ModelLoadFailed: safetensors header too large"):
        any_platform.deploy(OLD)
    assert time.monotonic() - started < QUICK.ready / 2
    assert not any_platform.asked


def test_a_load_that_fails_and_then_heals_is_waited_for(any_platform: Project) -> None:
    any_platform.play(Course((
        (0.0, starting), (0.2, initializer_failed("Traceback: botocore.exceptions.EndpointConnectionError")),
        (1.0, starting), (1.3, crashed("CUDA out of memory")), (2.0, starting), (2.4, serving))))
    any_platform.deploy(OLD)
    assert asked_versions(any_platform) == [{OLD}]


def test_a_storage_initializer_that_finds_nothing_is_told_with_its_words(project: Project) -> None:
    project.play(stays(initializer_failed("RuntimeError: Failed to fetch model. No model found in s3://")))
    with pytest.raises(DetoxError, match="Failed to fetch model"):
        project.deploy(OLD)


def test_a_container_that_is_killed_for_memory_again_and_again_is_told_with_what_helps(project: Project) -> None:
    project.play(out_of_memory())
    with pytest.raises(DetoxError, match=r"ended 3 times \(exit code 137\): OOMKilled|exit code 137") as caught:
        project.deploy(OLD)
    assert caught.value.remedy


def test_a_container_that_ends_again_and_again_is_told_with_its_log(project: Project) -> None:
    project.play(stays(restarting("no module named serving", 4, 1)))
    with pytest.raises(DetoxError, match=r"kserve-container ended 4 times .*no module named serving"):
        project.deploy(OLD)


def test_an_image_that_no_registry_has_is_told(project: Project) -> None:
    project.play(never_pulled("quay.io/nobody/none:1"))
    with pytest.raises(DetoxError, match="the image cannot be pulled") as caught:
        project.deploy(OLD)
    assert "manifests/settings" in str(caught.value.remedy)


def test_a_secret_that_is_missing_is_told(project: Project) -> None:
    project.play(stays(waiting("CreateContainerConfigError", 'secret "llm-detox-tls" not found')))
    with pytest.raises(DetoxError, match='secret "llm-detox-tls" not found'):
        project.deploy(OLD)


def test_a_pod_without_a_gpu_says_so_and_is_waited_for(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.play(Course((*without_gpu().steps, (1.0, starting), (1.3, serving))))
    project.deploy(OLD)
    assert "3 Insufficient nvidia.com/gpu" in capsys.readouterr().err


def test_a_pod_that_never_gets_a_gpu_ends_the_wait_with_the_schedulers_words(project: Project) -> None:
    project.play(without_gpu())
    with pytest.raises(DetoxError, match=r"3 Insufficient nvidia\.com/gpu") as caught:
        project.deploy(OLD)
    assert "deploy.kserve.gpus" in str(caught.value.remedy)


def test_a_quota_that_admits_no_pod_ends_the_wait_with_its_words(project: Project) -> None:
    project.fill_quota()
    with pytest.raises(DetoxError, match="exceeded quota: gpus"):
        project.deploy(OLD)


def test_warnings_about_an_earlier_change_are_not_taken_for_news(project: Project) -> None:
    project.fill_quota()
    with pytest.raises(DetoxError, match="exceeded quota"):
        project.deploy(OLD)
    project.core.delete_namespaced_resource_quota("gpus", project.namespace)
    project.play(ready_after(3.0))
    project.deploy(NEW)
    assert project.asked[-1]["versions"] == {NEW}


def test_a_format_that_kserve_refuses_is_told_although_the_old_pods_are_ready(any_platform: Project) -> None:
    any_platform.deploy(OLD)
    any_platform.here.change({"spec": {"predictor": {"model": {"modelFormat": {"name": "onnx"}}}}})
    wait_for(lambda: live(any_platform)["status"]["modelStatus"]["transitionStatus"] == "InvalidSpec")
    with pytest.raises(DetoxError, match=r"spec\.predictor\.model\.modelFormat\.name"):
        any_platform.deploy(NEW)


def test_a_namespace_that_enforces_the_restricted_standard_admits_no_pod_and_that_is_told(project: Project) -> None:
    project.core.patch_namespace(project.namespace, {"metadata": {"labels": {
        "pod-security.kubernetes.io/enforce": "restricted"}}})
    with pytest.raises(DetoxError, match='violates PodSecurity "restricted'):
        project.deploy(OLD)


# Protection


def test_a_redeployment_leaves_a_protected_model_protected(openshift: Project) -> None:
    openshift.deploy(OLD)
    openshift.here.change({"metadata": {"annotations": {AUTH: "true"}}})
    wait_for(lambda: live(openshift)["status"]["address"]["url"].endswith(":8443"))
    result = openshift.deploy(NEW)
    service = openshift.here.api.get("Service", openshift.namespace, "llm-detox-predictor")
    assert service is not None
    assert 8443 in {one["port"] for one in service["spec"]["ports"]}
    assert 80 not in {one["port"] for one in service["spec"]["ports"]}
    assert openshift.asked[-1]["rest"].startswith("https://")
    assert "grpc" not in result.urls, "nothing in front of that port asks for a token"


@pytest.mark.parametrize(("auth", "port"), [("on", 8443), ("off", 80)])
def test_the_recipe_protects_a_model_and_opens_it(openshift: Project, auth: str, port: int) -> None:
    openshift.deploy(OLD, auth={"on": "off", "off": "on"}[auth])
    openshift.deploy(OLD, auth=auth)
    service = openshift.here.api.get("Service", openshift.namespace, "llm-detox-predictor")
    assert service is not None
    assert service["spec"]["ports"][0]["port"] == port


def test_on_plain_kserve_no_ingress_publishes_the_model(project: Project) -> None:
    project.deploy(OLD)
    assert not project.here.api.list("Ingress", project.namespace)
    project.deploy(OLD, expose="on")
    assert [one["metadata"]["name"] for one in project.here.api.list("Ingress", project.namespace)] == ["llm-detox"]
