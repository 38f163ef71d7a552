"""vLLM in place of our sampling: the same promises, kept in an interpreter that has vLLM."""

from __future__ import annotations

import json
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from llm_detox.errors import DetoxError
from llm_detox.generation.generators import LocalGenerator, open_generator
from llm_detox.generation.vllm_generator import has_vllm
from tests.conftest import REPOSITORY
from tests.helpers.families import ROPE, SIZES, save_adapter, save_family
from tests.helpers.vllm_draws import LIKELIEST, PROMPTS, TEXTS

LENT = ("peft", "accelerate")  # plain Python, for the merge of an adapter, where vLLM's environment has them not


@pytest.mark.skipif(has_vllm(), reason="vLLM is installed here")
def test_asking_for_vllm_where_it_is_not_installed_says_what_to_do(tiny_llama: Path) -> None:
    with pytest.raises(DetoxError, match="vLLM is not installed") as caught:
        open_generator(str(tiny_llama), "vllm")
    assert "evaluation.engine" in caught.value.place


def lend(folder: Path) -> Path:
    """A folder for PYTHONPATH with this interpreter's copies of some packages."""
    for name in LENT:
        package = Path(str(metadata.distribution(name).locate_file(name)))
        notes = next(package.parent.glob(f"{name}-*.dist-info"))
        for path in (package, notes):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("vllm")
    # vLLM's attention on a CPU knows no heads as narrow as the tiny model's.
    base = save_family("llama", {**SIZES, "head_dim": 64, "rope_parameters": ROPE}, root / "base")
    return base, save_adapter(base, root / "adapter")


@pytest.fixture(scope="module")
def found(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `tests.helpers.vllm_draws` wrote."""
    python = os.environ.get("LLM_DETOX_VLLM_PYTHON")
    if not python:
        pytest.skip("set LLM_DETOX_VLLM_PYTHON to a Python with vLLM, pydantic, PyYAML and rich")
    work = tmp_path_factory.mktemp("draws")
    path = os.pathsep.join([str(REPOSITORY), str(lend(tmp_path_factory.mktemp("lent")))])
    done = subprocess.run(
        [python, "-m", "tests.helpers.vllm_draws", *map(str, models), str(work / "found.json")], cwd=work,
        env={"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "", "stdout is for outcomes"
    result: dict[str, Any] = json.loads((work / "found.json").read_text("utf-8"))
    return result


def as_text(texts: list[str]) -> list[str]:
    """Without what stands for bytes that are no character: a random model writes many, each decoder shows its own."""
    return [text.replace("\ufffd", "").rstrip() for text in texts]  # vLLM drops the space before such a one


@pytest.mark.slow
def test_every_prompt_has_its_continuations_and_progress_counts_them(found: dict[str, Any]) -> None:
    assert set(found["whole"]) == set(PROMPTS)
    assert all(len(set(texts)) == 3 for texts in found["whole"].values()), "drawn, each anew"
    assert found["told"] == 3 * len(PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["again", "reversed", "shards", "topped up", "after a call that was given up"])
def test_seed_and_key_alone_decide_a_sample(found: dict[str, Any], other: str) -> None:
    assert found[other] == found["whole"]


@pytest.mark.slow
def test_another_seed_gives_other_samples(found: dict[str, Any]) -> None:
    assert all(found["other seed"][prompt] != texts for prompt, texts in found["whole"].items())


@pytest.mark.slow
def test_a_prompt_without_tokens_is_refused(found: dict[str, Any]) -> None:
    assert "prompt 2" in found["error"]


@pytest.mark.slow
@pytest.mark.parametrize(("which", "prefix"), [(0, ""), (1, "adapter ")])
def test_the_model_is_that_of_transformers_with_its_adapter_merged(found: dict[str, Any], models: tuple[Path, Path],
                                                                   which: int, prefix: str) -> None:
    local = LocalGenerator(str(models[which]))
    ours = local.losses(TEXTS)
    assert [count for _, count in found[f"{prefix}losses"]] == [count for _, count in ours]
    assert [loss for loss, _ in found[f"{prefix}losses"]] == pytest.approx([loss for loss, _ in ours], rel=1e-3)
    drawn = dict(local.continuations(PROMPTS, k=1, sampling=LIKELIEST, seed=0, keys=PROMPTS))
    expected = {prompt: as_text(drawn[index]) for index, prompt in enumerate(PROMPTS)}
    assert {prompt: as_text(texts) for prompt, texts in found[f"{prefix}likeliest"].items()} == expected


@pytest.mark.slow
def test_the_adapter_changes_the_model(found: dict[str, Any]) -> None:
    assert found["adapter losses"] != found["losses"]
    assert found["losses told"] == len(TEXTS)
