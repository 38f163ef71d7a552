"""The job of TrustyAI's operator: valid, and wired to the task that the package carries."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm_detox.evaluation import harness
from tests.manifests import strict
from tests.manifests.kustomize import MANIFESTS, Object, build, load, pick
from tests.manifests.objects import needs_crds

SAMPLE = MANIFESTS / "samples/lmeval"


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return build(SAMPLE)


@needs_crds
def test_the_sample_passes_strict_schemas(objects: list[Object]) -> None:
    for thing in objects:
        strict.check(thing)
    wrong = load(SAMPLE / "job.yaml")
    wrong["spec"]["taskLists"] = wrong["spec"].pop("taskList")
    with pytest.raises(strict.Refused, match="taskList"):
        strict.check(wrong)


def test_the_job_finds_task_packages_and_inputs_where_they_are_mounted(objects: list[Object]) -> None:
    spec, files = pick(objects, "LMEvalJob")["spec"], pick(objects, "ConfigMap")
    task = files["data"]["toxicity.yaml"]
    assert spec["taskList"]["taskNames"] == re.findall(r"^task: (\S+)$", task, re.MULTILINE)
    [folder] = harness.__path__
    assert files["data"] == {name: Path(folder, name).read_text("utf-8") for name in ("toxicity.py", "toxicity.yaml")}
    sources = {one["name"]: one for one in spec["pod"]["volumes"]}
    assert sources["task"]["configMap"]["name"] == files["metadata"]["name"]
    assert sources["inputs"]["persistentVolumeClaim"]["claimName"] == (
        pick(objects, "PersistentVolumeClaim")["metadata"]["name"])
    mounts = spec["pod"]["container"]["volumeMounts"]
    assert {one["subPath"] for one in mounts if one["name"] == "task"} == set(files["data"])
    assert all(one["mountPath"] == f"/opt/app-root/src/my_tasks/{one['subPath']}" for one in mounts
               if one["name"] == "task"), "the operator's --include_path"
    [inputs] = [one["mountPath"] for one in mounts if one["name"] == "inputs"]
    given = {one["name"]: one["value"] for one in spec["pod"]["container"]["env"]}
    places = [given["LLM_DETOX_RECIPE"], given["LLM_DETOX_PROMPTS"], given["PYTHONPATH"].split(":")[-1],
              *(one["value"] for one in spec["modelArgs"] if one["name"] == "pretrained")]
    assert all(place.startswith(f"{inputs}/") for place in places)
