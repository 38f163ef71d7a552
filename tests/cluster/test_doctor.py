"""The doctor against a real API server: what is there is found, what is missing is named with what helps."""

from __future__ import annotations

from typing import Any

import pytest

from llm_detox.cluster.api import Cluster
from llm_detox.doctor.cluster import RIGHTS, amount, examine_cluster
from llm_detox.doctor.finding import Finding
from llm_detox.recipe.cluster import ConnectionSection
from tests.cluster.conftest import Project
from tests.cluster.place import CONNECTION_SECRET
from tests.manifests.kustomize import overlay, pick


def look(project: Project, cluster: Cluster | None = None, **settings: Any) -> dict[str, Finding]:
    recipe = project.recipe(**settings)
    findings = examine_cluster(recipe.deploy, recipe.cluster, cluster or project.admin)
    return {one.check: one for one in findings}


def test_the_rights_that_the_doctor_asks_for_are_those_of_the_shipped_role() -> None:
    rules = pick(overlay("overlays/kserve"), "Role")["rules"]
    assert set(RIGHTS) == {(rule["apiGroups"][0], resource, verb)
                           for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def test_a_prepared_project_is_found_ready_but_for_what_is_not_there(project: Project) -> None:
    project.core.delete_namespaced_secret(CONNECTION_SECRET, project.namespace)
    found = look(project, gpus=0)
    assert {name for name, one in found.items() if one.state == "ok"} == {
        "cluster", "kinds", "rights", "runtime", "serviceaccounts", "pod security", "images", "GPUs", "quota"}
    assert found["secrets"].state == "missing"
    assert found["secrets"].remedy == "kubectl apply -k manifests/connection"


def test_the_pipelines_account_has_all_rights_and_says_what_it_may_not_see(project: Project) -> None:
    found = look(project, project.cluster)
    assert found["rights"].state == "ok"
    assert {name for name, one in found.items() if one.state == "unknown"} == {
        "KServe", "serviceaccounts", "secrets", "pod security", "GPUs", "quota"}


def test_a_missing_right_is_named(project: Project) -> None:
    project.bind([{"apiGroups": ["serving.kserve.io"], "resources": ["inferenceservices"], "verbs": ["get", "create"]}])
    found = look(project, project.cluster)["rights"]
    assert found.state == "missing"
    assert "patch inferenceservices" in found.text
    assert "list events" in found.text


def test_gpus_are_counted_on_the_nodes(project: Project) -> None:
    assert "no node has 1 nvidia.com/gpu that is ready" in look(project)["GPUs"].text
    core = project.core
    core.create_node({"metadata": {"name": f"gpu-{project.namespace}"}})
    core.patch_node(f"gpu-{project.namespace}", {"spec": {"taints": []}})  # a kubelet says that it is ready
    core.patch_node_status(f"gpu-{project.namespace}", {"status": {"allocatable": {"nvidia.com/gpu": "2"}}})
    try:
        assert look(project)["GPUs"].state == "ok"
        assert "the most is 2" in look(project, gpus=4)["GPUs"].text
    finally:
        core.delete_node(f"gpu-{project.namespace}")


def test_a_quota_without_room_is_said_before_a_pod_waits_for_it(project: Project) -> None:
    core = project.core
    core.create_namespaced_resource_quota(project.namespace, {
        "metadata": {"name": "gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "1"}}})
    core.patch_namespaced_resource_quota_status("gpus", project.namespace, {
        "status": {"hard": {"requests.nvidia.com/gpu": "1"}, "used": {"requests.nvidia.com/gpu": "1"}}})
    found = look(project)["quota"]
    assert found.state == "missing"
    assert found.text == "gpus: requests.nvidia.com/gpu 1 of 1 used, 1 x 1 wanted"


@pytest.mark.parametrize(("text", "number"), [("1500m", 1.5), ("8Gi", 8 * 2**30), ("2", 2), ("1k", 1000), ("3M", 3e6)])
def test_quantities_are_read_as_kubernetes_means_them(text: str, number: float) -> None:
    assert float(amount(text)) == number


def test_a_cluster_that_does_not_answer_is_one_finding(project: Project) -> None:
    from kubernetes import client

    settings = client.Configuration()
    settings.host, settings.retries = "https://127.0.0.1:9", 0
    away = Cluster(client.ApiClient(settings), "x", away_seconds=0)
    findings = list(examine_cluster(project.recipe().deploy, ConnectionSection(), away))
    assert [one.state for one in findings] == ["missing"]
    assert "does not answer" in findings[0].text


def trainer(project: Project) -> Finding:
    (found,) = [one for one in examine_cluster(project.recipe().deploy, ConnectionSection(), project.cluster,
                                               training_nodes=2) if one.check == "trainer"]
    return found


def test_training_on_several_nodes_needs_rights_of_its_own(project: Project) -> None:
    missing = trainer(project)
    assert "may not get trainjobs, list trainjobs, create trainjobs, delete trainjobs" in missing.text
    assert "trainjob-rights" in str(missing.remedy)
    project.bind_training()
    assert trainer(project).state == "ok"
    assert "trainer" not in look(project, project.cluster), "one node needs none of it"
