"""What the last step of a run sees and clears away in a cluster, with the pipeline account's own token."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from llm_detox.cluster.api import Cluster
from llm_detox.serve.kserve.deploy import remove_leftover
from llm_detox.serve.kserve.render import RUN
from llm_detox.serve.outcome import Ending, Outcome, Served, write_outcome
from tests.cluster.conftest import Object, Project, address
from tests.serving.running import wait_for

OLD, NEW = "1" * 64, "2" * 64


class Killed(BaseException):
    """The pod is gone."""


def killed(*_: Any) -> None:
    raise Killed


def leave_canary(project: Project, run: str) -> None:
    """A run that is killed while its canary is asked: nobody gets to remove it."""
    from llm_detox.serve.kserve.deploy import deploy_kserve
    from tests.cluster.conftest import QUICK

    with pytest.MonkeyPatch.context() as gone, pytest.raises(Killed):
        gone.setattr(project.cluster, "delete", lambda *_, **__: None)
        recipe = project.recipe(rollout="canary")
        deploy_kserve(recipe.deploy, recipe.cluster, address=address(NEW), output=project.folder / f"deploy-{run}",
                      cluster=project.cluster, patience=QUICK, probe=killed, run=run)
    assert project.live("llm-detox-canary") is not None


def ended(project: Project, run: str, state: str, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    monkeypatch.setattr(Cluster, "connect", classmethod(lambda *_, **__: project.cluster))
    return write_outcome(Ending(run, state, "exit-handler-1"), project.recipe().model_dump_json(),
                         output=project.folder / f"outcome-{run}")


def failed_pod(project: Project, run: str, name: str, message: str) -> None:
    core = project.core
    body: Object = {"metadata": {"name": f"demo-{name}", "labels": {"pipeline/runid": run}, "annotations": {
        "workflows.argoproj.io/node-name": f"demo.root.steps.{name}.executor(0)"}},
        "spec": {"containers": [{"name": "main", "image": "none"}]}}
    core.create_namespaced_pod(project.namespace, body)
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}
    core.patch_namespaced_pod_status(f"demo-{name}", project.namespace, {"status": {
        "phase": "Failed", "containerStatuses": [{"name": "main", "ready": False, "restartCount": 0, "image": "none",
                                                  "imageID": "none", "state": ended}]}})


def test_the_canary_of_a_killed_run_is_removed_and_what_serves_is_told(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.deploy(OLD)
    leave_canary(project, "run-1")
    told = ended(project, "run-1", "FAILED", monkeypatch)
    assert told.as_json()["removed"] == "llm-detox-canary"
    wait_for(lambda: project.live("llm-detox-canary") is None)
    assert told.served == Served(address(OLD), True), "the old version was not touched"


def test_the_canary_of_another_run_is_left_alone(project: Project) -> None:
    project.deploy(OLD)
    leave_canary(project, "run-1")
    settings = project.recipe().deploy
    assert remove_leftover(settings, "run-2", project.cluster) is None
    assert remove_leftover(settings, "", project.cluster) is None
    assert project.live("llm-detox-canary") is not None


def test_a_canary_that_another_run_takes_over_meanwhile_is_left_alone(project: Project) -> None:
    project.deploy(OLD)
    leave_canary(project, "run-1")
    read = project.cluster.service

    def taken_over(name: str) -> Object | None:
        found = read(name)
        project.admin.patch(name, {"metadata": {"annotations": {RUN: "run-2"}}})
        return found

    with pytest.MonkeyPatch.context() as between:
        between.setattr(project.cluster, "service", taken_over)
        assert remove_leftover(project.recipe().deploy, "run-1", project.cluster) is None
    assert project.live("llm-detox-canary") is not None


def test_the_step_that_failed_is_told_in_its_own_words(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.deploy(OLD)
    words = json.dumps({"step": "sft", "message": "out of memory", "place": None, "remedy": "a smaller batch"})
    failed_pod(project, "run-1", "sft", words)
    failed_pod(project, "run-1", "dpo", "")
    failed_pod(project, "run-2", "data", "not of this run")
    told = ended(project, "run-1", "FAILED", monkeypatch)
    assert sorted(map(asdict, told.steps.failures if told.steps else ()), key=lambda one: one["step"]) == [
        {"step": "dpo", "message": "Error, exit code 1"}, json.loads(words)]
    page = "\n".join(told.lines())
    assert "failed: sft: out of memory" in page
    assert "serving now: s3://llm-detox/models/111" in page
