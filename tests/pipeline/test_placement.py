"""Where the compiled pipeline puts its steps: GPUs, secrets, shared memory, retries, caching, certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_detox.errors import UsageError
from pipelines.compile import COMPILED, PIPELINES, compile_all
from pipelines.placement import DEFAULT, Placement

GPU_STEPS = {"detoxify", "sft", "dpo", "evaluate"}
# Known to the 2.17 SDK only; the backend of OpenShift AI is 2.16.
NEWER_THAN_2_16 = {"resourceTtlOnCompletion", "resourceTtlOnSuccess", "resourceTtlOnFailure", "activeDeadlineSeconds",
                   "dataSource"}


def documents(path: Path = COMPILED / "detox-and-serve.yaml") -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline spec and the platform's executors."""
    spec, platform = yaml.safe_load_all(path.read_text("utf-8"))
    return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def step_of(executor: str) -> str:
    return executor.removeprefix("exec-").rstrip("0123456789").rstrip("-")


def tasks(thing: Any) -> list[tuple[str, dict[str, Any]]]:
    """All tasks of the spec, at any depth."""
    if not isinstance(thing, dict):
        return []
    own = list(thing["tasks"].items()) if "tasks" in thing else []
    return own + [one for value in thing.values() for one in tasks(value)]


def keys(thing: Any) -> set[str]:
    if isinstance(thing, dict):
        return set(thing) | {key for value in thing.values() for key in keys(value)}
    return {key for value in thing for key in keys(value)} if isinstance(thing, list) else set()


def with_placement(folder: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    plain = yaml.safe_load(DEFAULT.read_text("utf-8")) | changes
    compile_all(folder, Placement.model_validate(plain))
    return documents(folder / "detox-and-serve.yaml")


def test_steps_that_run_models_get_a_gpu_its_toleration_and_shared_memory_and_no_other_step_does() -> None:
    spec, platform = documents()
    for name, executor in spec["deploymentSpec"]["executors"].items():
        on_gpu = step_of(name) in GPU_STEPS
        accelerator = executor["container"]["resources"].get("accelerator", {})
        assert accelerator.get("resourceType") == ("nvidia.com/gpu" if on_gpu else None), name
        placed = platform.get(name, {})
        assert [one["key"] for one in placed.get("tolerations", [])] == (["nvidia.com/gpu"] if on_gpu else []), name
        shm = [one for one in placed.get("emptyDirMounts", []) if one["mountPath"] == "/dev/shm"]  # noqa: S108
        assert bool(shm) == on_gpu, name
        assert all(one["medium"] == "Memory" for one in shm), name


def test_every_step_has_requests_and_limits() -> None:
    spec, _ = documents()
    for name, executor in spec["deploymentSpec"]["executors"].items():
        resources = executor["container"]["resources"]
        for kind in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
            assert resources.get(kind), f"{name}: {kind}"


def test_secrets_are_named_never_written_and_come_only_where_s3_is_used() -> None:
    _, platform = documents()
    with_s3 = {step_of(name) for name, one in platform.items()
               if any(secret["secretName"] == "llm-detox-s3" for secret in one.get("secretAsEnv", []))}
    assert with_s3 == {"data", "detoxify", "sft", "dpo", "evaluate", "convert", "publish", "deploy"}
    for executor in platform.values():
        hub = [secret for secret in executor.get("secretAsEnv", []) if secret["secretName"] == "llm-detox-hub"]
        assert all(secret["optional"] for secret in hub), "open models need no token"


def test_what_changes_the_world_is_not_cached_and_all_else_is() -> None:
    spec, _ = documents()
    for name, task in tasks(spec):
        step = step_of(task["componentRef"]["name"].replace("comp-", "exec-"))
        if not step.startswith("condition"):
            expected = step not in {"publish", "deploy", "smoke"}
            assert task["cachingOptions"].get("enableCache", False) is expected, name


def test_steps_are_tried_again_with_a_pause_except_the_deployment_that_rolls_back_itself() -> None:
    spec, _ = documents()
    found = {task["componentRef"]["name"]: task.get("retryPolicy", {}) for _, task in tasks(spec)}
    assert found["comp-publish"]["maxRetryCount"] == 3
    assert found["comp-publish"]["backoffDuration"] == "30s"
    assert not found["comp-deploy"]


def test_the_compiled_yaml_has_no_field_that_a_2_16_backend_does_not_know() -> None:
    for path in COMPILED.glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text("utf-8")):
            assert not keys(document) & NEWER_THAN_2_16


def test_an_own_authority_reaches_every_step(tmp_path: Path) -> None:
    spec, platform = with_placement(tmp_path, ca_config_map="llm-detox-trusted-ca")
    for name, executor in spec["deploymentSpec"]["executors"].items():
        variables = {one["name"]: one["value"] for one in executor["container"].get("env", [])}
        assert variables["AWS_CA_BUNDLE"] == "/etc/llm-detox/ca/ca-bundle.crt", name
        assert platform[name]["configMapAsVolume"][0]["configMapName"] == "llm-detox-trusted-ca"


def test_gpus_of_another_make_are_a_matter_of_the_file(tmp_path: Path) -> None:
    spec, platform = with_placement(tmp_path, gpu={
        "resource": "amd.com/gpu", "node_selector": {"gpu": "mi300"},
        "tolerations": [{"key": "amd", "operator": "Equal", "value": "yes", "effect": "NoExecute"}]})
    accelerator = spec["deploymentSpec"]["executors"]["exec-dpo"]["container"]["resources"]["accelerator"]
    assert accelerator["resourceType"] == "amd.com/gpu"
    assert platform["exec-dpo"]["nodeSelector"]["labels"] == {"gpu": "mi300"}
    assert platform["exec-dpo"]["tolerations"][0]["value"] == "yes"


def test_every_step_of_every_pipeline_has_a_place_and_none_is_left_over() -> None:
    used = set()
    for name in PIPELINES:
        spec, _ = documents(COMPILED / f"{name}.yaml")
        used |= {step_of(executor) for executor in spec["deploymentSpec"]["executors"]}
    assert used == set(Placement.load().steps)


@pytest.mark.parametrize(("text", "told"), [
    ("s3_secret: x\ns3_keys: []\nsteps: {data: {cpu: '2', memory: 4Gi, gpu: 1}}", "steps.data.gpu"),
    ("s3_secret: UPPER\ns3_keys: []\nsteps: {}", "s3_secret"),
    ("steps: [", "cannot be read"),
])
def test_a_wrong_placement_is_refused_with_the_key(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "placement.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=told):
        Placement.load(path)


def test_a_step_without_a_place_is_named(tmp_path: Path) -> None:
    steps = yaml.safe_load(DEFAULT.read_text("utf-8"))["steps"]
    del steps["dpo"]
    with pytest.raises(UsageError, match=r"steps\.dpo"):
        with_placement(tmp_path, steps=steps)
