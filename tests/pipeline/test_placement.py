"""Where the compiled pipeline puts its steps: GPUs, secrets, shared memory, retries, caching, certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_detox.errors import UsageError
from llm_detox.recipe.cluster import ConnectionSection
from pipelines import compile as compiling
from pipelines.compile import COMPILED, PIPELINES, compile_all
from pipelines.placement import DEFAULT, Placement
from tests.pipeline.specs import documents, executors, step_of, steps

GPU_STEPS = {"detoxify", "sft", "dpo", "sample", "measure"}
FILES = [COMPILED / f"{name}.yaml" for name in PIPELINES]


def with_placement(folder: Path, **changes: Any) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    return executors(compiling.compile_one("detox-and-serve", folder, Placement.model_validate(changes)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_steps_that_run_models_get_a_gpu_its_toleration_and_shared_memory_and_no_other_step_does(path: Path) -> None:
    for name, (container, placed) in executors(path).items():
        on_gpu = step_of(name) in GPU_STEPS
        accelerator = container["resources"].get("accelerator", {})
        assert accelerator.get("resourceType") == ("nvidia.com/gpu" if on_gpu else None), name
        assert accelerator.get("resourceCount") == ("1" if on_gpu else None), name
        assert placed.get("tolerations", []) == (
            [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if on_gpu else []), name
        shm = [one for one in placed.get("emptyDirMounts", []) if one["mountPath"] == "/dev/shm"]  # noqa: S108
        assert bool(shm) == on_gpu, name
        assert all(one["medium"] == "Memory" for one in shm), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_step_has_requests_and_limits_and_leaves_its_last_words(path: Path) -> None:
    for name, (container, _) in executors(path).items():
        for kind in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
            assert container["resources"].get(kind), f"{name}: {kind}"
        assert {"name": "LLM_DETOX_ERROR_FILE", "value": "/dev/termination-log"} in container["env"], name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_secrets_are_named_never_written_and_come_only_where_s3_is_used(path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_S3_ENDPOINT", "AWS_DEFAULT_REGION"}
    without = {"resolve-recipe", "join", "report", "smoke", "outcome"}
    for name, (container, placed) in executors(path).items():
        secrets = {one["secretName"]: one for one in placed.get("secretAsEnv", [])}
        assert ("llm-detox-s3" in secrets) == (step_of(name) not in without), name
        if "llm-detox-s3" in secrets:
            assert {one["secretKey"] for one in secrets["llm-detox-s3"]["keyToEnv"]} == keys, name
        if "llm-detox-hub" in secrets:
            assert secrets["llm-detox-hub"]["optional"], "open models need no token"
        assert not any("AWS" in one["name"] or "TOKEN" in one["name"] for one in container["env"]), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_changes_the_world_is_not_cached_and_all_else_is(path: Path) -> None:
    for step, task in steps(documents(path)[0]):
        expected = step not in {"publish", "deploy", "smoke", "outcome"}
        assert task["cachingOptions"].get("enableCache", False) is expected, step


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_steps_are_tried_again_with_a_pause_except_the_deployment_that_rolls_back_itself(path: Path) -> None:
    wanted = Placement.load().steps
    for step, task in steps(documents(path)[0]):
        retries = {key: value for key, value in task.get("retryPolicy", {}).items() if key != "backoffMaxDuration"}
        assert retries == ({"maxRetryCount": wanted[step].retries, "backoffDuration": "30s", "backoffFactor": 2.0}
                           if wanted[step].retries else {}), step
    assert wanted["publish"].retries == 3
    assert not wanted["deploy"].retries


def test_an_own_authority_reaches_every_step(tmp_path: Path) -> None:
    for name, (container, placed) in with_placement(tmp_path, ca_config_map="llm-detox-trusted-ca").items():
        variables = {one["name"]: one["value"] for one in container.get("env", [])}
        assert variables["AWS_CA_BUNDLE"] == "/etc/llm-detox/ca/ca-bundle.crt", name
        assert placed["configMapAsVolume"][0]["configMapName"] == "llm-detox-trusted-ca"


def test_gpus_of_another_make_are_a_matter_of_the_file(tmp_path: Path) -> None:
    container, placed = with_placement(tmp_path, gpu={
        "resource": "amd.com/gpu", "node_selector": {"gpu": "mi300"},
        "tolerations": [{"key": "amd", "operator": "Equal", "value": "yes", "effect": "NoExecute"}]})["exec-dpo"]
    assert container["resources"]["accelerator"]["resourceType"] == "amd.com/gpu"
    assert placed["nodeSelector"]["labels"] == {"gpu": "mi300"}
    assert placed["tolerations"][0]["value"] == "yes"


def test_training_steps_tell_their_nodes_the_image_and_the_run() -> None:
    for name, (container, placed) in executors().items():
        trains = step_of(name) in ("sft", "dpo")
        variables = {one["name"]: one["value"] for one in container["env"]}
        assert variables.get("LLM_DETOX_WORKBENCH_IMAGE") == (container["image"] if trains else None), name
        assert placed.get("fieldPathAsEnv", []) == ([{
            "name": "LLM_DETOX_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}] if trains else []), name


def test_every_step_of_every_pipeline_has_a_place_and_none_is_left_over() -> None:
    assert {step_of(name) for path in FILES for name in executors(path)} == set(Placement.load().steps)


@pytest.mark.parametrize(("text", "told"), [
    ("s3_secret: x\ns3_keys: []\nsteps: {data: {cpu: '2', memory: 4Gi, gpu: 1}}", "steps.data.gpu"),
    ("s3_secret: UPPER\ns3_keys: []\nsteps: {}", "s3_secret"),
    ("steps: {sfr: {cpu: '2'}}", "there is no step 'sfr'"),
    ("steps: [", "not valid YAML"),
])
def test_a_wrong_placement_is_refused_with_the_key(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "placement.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=told):
        Placement.load(path)


def test_a_step_without_a_place_is_named(tmp_path: Path) -> None:
    steps = {name: step for name, step in Placement().steps.items() if name != "dpo"}
    with pytest.raises(UsageError, match=r"steps\.dpo"):
        compile_all(tmp_path, Placement().model_copy(update={"steps": steps}))


def test_a_placement_changes_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "placement.yaml"
    path.write_text("steps: {sft: {memory: 64Gi}, settle: {cpu: '1'}}", "utf-8")  # settle: the name of before
    changed, plain = Placement.load(path).steps, Placement().steps
    assert changed["sft"] == plain["sft"].model_copy(update={"memory": "64Gi"})
    assert changed["resolve-recipe"].cpu == "1"
    assert changed["dpo"] == plain["dpo"]


def test_the_secrets_are_those_of_the_recipe_unless_the_placement_names_others() -> None:
    connection = ConnectionSection(s3_secret="own-s3", ca_config_map="own-ca")
    assert Placement().connected(connection).s3_secret == "own-s3"
    placement = Placement(s3_secret="administrators-s3").connected(connection)
    assert (placement.s3_secret, placement.ca_config_map) == ("administrators-s3", "own-ca")


def test_the_file_in_the_repository_sets_nothing_that_the_schema_says() -> None:
    assert Placement.load(DEFAULT) == Placement()
