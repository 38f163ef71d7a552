"""The workflow and the hooks call what `.ci/run` and the Makefile hold, so that no command line stands twice."""

from __future__ import annotations

import os
import re

import yaml

from tests.docs.commands import ROOT
from tests.docs.parsing import expanded

RUN = ROOT / ".ci/run"


def test_the_workflow_runs_what_every_change_must_pass_and_nothing_else() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert os.access(RUN, os.X_OK)
    assert workflow["permissions"] == {"contents": "read"}


def test_hooks_are_local_and_call_targets_that_every_change_must_pass() -> None:
    targets = re.findall(r"^(make .+)$", RUN.read_text("utf-8"), re.MULTILINE)
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert [one["repo"] for one in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert {hook["entry"] for hook in hooks} <= set(targets)
    for hook in hooks:
        assert expanded(hook["entry"].split()[1:])
