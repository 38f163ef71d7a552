"""The shipped Role is enough (all other tests of this folder run under it), and no right in it is too many."""

from __future__ import annotations

from typing import Any

import pytest

from llm_detox.errors import DetoxError
from tests.cluster.conftest import Project
from tests.cluster.controller import by_version, over_quota, without_gpu
from tests.manifests.kustomize import overlay, pick

OLD, NEW = "1" * 64, "2" * 64
ROLE = pick(overlay("overlays/kserve"), "Role")["rules"]
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
