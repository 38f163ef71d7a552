"""The life of an InferenceService against a real API server, under the rights of the shipped Role."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llm_detox.errors import DetoxError, UsageError
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.serve.kserve.deploy import dry_run
from tests.cluster.conftest import QUICK, Project, address, refuse
from tests.cluster.controller import (
    Controller,
    Object,
    blocked,
    by_version,
    get_ready,
    over_quota,
    slowly,
    version_of,
    without_gpu,
)

OLD, NEW = "1" * 64, "2" * 64


def test_the_first_deployment_is_made_answers_and_is_described(project: Project) -> None:
    result = project.deploy(OLD)
    assert result.rollout == "created"
    assert result.address == address(OLD)
    assert result.previous is None
    assert [one["versions"] for one in project.asked] == [{OLD}]
    live = project.live()
    assert live is not None
    assert live["spec"]["predictor"]["model"]["storageUri"] == address(OLD)
    assert live["spec"]["predictor"]["model"]["runtime"] == "llm-detox-caikit-tgis"


def test_the_same_deployment_again_sends_nothing(project: Project) -> None:
    project.deploy(OLD)
    before = project.live()
    assert project.deploy(OLD).rollout == "unchanged"
    after = project.live()
    assert before is not None
    assert after is not None
    assert before["metadata"]["generation"] == after["metadata"]["generation"]
    assert len(project.asked) == 2, "unchanged or not, the model is asked"


def test_reasons_are_shown_as_they_come_and_a_slow_start_is_waited_for(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.controller.play("llm-detox", slowly)
    project.deploy(OLD)
    told = capsys.readouterr().err
    unseen = told.index("the KServe controller has not seen the change yet")
    assert unseen < told.index("no pod of this version yet") < told.index("llm-detox: ready after")


def test_a_model_that_cannot_load_ends_the_wait_at_once_with_the_cause(project: Project) -> None:
    project.controller.play("llm-detox", blocked)
    started = time.monotonic()
    with pytest.raises(DetoxError, match="BlockedByFailedLoad: ModelLoadFailed: safetensors header too large"):
        project.deploy(OLD)
    assert time.monotonic() - started < QUICK.ready / 2
    assert not project.asked


def test_a_pod_without_a_gpu_says_so_and_is_waited_for(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    def late(controller: Controller, service: Object, looks: int) -> None:
        without_gpu(controller, service, looks)
        if looks == 12:
            get_ready(controller, service, 0)

    project.controller.play("llm-detox", late)
    project.deploy(OLD)
    assert "3 Insufficient nvidia.com/gpu" in capsys.readouterr().err


def test_a_pod_that_never_gets_a_gpu_ends_the_wait_with_the_schedulers_words(project: Project) -> None:
    project.controller.play("llm-detox", without_gpu)
    with pytest.raises(DetoxError, match=r"3 Insufficient nvidia\.com/gpu") as caught:
        project.deploy(OLD)
    assert "deploy.kserve.gpus" in str(caught.value.remedy)


def test_a_quota_that_admits_no_pod_ends_the_wait_with_its_words(project: Project) -> None:
    project.controller.play("llm-detox", over_quota)
    with pytest.raises(DetoxError, match="exceeded quota: gpus"):
        project.deploy(OLD)


def test_warnings_about_an_earlier_change_are_not_taken_for_news(project: Project) -> None:
    project.controller.play("llm-detox", by_version(v1=over_quota, v2=slowly))
    with pytest.raises(DetoxError, match="exceeded quota"):
        project.deploy(OLD)
    project.deploy(NEW)
    assert project.asked[-1]["versions"] == {NEW}


def test_a_ready_of_the_generation_before_is_not_believed(project: Project) -> None:
    """The controller is slow: for a while the status still praises the old version."""
    project.deploy(OLD)
    project.controller.play("llm-detox", slowly)
    project.deploy(NEW)
    assert project.asked[-1]["versions"] == {NEW}


def test_ready_is_not_believed_while_the_old_pod_takes_requests(project: Project) -> None:
    """Raw deployments stay Ready by their old pods when the new ones are only coming up."""
    project.deploy(OLD)

    def ready_by_the_old_pod(controller: Controller, service: Object, looks: int) -> None:
        if looks == 0:
            controller.status(service, ready=True)
        elif looks == 10:
            get_ready(controller, service, 0)

    project.controller.play("llm-detox", ready_by_the_old_pod)
    project.deploy(NEW)
    assert project.asked[-1]["versions"] == {NEW}


def test_a_conflict_is_read_again_and_the_others_change_survives(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.deploy(OLD)
    plain, calls = project.cluster.patch, []

    def patch(name: str, body: Object, **options: Any) -> Object:
        if not calls:
            project.admin.patch(name, {"metadata": {"annotations": {"someone": "was-here"}}})
        calls.append(body)
        return plain(name, body, **options)

    monkeypatch.setattr(project.cluster, "patch", patch)
    assert project.deploy(NEW).rollout == "replaced"
    live = project.live()
    assert live is not None
    assert live["metadata"]["annotations"]["someone"] == "was-here"
    assert len(calls) == 2


def test_someone_who_makes_it_at_the_same_time_is_no_failure(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = project.cluster.create, []

    def create(body: Object, **options: Any) -> Object:
        if not calls:
            project.admin.create(body)
        calls.append(1)
        return plain(body, **options)

    monkeypatch.setattr(project.cluster, "create", create)
    project.deploy(OLD)
    assert project.asked[-1]["versions"] == {OLD}


def test_what_the_dashboard_added_stays_and_what_the_recipe_no_longer_wants_goes(project: Project) -> None:
    project.deploy(OLD, node_selector={"gpu": "a100"})
    project.admin.patch("llm-detox", {"spec": {"predictor": {"labels": {"team": "support"}}}})
    project.deploy(NEW)
    live = project.live()
    assert live is not None
    assert live["spec"]["predictor"]["labels"] == {"team": "support"}
    assert "nodeSelector" not in live["spec"]["predictor"]


def test_the_api_server_may_restart_in_the_middle(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.controller.play("llm-detox", lambda *_: None)

    def restart() -> None:
        time.sleep(0.5)
        project.server.restart(away_seconds=1.0)
        project.controller.play("llm-detox", lambda controller, service, looks: get_ready(controller, service, 0))

    other = threading.Thread(target=restart)
    other.start()
    project.deploy(OLD)
    other.join()
    assert "the cluster does not answer; trying again" in capsys.readouterr().err
    assert project.asked[-1]["versions"] == {OLD}


def test_a_version_that_does_not_answer_is_taken_back(project: Project) -> None:
    project.deploy(OLD)
    with pytest.raises(DetoxError, match="serves again what it served before"):
        project.deploy(NEW, probe=refuse)
    live = project.live()
    assert live is not None
    assert version_of(live) == OLD
    assert live["spec"]["predictor"]["model"]["storageUri"] == address(OLD)
    assert live["metadata"]["annotations"]["llm-detox/address"] == address(OLD)


def test_a_version_that_does_not_load_is_taken_back(project: Project) -> None:
    project.deploy(OLD)
    project.controller.play("llm-detox", by_version(v2=blocked))
    with pytest.raises(DetoxError, match="serves again what it served before"):
        project.deploy(NEW)
    live = project.live()
    assert live is not None
    assert version_of(live) == OLD


def test_a_first_version_that_fails_stays_for_a_look_and_the_next_one_replaces_it(project: Project) -> None:
    project.controller.play("llm-detox", by_version(v1=blocked))
    with pytest.raises(DetoxError, match="BlockedByFailedLoad"):
        project.deploy(OLD)
    assert project.live() is not None
    assert project.deploy(NEW).rollout == "replaced"


def test_a_canary_that_answers_is_promoted_and_goes(project: Project) -> None:
    project.deploy(OLD)
    result = project.deploy(NEW, rollout="canary")
    assert result.rollout == "promoted"
    assert result.previous == address(OLD)
    assert [(one["name"], one["versions"]) for one in project.asked[1:]] == [
        ("llm-detox-canary", {NEW}), ("llm-detox", {NEW})]
    assert project.live("llm-detox-canary") is None


@pytest.mark.parametrize("failure", ["does not load", "does not answer"])
def test_a_canary_that_fails_goes_and_the_model_was_never_touched(project: Project, failure: str) -> None:
    project.deploy(OLD)
    before = project.live()
    if failure == "does not load":
        project.controller.play("llm-detox-canary", blocked)
    with pytest.raises(DetoxError, match="the canary failed, llm-detox was not touched"):
        project.deploy(NEW, rollout="canary", probe=refuse if failure == "does not answer" else None)
    after = project.live()
    assert before is not None
    assert after is not None
    assert before["metadata"]["generation"] == after["metadata"]["generation"]
    assert project.live("llm-detox-canary") is None


def test_a_dry_run_is_checked_by_the_server_and_keeps_nothing(project: Project) -> None:
    recipe = project.recipe(rollout="canary")
    text = dry_run(recipe.deploy, recipe.cluster, address=address(NEW), cluster=project.cluster)
    assert text.count("kind: InferenceService") == 2
    assert address(NEW) in text
    assert project.live() is None


def test_a_service_that_someone_else_made_is_not_taken_over(project: Project) -> None:
    project.admin.create({"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
                          "metadata": {"name": "llm-detox", "namespace": project.namespace},
                          "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "name": ""}}}})
    with pytest.raises(DetoxError, match="llm-detox did not make"):
        project.deploy(OLD)


def test_a_missing_runtime_is_said_before_anything_is_made(project: Project) -> None:
    with pytest.raises(DetoxError, match="ServingRuntime llm-detox-vllm does not exist") as caught:
        project.deploy(OLD, runtime="llm-detox-vllm")
    assert "kubectl apply -k manifests/overlays/kserve" in str(caught.value.remedy)
    assert project.live() is None


def test_a_name_that_no_host_name_takes_is_refused_first(project: Project, tmp_path: Path) -> None:
    recipe = project.recipe()
    long = recipe.model_copy(update={"deploy": recipe.deploy.model_copy(
        update={"name": "m" * 50, "namespace": "n" * 20})})
    from llm_detox.serve.kserve.deploy import deploy_kserve

    with pytest.raises(UsageError, match="71 characters together"):
        deploy_kserve(long.deploy, long.cluster, address=address(OLD), output=tmp_path / "out", cluster=None)


def test_what_kubectl_applied_by_hand_goes_on_with_the_deploy_step(project: Project) -> None:
    """`kubectl apply -k` and the deploy step keep the same note of what was wanted, so they can take turns."""
    import yaml

    from tests.cluster.server import moved
    from tests.manifests.kustomize import overlay

    objects = moved(overlay("overlays/kserve/model"), project.namespace)
    objects[0]["spec"]["predictor"]["annotations"] = {"llm-detox/version": OLD}
    objects[0]["spec"]["predictor"]["timeout"] = 60
    project.server.kubectl("apply", "--validate=false", "-f", "-", text=yaml.safe_dump(objects[0]))
    assert project.deploy(NEW).rollout == "replaced"
    live = project.live()
    assert live is not None
    assert "timeout" not in live["spec"]["predictor"], "applied by hand before, wanted no more"


def test_a_canary_that_is_still_being_removed_is_waited_for(project: Project) -> None:
    """KServe's finalizer keeps the old canary for a moment; a change to it would go with it."""
    project.deploy(OLD)
    leftover = project.recipe().deploy
    from llm_detox.serve.kserve.render import inference_service

    thing = inference_service(leftover, ConnectionSection(), address("3" * 64), namespace=project.namespace,
                              canary=True)
    thing["metadata"]["finalizers"] = ["llm-detox.test/slow"]
    project.admin.create(thing)
    project.admin.delete("llm-detox-canary")
    release = {"metadata": {"finalizers": None}}
    releasing = threading.Timer(1.0, lambda: project.admin.patch("llm-detox-canary", release))
    releasing.start()
    assert project.deploy(NEW, rollout="canary").rollout == "promoted"
    releasing.join()


def test_when_the_old_version_does_not_come_back_both_failures_are_told(project: Project) -> None:
    project.deploy(OLD)
    project.controller.play("llm-detox", by_version(v1=without_gpu, v2=blocked))
    with pytest.raises(DetoxError, match=r"(?s)BlockedByFailedLoad.*was put back.*not ready.*Insufficient"):
        project.deploy(NEW)


def test_the_pointer_in_the_store_goes_back_with_the_model(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[str, str]] = []
    monkeypatch.setattr("llm_detox.storage.publishing.rollback", lambda url, digest: moved.append((url, digest)))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-login-for-the-store")
    project.deploy(OLD)
    for rollout in ("replace", "canary"):
        with pytest.raises(DetoxError):
            project.deploy(NEW, probe=refuse, rollout=rollout)
    assert moved == [("s3://llm-detox/models", OLD)] * 2
    project.deploy(NEW)
    assert len(moved) == 2, "a version that works stays the current one"
