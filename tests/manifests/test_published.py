"""The pod compares its model with what was published: the program is mounted, and told what to compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_detox.serve.kserve.render import VERSION
from tests.manifests.kustomize import Object, pick, with_components

CAIKIT, VLLM = "llm-detox-caikit-tgis", "llm-detox-vllm"


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return with_components(tmp_path_factory.mktemp("published"), "overlays/openshift-ai", ["vllm"])


def runtime(objects: list[Object], name: str) -> Object:
    return next(one["spec"] for one in objects if one["kind"] == "ServingRuntime" and one["metadata"]["name"] == name)


def from_pod(container: Object) -> dict[str, str]:
    """Variable -> the field of the pod that it is filled from."""
    return {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in container["env"] if "valueFrom" in one}


@pytest.mark.parametrize(("name", "number"), [(CAIKIT, 1), (VLLM, 0)])
def test_the_program_that_a_container_starts_is_mounted_with_all_that_it_imports(
        objects: list[Object], name: str, number: int) -> None:
    spec = runtime(objects, name)
    container = spec["containers"][number]
    program = Path(next(word for word in container["command"] if word.endswith(".py")))
    [volume] = [one["name"] for one in container["volumeMounts"] if one["mountPath"] == str(program.parent)]
    source = next(one["configMap"] for one in spec["volumes"] if one["name"] == volume)
    config = pick(objects, "ConfigMap")
    assert config["metadata"]["name"] == source["name"]
    keys = {item["path"]: item["key"] for item in source.get("items", ())} or {key: key for key in config["data"]}
    text = config["data"][keys[program.name]]
    beside = [line.split()[-1] for line in text.splitlines() if line.startswith("    import ")]
    assert all(f"{module}.py" in keys for module in beside if f"{module}.py" in config["data"])


def test_caikit_compares_before_it_listens(objects: list[Object]) -> None:
    container = runtime(objects, CAIKIT)["containers"][1]
    given = {one["name"]: one.get("value") for one in container["env"]}
    assert given["CAIKIT_CHECKSUMS"] == "required"
    assert given["CAIKIT_MODEL_DIR"] == "/mnt/models"
    assert from_pod(container)["CAIKIT_VERSION"] == f"metadata.annotations['{VERSION}']"


def test_vllm_starts_after_the_comparison_of_the_folder_that_it_reads(objects: list[Object]) -> None:
    container = runtime(objects, VLLM)["containers"][0]
    python, program, folder, *server = container["command"]
    assert (python, Path(program).name) == ("python", "checksums.py")
    assert server == ["python", "-m", "vllm.entrypoints.openai.api_server"]
    assert f"--model={folder}" in container["args"]
    assert from_pod(container)["LLM_DETOX_VERSION"] == f"metadata.annotations['{VERSION}']"
