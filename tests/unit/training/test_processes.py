"""Several processes train as one: the same losses, the same adapter, one output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.runs.artifacts import plain
from llm_detox.training import distributed
from llm_detox.training import dpo as dpo_step
from llm_detox.training import sft as sft_step
from llm_detox.training.pairs import Pair
from llm_detox.training.rewriters import train_paraphraser
from tests.conftest import REPOSITORY
from tests.helpers import tiny_rewriters
from tests.helpers.rewriters import recipe as rewriters_recipe
from tests.helpers.sources import write_lines
from tests.helpers.training import losses, small_recipe, weights

WORDS = ["the", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "far", "away", "from", "you"]
TEXTS = [" ".join(WORDS[: 2 + number % 9]) for number in range(16)]
PAIRS = [Pair(" ".join(WORDS[:2 + number % 3]), f" {WORDS[number % 14]}", " stupid " + " ".join(WORDS[:number % 7]),
              0.5, "sampled") for number in range(16)]


def train(kind: str, folder: Path, output: str) -> None:
    recipe = Recipe.model_validate_json((folder / "recipe.json").read_text("utf-8"))
    if kind == "sft":
        sft_step.train_sft(recipe, texts=folder / "texts.jsonl", clean=None, output=folder / output)
        return
    if kind == "paraphraser":
        train_paraphraser(recipe, pairs=folder / "pairs.jsonl", output=folder / output)
        return
    dpo_step.make_pairs = lambda *_, **__: PAIRS  # type: ignore[assignment]
    dpo_step.train_dpo(recipe, adapter=folder / "sft-one", records=folder / "texts.jsonl",
                       prompts=folder / "texts.jsonl", clean=folder / "clean.jsonl", output=folder / output)


def train_in_two(kind: str, folder: Path, output: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
               "tests.unit.training.test_processes", kind, str(folder), output]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_two_processes_have_the_losses_and_the_adapter_of_one(
        tmp_path: Path, tiny_llama: Path, quantization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo_step, "make_pairs", dpo_step.make_pairs)  # put back what `train` changes
    settings = {"batch_size": 8, "max_length": 32, "learning_rate": 1e-3, "epochs": 3}
    recipe = small_recipe(tmp_path / "data", tiny_llama, quantization=quantization, sft=settings,
                          dpo={**settings, "anchor_weight": 0.5, "anchor_samples": 10})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(), "utf-8")
    write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    write_lines(tmp_path / "clean.jsonl", [{"text": " ".join(WORDS[number:])} for number in range(5)])
    for kind in ("sft", "dpo"):
        train(kind, tmp_path, f"{kind}-one")
        train_in_two(kind, tmp_path, f"{kind}-two")
        assert losses(tmp_path / f"{kind}-two") == pytest.approx(losses(tmp_path / f"{kind}-one"), rel=1e-4)
        one, two = weights(tmp_path / f"{kind}-one"), weights(tmp_path / f"{kind}-two")
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["causal", "bart"])
def test_two_processes_make_the_paraphraser_of_one(tmp_path: Path, base: str) -> None:
    """Without dropout nothing is random in a step."""
    tiny_rewriters.causal_folder(tmp_path / "causal")
    words, bart = tiny_rewriters.bart_tokenizer(), tiny_rewriters.bart(0, tiny_rewriters.bart_tokenizer())
    bart.config.dropout = 0.0
    for part in (bart, words):
        part.save_pretrained(tmp_path / "bart")
    recipe = rewriters_recipe(tmp_path / base, rephraser_training={
        "learning_rate": 1e-3, "epochs": 3, "batch_size": 8, "lora": {"r": 4}})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(), "utf-8")
    sentences = tiny_rewriters.sentences(32)
    write_lines(tmp_path / "pairs.jsonl", [
        {"toxic": text, "neutral": f"{text.split()[0]} good friend"} for text, toxic in sentences if toxic])
    train("paraphraser", tmp_path, "one")
    train_in_two("paraphraser", tmp_path, "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    file = "adapter_model.safetensors" if base == "causal" else "model.safetensors"
    one, two = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
    assert one.keys() == two.keys()
    # Attention does not change with its keys' bias: that gradient is rounding alone, which Adam makes steps of.
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one if not name.endswith("k_proj.bias"))


def test_a_recipe_for_several_nodes_trains_in_a_job_and_in_the_jobs_own_processes_at_once(
        tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, job={"nodes": 2})
    asked: list[tuple[str, set[str]]] = []
    figures = {"steps": 1, "loss_first": 2.0, "loss_last": 1.0, "tokens": 9, "seconds": 3.0, "tokens_per_second": 3.0,
               "cut": 0, "left_out": 0}
    results = {"sft": {**figures, "texts": 1, "dropped": 0, "empty": 0, "clean": 1},
               "dpo": {**figures, "pairs": {"rewrite": 1, "sampled": 0}}}
    for module in (sft_step, dpo_step):
        monkeypatch.setattr(module, "train_on_nodes",
                            lambda recipe, step, inputs, output: asked.append((step, set(inputs))) or results[step])
    some = write_lines(tmp_path / "some.jsonl", [{"text": "a"}])
    sft = sft_step.train_sft(recipe, texts=some, clean=some, output=tmp_path / "sft")
    dpo = dpo_step.train_dpo(recipe, adapter=some, records=some, prompts=some, clean=None, output=tmp_path / "dpo")
    assert (plain(sft), plain(dpo)) == (results["sft"], results["dpo"])
    assert asked == [("sft", {"input", "clean"}), ("dpo", {"adapter", "records", "prompts"})]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not distributed.on_other_nodes(recipe.training.job)


def test_a_batch_that_cannot_be_dealt_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert distributed.share_of_batch(9) == 3
    with pytest.raises(DetoxError, match="a batch of 8 cannot be dealt out to 3 processes"):
        distributed.share_of_batch(8)


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
