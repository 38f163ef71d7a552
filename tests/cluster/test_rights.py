"""The shipped Role is enough (all other tests of this folder run under it), and no right in it is too many."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from llm_detox import storage
from llm_detox.cluster.train_job import RUN_VARIABLE, remove_running, train_on_nodes
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from tests.cluster.conftest import Project
from tests.cluster.controller import by_version, over_quota, without_gpu
from tests.conftest import REPOSITORY
from tests.manifests.kustomize import load, overlay, pick

OLD, NEW = "1" * 64, "2" * 64
ROLE = pick(overlay("overlays/kserve"), "Role")["rules"]
TRAINING = load(REPOSITORY / "manifests/components/trainjob-rights/role.yaml")["rules"]
RIGHTS = [(rule["apiGroups"][0], resource, verb)
          for rule in ROLE for resource in rule["resources"] for verb in rule["verbs"]]


def life(project: Project) -> None:
    """A deployment, a canary, and the two failures that only pods and events explain."""
    project.deploy(OLD)
    project.deploy(NEW, rollout="canary")
    project.controller.play("llm-detox", by_version(v3=without_gpu, v4=over_quota))
    for version, told in (("3" * 64, "Insufficient nvidia"), ("4" * 64, "exceeded quota")):
        with pytest.raises(DetoxError, match=told):
            project.deploy(version)


def rules_without(group: str, resource: str, verb: str) -> list[dict[str, Any]]:
    return [{"apiGroups": [one], "resources": [other], "verbs": [right]}
            for one, other, right in RIGHTS if (one, other, right) != (group, resource, verb)]


def test_the_shipped_role_is_enough(project: Project) -> None:
    life(project)


@pytest.mark.parametrize("right", RIGHTS, ids=lambda right: f"{right[2]} {right[1]}")
def test_each_right_is_needed_and_its_absence_is_said(project: Project, right: tuple[str, str, str]) -> None:
    project.bind(rules_without(*right))
    with pytest.raises(DetoxError, match=f"no right to {right[2]} {right[1]}") as caught:
        life(project)
    assert "llm-detox-deploy" in str(caught.value.remedy)


def training(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job fails, its step is tried again and makes it anew, and the run that is killed then leaves it running."""
    monkeypatch.setattr(storage, "publish", lambda folder, url: SimpleNamespace(address=f"{url}/{OLD}"))
    monkeypatch.setenv(RUN_VARIABLE, "run-1")
    texts = project.folder / "texts.jsonl"
    texts.write_text("{}\n", "utf-8")
    plain = project.recipe().model_dump(mode="json")
    plain["training"]["job"]["nodes"] = 2
    recipe = Recipe.model_validate(plain)

    def train_until_killed() -> None:
        with pytest.MonkeyPatch.context() as waiting, suppress(Killed):
            waiting.setattr("llm_detox.cluster.train_job._wait", killed)
            train_on_nodes(recipe, "sft", {"input": texts}, output=project.folder / "out", cluster=project.cluster,
                           poll_seconds=0.05)

    train_until_killed()
    (made,) = project.admin.train_jobs("")
    name = made.name
    project.controller.custom.patch_namespaced_custom_object_status(
        "trainer.kubeflow.org", "v1alpha1", project.namespace, "trainjobs", name, {"status": {"conditions": [{
            "type": "Failed", "status": "True", "reason": "JobsFailed", "message": "node 1 ran out of memory",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    train_until_killed()
    (again,) = project.admin.train_jobs("")
    assert (again.name, again.failed, again.complete) == (name, False, False)
    assert remove_running(project.cluster, "run-2") == []
    assert remove_running(project.cluster, "run-1") == [name]
    assert project.admin.train_jobs("") == []


class Killed(Exception):
    """The step's pod is gone."""


def killed(*_: Any) -> None:
    raise Killed


def test_the_shipped_role_is_enough_to_train_on_nodes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.bind_training()
    training(project, monkeypatch)


@pytest.mark.parametrize("verb", TRAINING[0]["verbs"])
def test_each_right_to_train_on_nodes_is_needed(project: Project, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(TRAINING) == 1
    project.bind_training([{**TRAINING[0], "verbs": [one for one in TRAINING[0]["verbs"] if one != verb]}])
    with pytest.raises(DetoxError, match=f"no right to {verb} trainjobs") as caught:
        training(project, monkeypatch)
    assert "llm-detox-train" in str(caught.value.remedy)
