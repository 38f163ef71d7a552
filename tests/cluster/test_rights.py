"""The shipped Role is enough (all other tests of this folder run under it), and no right in it is too many."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from llm_detox import storage
from llm_detox.cluster.api import Cluster
from llm_detox.cluster.train_job import RUN_VARIABLE, remove_running, train_on_nodes
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from tests.cluster.conftest import Project
from tests.conftest import REPOSITORY
from tests.manifests.kustomize import load, overlay, pick
from tests.standins.cluster.scripted import without_gpu

OLD, NEW = "1" * 64, "2" * 64
ROLE = pick(overlay("overlays/kserve"), "Role")["rules"]
TRAINING = load(REPOSITORY / "manifests/components/trainjob-rights/role.yaml")["rules"]
Right = tuple[str, str, str]
RIGHTS, TRAINING_RIGHTS = ([(rule["apiGroups"][0], resource, verb)
                            for rule in rules for resource in rule["resources"] for verb in rule["verbs"]]
                           for rules in (ROLE, TRAINING))
SAID = "said"  # the property with the message, which benchmarks.campaigns.least_rights shows
LOOK_AT_RUNTIMES = ("serving.kserve.io", "servingruntimes", "get")


def life(project: Project) -> None:
    """A deployment, a canary, and the two failures that only pods and events explain."""
    project.deploy(OLD)
    project.deploy(NEW, rollout="canary")
    project.play(without_gpu(), "3")
    with pytest.raises(DetoxError, match="Insufficient nvidia"):
        project.deploy("3" * 64)
    project.fill_quota()
    with pytest.raises(DetoxError, match="exceeded quota"):
        project.deploy("4" * 64)


def without(rights: list[Right], missing: Right) -> list[dict[str, Any]]:
    """The rules of a Role with all of the rights but one."""
    return [{"apiGroups": [group], "resources": [resource], "verbs": [verb]}
            for group, resource, verb in rights if (group, resource, verb) != missing]


def test_the_shipped_role_is_enough(project: Project) -> None:
    life(project)


def test_without_the_right_to_see_runtimes_kserve_says_what_is_wrong(project: Project) -> None:
    wrong = {"serving": "vllm", "runtime": "llm-detox-caikit-tgis"}
    with pytest.raises(DetoxError, match="does not take the format vLLM"):
        project.deploy(OLD, **wrong)
    assert project.live() is None
    project.bind(without(RIGHTS, LOOK_AT_RUNTIMES))
    with pytest.raises(DetoxError, match="InvalidSpec: NoSupportingRuntime"):
        project.deploy(OLD, **wrong)


@pytest.mark.parametrize("right", [one for one in RIGHTS if one != LOOK_AT_RUNTIMES],
                         ids=lambda right: f"{right[2]} {right[1]}")
def test_each_right_is_needed_and_its_absence_is_said(
    project: Project, right: Right, record_property: Callable[[str, object], None]
) -> None:
    project.bind(without(RIGHTS, right))
    with pytest.raises(DetoxError, match="no right to") as caught:
        life(project)
    record_property(SAID, caught.value.message)
    assert f'cannot {right[2]} resource "{right[1]}"' in str(caught.value.remedy)
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
            waiting.setattr("llm_detox.cluster.train_job._wait", killed_while_waiting)
            train_on_nodes(recipe, "sft", {"input": texts}, output=project.folder / "out", cluster=project.cluster,
                           poll_seconds=0.05)

    train_until_killed()
    (made,) = project.admin.train_jobs("")
    name = made.name
    failed = {"type": "Failed", "status": "True", "reason": "FailedJobs", "message": "jobset failed",
              "lastTransitionTime": "2026-01-01T00:00:00Z"}
    project.here.api.merge("TrainJob", project.namespace, name, {"status": {"conditions": [failed]}}, sub="status")
    train_until_killed()
    (again,) = project.admin.train_jobs("")
    assert (again.name, again.failed, again.complete) == (name, False, False)
    assert remove_running(project.cluster, "run-2") == []
    assert remove_running(project.cluster, "run-1") == [name]
    assert project.admin.train_jobs("") == []


class Killed(Exception):
    """The step's pod is gone."""


def killed_while_waiting(cluster: Cluster, name: str, *_: Any) -> None:
    cluster.pods_of_train_job(name)
    raise Killed


def test_the_shipped_role_is_enough_to_train_on_nodes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.bind_training()
    training(project, monkeypatch)


@pytest.mark.parametrize("right", TRAINING_RIGHTS, ids=lambda right: f"{right[2]} {right[1]}")
def test_each_right_to_train_on_nodes_is_needed(
    project: Project, right: Right, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    project.bind([])  # the same account may list pods to deploy, too
    project.bind_training(without(TRAINING_RIGHTS, right))
    with pytest.raises(DetoxError, match=f"no right to {right[2]} {right[1]}") as caught:
        training(project, monkeypatch)
    record_property(SAID, caught.value.message)
    assert "llm-detox-" in str(caught.value.remedy)
