"""The compiled pipelines: current, whole, and of nothing that a 2.16 backend does not know."""

from __future__ import annotations

import ast
import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.images import WORKBENCH
from components.readme import component_folders, readme
from llm_detox.runs.artifacts import ARMS
from pipelines.compile import COMPILED, PIPELINES, compile_all
from tests.conftest import REPOSITORY
from tests.pipeline import specs
from tests.pipeline.specs import documents, executors, steps, unknown_fields

FILES = [COMPILED / f"{name}.yaml" for name in PIPELINES]
every_pipeline = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def within(spec: dict[str, Any], *path: str) -> dict[str, Any]:
    """The tasks of a group: the path from the root by the groups' names."""
    found = spec["root"]["dag"]["tasks"]
    for name in path:
        [task] = [one for one in found.values() if one["taskInfo"]["name"] == name]
        found = spec["components"][task["componentRef"]["name"]]["dag"]["tasks"]
    return found


def test_the_four_pipelines_are_there_and_nothing_else() -> None:
    assert set(PIPELINES) == {"detox-and-serve", "evaluate-only", "train-judge", "promote"}
    assert {path.name for path in COMPILED.glob("*.yaml")} == {path.name for path in FILES}


def test_the_committed_yaml_is_what_the_code_compiles_to(tmp_path: Path) -> None:
    for path in compile_all(tmp_path):
        assert path.read_text("utf-8") == (COMPILED / path.name).read_text("utf-8"), "python -m pipelines compile"


@every_pipeline
def test_no_field_is_unknown_to_a_2_16_backend(path: Path) -> None:
    assert unknown_fields(path) == []


@pytest.mark.parametrize(("document", "place", "field"), [
    (0, ("root", "dag", "tasks", "outcome"), "taskTimeout"),
    (0, ("deploymentSpec", "executors", "exec-data", "container"), "securityContext"),
    (1, ("platforms", "kubernetes", "deploymentSpec", "executors", "exec-data"), "tolerationes"),
    (1, ("platforms", "kubernetes", "pipelineConfig"), "dataSource"),
])
def test_a_field_that_is_newer_is_found(
    document: int, place: tuple[str, ...], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = copy.deepcopy(documents())
    node = both[document]
    for key in place:
        node = node.setdefault(key, {})
    node[field] = {}
    monkeypatch.setattr(specs, "documents", lambda path: both)
    assert unknown_fields(COMPILED / "detox-and-serve.yaml") == ["." + ".".join((*place, field))]


@every_pipeline
def test_every_step_runs_our_image_and_installs_nothing(path: Path) -> None:
    for name, (container, _) in executors(path).items():
        assert container["image"] == WORKBENCH, name
        assert "pip install" not in " ".join(map(str, container["command"])), name


def test_one_digest_replaces_the_image_of_every_step(tmp_path: Path) -> None:
    digest = f"registry.example/workbench-python@sha256:{'0' * 64}"
    code = f"from pathlib import Path; from pipelines.compile import compile_all; compile_all(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=120,
                   env={**os.environ, "LLM_DETOX_WORKBENCH_IMAGE": digest, "PYTHONPATH": str(REPOSITORY)})
    for path in tmp_path.glob("*.yaml"):
        assert set(re.findall(r"image: *(\S+)", path.read_text("utf-8"))) == {digest}


@every_pipeline
def test_the_outcome_is_written_however_the_run_ends(path: Path) -> None:
    spec, _ = documents(path)
    root = spec["root"]["dag"]["tasks"]
    [handler] = [name for name in root if name != "outcome"]
    assert root["outcome"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    inputs = root["outcome"]["inputs"]["parameters"]
    assert inputs["status"]["taskFinalStatus"]["producerTask"] == handler
    assert inputs["run"]["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"
    assert "resolve-recipe" in within(spec, "steps"), "a wrong recipe, too, ends with an outcome"


def test_what_deploys_and_what_cleans_up_know_the_same_run() -> None:
    spec, _ = documents()
    deploy = within(spec, "steps", "gate")["deploy"]
    assert deploy["inputs"]["parameters"]["run"]["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"


def test_publish_deploy_and_smoke_stand_behind_the_gate() -> None:
    spec, _ = documents()
    assert set(within(spec, "steps", "gate")) == {"convert", "publish", "deploy", "smoke"}
    [gate] = [one for one in within(spec, "steps").values() if one["taskInfo"]["name"] == "gate"]
    assert "'pass'" in gate["triggerPolicy"]["condition"]


def test_the_fine_tuned_arms_run_the_same_component_on_their_own_text() -> None:
    found = within(documents()[0], "steps")
    tuned = {step["taskInfo"]["name"]: step["inputs"]["parameters"] for step in found.values()
             if step["componentRef"]["name"].startswith("comp-sft")}
    assert {name: values["texts_file"]["runtimeValue"]["constant"] for name, values in tuned.items()} == {
        "sft-raw": "texts.jsonl", "sft-filtered": "kept.jsonl", "sft-detoxified": "records.jsonl"}


def test_detoxify_and_the_sampling_of_every_arm_run_in_as_many_shards_as_the_run_is_given() -> None:
    spec, _ = documents()
    loops = {task["taskInfo"]["name"]: task for task in within(spec, "steps").values() if "parameterIterator" in task}
    assert set(loops) == {"detoxify-shards", *(f"sample-{arm}-shards" for arm in ARMS)}
    for name, loop in loops.items():
        [source] = [one["taskOutputParameter"] for one in loop["inputs"]["parameters"].values()
                    if one.get("taskOutputParameter", {}).get("outputParameterKey") == "parts"]
        assert source["producerTask"] == "resolve-recipe", name
        [task] = within(spec, "steps", name).values()
        assert "componentInputParameter" in task["inputs"]["parameters"]["shard"], name
    joined = [task for step, task in steps(spec) if step in ("join", "measure")]
    assert len(joined) == 1 + len(ARMS)


def test_about_a_dozen_parameters_of_which_only_what_a_run_cannot_do_without_is_required() -> None:
    required = {}
    for name, pipeline in PIPELINES.items():
        parameters = pipeline.pipeline_spec.root.input_definitions.parameters
        assert len(parameters) <= 12, name
        required[name] = {key for key, one in parameters.items() if not one.is_optional}
        assert all(one.description for one in parameters.values()), name
    assert required == {"detox-and-serve": {"recipe"}, "evaluate-only": {"recipe"}, "promote": {"recipe", "address"},
                        "train-judge": {"recipe", "records", "publish_url"}}


@pytest.mark.parametrize("path", [folder / "component.py" for folder in component_folders()], ids=str)
def test_component_modules_import_nothing_heavy_at_the_top(path: Path) -> None:
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= {"kfp", "components.images"}


@pytest.mark.parametrize("folder", component_folders(), ids=lambda folder: folder.name)
def test_every_component_describes_itself_as_it_is(folder: Path) -> None:
    assert (folder / "README.md").read_text("utf-8") == readme(folder), "python -m components.readme"
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text("utf-8"))
    for path in FILES:
        for step, task in steps(documents(path)[0]):
            if step == folder.name.replace("_", "-"):
                assert task["cachingOptions"].get("enableCache", False) == metadata["cached"]
