"""`deploy`, with the Role's rights, on a real API server with KServe's measured stand-in and Kubernetes' controllers.

What happens inside of pods is scripted here; `test_end_to_end` runs them.
"""

from __future__ import annotations

import signal
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_detox.cluster.objects import STOP
from llm_detox.errors import DetoxError, UsageError
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.serve.kserve import status
from llm_detox.serve.kserve.deploy import deploy_kserve, dry_run
from llm_detox.serve.kserve.render import SPEC, VERSION, inference_service
from tests.cluster.conftest import (
    NEW,
    OLD,
    Object,
    Project,
    address,
    asked_versions,
    live,
    refuse,
    source_of,
    version_of,
)
from tests.cluster.server import moved
from tests.manifests.kustomize import overlay
from tests.serving.running import wait_for
from tests.standins.cluster.scripted import BLOCKED, READY, ready_after, without_gpu

# Made, unchanged, replaced


def test_the_first_deployment_is_made_answers_and_is_described(any_platform: Project) -> None:
    result = any_platform.deploy(OLD)
    assert (result.rollout, result.address, result.previous) == ("created", address(OLD), None)
    assert asked_versions(any_platform) == [{OLD}]
    service = live(any_platform)
    assert source_of(service).endswith(f"models/{OLD}")
    assert service["spec"]["predictor"]["model"]["runtime"] == "llm-detox-caikit-tgis"


def test_the_same_deployment_again_changes_nothing(any_platform: Project) -> None:
    any_platform.deploy(OLD)
    before = live(any_platform)
    assert any_platform.deploy(OLD).rollout == "unchanged"
    assert live(any_platform)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert asked_versions(any_platform) == [{OLD}] * 2, "unchanged or not, the model is asked"


def test_a_new_version_is_believed_when_its_own_pods_serve_and_no_others(any_platform: Project) -> None:
    any_platform.deploy(OLD)
    any_platform.play(ready_after(1.0), "2")
    assert any_platform.deploy(NEW).rollout == "replaced"
    assert asked_versions(any_platform)[-1] == {NEW}


def test_the_middle_of_a_rolling_update_is_not_believed_although_kserve_says_ready(any_platform: Project) -> None:
    any_platform.deploy(OLD, replicas=2)
    any_platform.play(ready_after(1.0), "2")
    any_platform.deploy(NEW, replicas=2)
    assert asked_versions(any_platform)[-1] == {NEW}
    assert len(any_platform.here.pods()) == 2


# The observed generation, which is the Deployment's


def test_after_a_stop_and_a_start_a_deployment_is_done_as_ever(any_platform: Project) -> None:
    any_platform.deploy(OLD)
    any_platform.deploy("3" * 64)
    for value in ("true", "false"):
        any_platform.here.change({"metadata": {"annotations": {STOP: value}}})
        wait_for(lambda value=value: bool(any_platform.here.pods()) == (value == "false"))
    any_platform.deploy(NEW)
    service = live(any_platform)
    assert service["status"]["observedGeneration"] < service["metadata"]["generation"]
    assert asked_versions(any_platform)[-1] == {NEW}


def test_after_scaling_an_old_pod_is_not_believed(any_platform: Project) -> None:
    any_platform.deploy(OLD)
    any_platform.here.change({"spec": {"predictor": {"minReplicas": 2, "maxReplicas": 2}}})
    wait_for(lambda: len(any_platform.here.pods()) == 2)
    for value in ("a", "b"):  # a change of an annotation is one of the Deployment only: it runs ahead
        any_platform.here.change({"metadata": {"annotations": {"someone": value}}})
        wait_for(lambda value=value: [one["metadata"]["annotations"].get("someone") for one in any_platform.here.pods()
                                      ] == [value] * 2)
    service = live(any_platform)
    assert service["status"]["observedGeneration"] > service["metadata"]["generation"]
    any_platform.play(ready_after(1.0), "2")
    any_platform.deploy(NEW)
    assert asked_versions(any_platform)[-1] == {NEW}


def test_a_stopped_model_is_started_and_the_log_says_so(
    any_platform: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    any_platform.deploy(OLD)
    any_platform.here.change({"metadata": {"annotations": {STOP: "true"}}})
    wait_for(lambda: not any_platform.here.pods())
    any_platform.deploy(NEW)
    assert asked_versions(any_platform)[-1] == {NEW}
    assert "it was stopped; starting it" in capsys.readouterr().err


def test_more_memory_by_hand_stays_and_the_next_deployment_is_done(any_platform: Project) -> None:
    any_platform.deploy(OLD)
    more = {"requests": {"memory": "9Gi"}}
    any_platform.here.change({"spec": {"predictor": {"model": {"resources": more}}}})
    any_platform.deploy(NEW)
    container = any_platform.here.pods()[0]["spec"]["containers"][0]
    assert container["resources"]["requests"]["memory"] == "9Gi"
    assert asked_versions(any_platform)[-1] == {NEW}


# Put back


def test_a_version_that_does_not_answer_is_taken_back(any_platform: Project) -> None:
    any_platform.deploy(OLD)
    with pytest.raises(DetoxError, match="serves again what it served before"):
        any_platform.deploy(NEW, probe=refuse)
    service = live(any_platform)
    assert version_of(service) == OLD
    assert source_of(service).endswith(OLD)
    assert service["metadata"]["annotations"]["llm-detox/address"] == address(OLD)


def test_a_version_that_does_not_load_is_taken_back(any_platform: Project) -> None:
    any_platform.deploy(OLD)
    any_platform.play(BLOCKED, "2")
    with pytest.raises(DetoxError, match="serves again what it served before"):
        any_platform.deploy(NEW)
    assert version_of(live(any_platform)) == OLD
    assert [one["metadata"]["annotations"][VERSION] for one in any_platform.here.pods()] == [OLD]


def test_a_step_that_is_told_to_end_puts_back_what_nobody_verified(
        project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes where the wait looks: anywhere in this process, it could break a lock of the stand-ins."""
    project.deploy(OLD)
    project.play(ready_after(60.0), "2")
    plain, looks = status._give_up_where_it_cannot_heal, count()

    def told_to_end(*arguments: Any) -> None:
        plain(*arguments)
        if next(looks) == 10:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(status, "_give_up_where_it_cannot_heal", told_to_end)
    with pytest.raises(KeyboardInterrupt):
        project.deploy(NEW)
    assert version_of(live(project)) == OLD


def test_a_first_version_that_fails_stays_for_a_look_and_the_next_one_replaces_it(project: Project) -> None:
    project.play(BLOCKED, "1")
    with pytest.raises(DetoxError, match="BlockedByFailedLoad"):
        project.deploy(OLD)
    assert project.live() is not None
    assert project.deploy(NEW).rollout == "replaced"


def test_when_the_old_version_does_not_come_back_both_failures_are_told(project: Project) -> None:
    project.deploy(OLD)
    project.play(without_gpu(), "1")
    project.play(BLOCKED, "2")
    with pytest.raises(DetoxError, match=r"(?s)BlockedByFailedLoad.*was put back.*not ready.*Insufficient"):
        project.deploy(NEW)


def test_the_pointer_in_the_store_goes_back_with_the_model(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    pointers: list[tuple[str, str]] = []
    monkeypatch.setattr("llm_detox.storage.publishing.rollback", lambda url, digest: pointers.append((url, digest)))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-login-for-the-store")
    project.deploy(OLD)
    for rollout in ("replace", "canary"):
        with pytest.raises(DetoxError):
            project.deploy(NEW, probe=refuse, rollout=rollout)
    assert pointers == [("s3://llm-detox/models", OLD)] * 2
    project.deploy(NEW)
    assert len(pointers) == 2, "a version that works stays the current one"


# A canary


def test_a_canary_that_answers_is_promoted_and_goes(any_platform: Project) -> None:
    any_platform.deploy(OLD)
    result = any_platform.deploy(NEW, rollout="canary")
    assert (result.rollout, result.previous) == ("promoted", address(OLD))
    assert [(one["name"], one["versions"]) for one in any_platform.asked[1:]] == [
        ("llm-detox-canary", {NEW}), ("llm-detox", {NEW})]
    wait_for(lambda: any_platform.live("llm-detox-canary") is None)


@pytest.mark.parametrize("failure", ["does not load", "does not answer"])
def test_a_canary_that_fails_goes_and_the_model_was_never_touched(project: Project, failure: str) -> None:
    project.deploy(OLD)
    before = live(project)
    if failure == "does not load":
        project.play(BLOCKED, model="llm-detox-canary")
    with pytest.raises(DetoxError, match="the canary failed, llm-detox was not touched"):
        project.deploy(NEW, rollout="canary", probe=refuse if failure == "does not answer" else None)
    assert live(project)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    wait_for(lambda: project.live("llm-detox-canary") is None)


def test_a_canary_that_is_still_being_removed_is_waited_for(project: Project) -> None:
    """A finalizer keeps the old canary for a moment; a change to it would go with it."""
    project.deploy(OLD)
    thing = inference_service(project.recipe().deploy, ConnectionSection(), address("3" * 64),
                              namespace=project.namespace, canary=True).first()
    thing["metadata"]["finalizers"] = ["llm-detox.test/slow"]
    project.here.apply([thing])
    project.here.api.delete("InferenceService", project.namespace, "llm-detox-canary")
    releasing = threading.Timer(1.0, project.here.change, ({"metadata": {"finalizers": None}}, "llm-detox-canary"))
    releasing.start()
    assert project.deploy(NEW, rollout="canary").rollout == "promoted"
    releasing.join()


# Others


def test_someone_who_makes_it_at_the_same_time_is_no_failure(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = project.cluster.apply, []

    def apply(body: Object, **options: Any) -> Any:
        if not calls:
            project.admin.apply(body)
        calls.append(1)
        return plain(body, **options)

    monkeypatch.setattr(project.cluster, "apply", apply)
    project.deploy(OLD)
    assert project.asked[-1]["versions"] == {OLD}


def test_what_the_dashboard_added_stays_and_what_the_recipe_no_longer_wants_goes(project: Project) -> None:
    project.deploy(OLD, node_selector={"gpu": "a100"})
    project.here.change({"spec": {"predictor": {"labels": {"team": "support"}}}})
    project.deploy(NEW)
    predictor = live(project)["spec"]["predictor"]
    assert predictor["labels"] == {"team": "support"}
    assert "nodeSelector" not in predictor


def test_the_api_server_may_restart_in_the_middle(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.play(ready_after(600.0))

    def restart() -> None:
        time.sleep(0.5)
        project.server.restart(away_seconds=1.0)
        project.play(READY)

    other = threading.Thread(target=restart)
    other.start()
    project.deploy(OLD)
    other.join()
    assert "the cluster does not answer; trying again" in capsys.readouterr().err
    assert project.asked[-1]["versions"] == {OLD}


def test_a_service_that_someone_else_made_is_not_taken_over(project: Project) -> None:
    service = inference_service(project.recipe().deploy, ConnectionSection(), address(OLD),
                                namespace=project.namespace).first()
    service["metadata"]["labels"] = {}
    project.here.apply([service])
    with pytest.raises(DetoxError, match="llm-detox did not create"):
        project.deploy(OLD)


def test_a_missing_runtime_is_said_before_anything_is_made_by_who_may_look_everywhere(project: Project) -> None:
    project.bind_cluster_runtimes()
    with pytest.raises(DetoxError, match="there is no ServingRuntime llm-detox-vllm") as caught:
        project.deploy(OLD, serving="vllm")
    assert "kubectl apply -k manifests/overlays/kserve" in str(caught.value.remedy)
    assert project.live() is None


def test_a_missing_runtime_of_ours_is_said_before_anything_is_made(project: Project) -> None:
    with pytest.raises(DetoxError, match="there is no ServingRuntime llm-detox-vllm"):
        project.deploy(OLD, serving="vllm")
    assert project.live() is None


def test_another_runtime_that_is_missing_is_said_in_kserves_words_to_who_may_not_look(project: Project) -> None:
    with pytest.raises(DetoxError, match="InvalidSpec: RuntimeNotRecognized: Waiting for runtime"):
        project.deploy(OLD, serving="vllm", runtime="vllm-cuda-runtime")


def test_a_runtime_of_the_whole_cluster_serves(project: Project) -> None:
    own = project.here.api.get("ServingRuntime", project.namespace, "llm-detox-caikit-tgis")
    assert own is not None
    name = f"everybodys-{project.namespace}"
    project.here.api.create({"apiVersion": own["apiVersion"], "kind": "ClusterServingRuntime", "spec": own["spec"],
                             "metadata": {"name": name}})
    try:
        project.bind_cluster_runtimes()
        project.deploy(OLD, runtime=name)
        assert project.here.pods()[0]["metadata"]["annotations"][SPEC]
    finally:
        project.here.api.delete("ClusterServingRuntime", "", name)


def test_a_name_that_no_host_name_takes_is_refused_first(project: Project, tmp_path: Path) -> None:
    recipe = project.recipe()
    long = recipe.deploy.model_copy(update={"name": "m" * 50, "namespace": "n" * 20})
    with pytest.raises(UsageError, match="81 characters, of 63"):
        deploy_kserve(long, recipe.cluster, address=address(OLD), output=tmp_path / "out", cluster=None)


def test_a_dry_run_is_checked_by_the_server_and_keeps_nothing(project: Project) -> None:
    recipe = project.recipe(rollout="canary")
    text = dry_run(recipe.deploy, recipe.cluster, address=address(NEW), cluster=project.cluster)
    assert text.count("kind: InferenceService") == 2
    assert address(NEW) in text
    assert project.live() is None


@pytest.mark.parametrize("arguments", [(), ("--server-side",)])
def test_what_kubectl_applied_by_hand_goes_on_with_the_deploy_step(
    project: Project, arguments: tuple[str, ...]
) -> None:
    objects = moved(overlay("overlays/kserve/model"), project.namespace)
    project.server.kubectl("apply", *arguments, "-f", "-", text=yaml.safe_dump_all(objects))
    assert project.deploy(NEW).rollout == "replaced"
    assert asked_versions(project) == [{NEW}]
