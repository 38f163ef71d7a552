"""What is trained: precision, quantisation, output layers, whole models, and pairs from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from benchmarks.detox_curve import between
from llm_detox.errors import DetoxError
from llm_detox.export import convert
from llm_detox.generation.models import load_model, load_tokenizer, write_base_source
from llm_detox.recipe import Recipe
from llm_detox.recipe.training import TrainingSection
from llm_detox.runs.folders import read_manifest
from llm_detox.training import dpo as dpo_step
from llm_detox.training import lora
from llm_detox.training import sft as sft_step
from llm_detox.training.encoding import tokenize
from llm_detox.training.lora import load_training_base, new_adapter, open_adapter
from llm_detox.training.pairs import Pair, given_pairs
from tests.helpers.sources import write_lines
from tests.helpers.tiny import save_tiny_llama
from tests.helpers.training import TEXTS, losses, small_recipe, texts_file, weights


@pytest.fixture(scope="module")
def untied_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with an output layer of its own."""
    from transformers import AutoModelForCausalLM

    folder = save_tiny_llama(tmp_path_factory.mktemp("untied") / "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("precision", "amx", "dtype"), [
    ("auto", True, torch.float32), ("bf16", True, torch.bfloat16), ("bf16", False, torch.float32),
    ("float32", True, torch.float32)])
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU multiplies in bf16 whatever the CPU can")
def test_base_and_products_are_of_the_precision_that_the_recipe_says(
        tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, precision: str, amx: bool,
        dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    recipe = small_recipe(tmp_path / "data", tiny_llama, precision=precision)
    made, trainers = sft_step.make_trainer, []
    monkeypatch.setattr(sft_step, "make_trainer", lambda *rest, **options: (
        trainers.append(made(*rest, **options)), trainers[-1])[1])
    sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    [trainer] = trainers
    assert trainer.model.get_base_model().dtype is dtype
    assert trainer.args.bf16 is (dtype is torch.bfloat16)
    assert {value.dtype for value in weights(tmp_path / "sft").values()} == {torch.float32}


@pytest.mark.parametrize("training", [
    {"quantization": "nf4", "double_quantization": False}, {"quantization": "nf4"}, {"quantization": "int8"},
    {"quantization": "none"}], ids=["nf4", "nf4 twice", "int8", "none"])
def test_every_quantisation_learns(tmp_path: Path, tiny_llama: Path, training: dict[str, Any]) -> None:
    recipe = small_recipe(tmp_path, tiny_llama, **training, sft={
        "batch_size": 6, "max_length": 32, "learning_rate": 3e-2, "epochs": 8, "optimizer": "paged_adamw_8bit"})
    sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    found = losses(tmp_path / "sft")
    assert found[-1] < found[0] - 0.5


def test_an_adapted_output_layer_is_trained_merged_and_converted(tmp_path: Path, untied_llama: Path) -> None:
    lora = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "lm_head"], "bias": "lora_only"}
    recipe = small_recipe(tmp_path, untied_llama, lora=lora, quantization="nf4", sft={
        "batch_size": 6, "max_length": 32, "learning_rate": 3e-2, "epochs": 8})
    outcome = sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    found = losses(tmp_path / "sft")
    assert found[-1] < found[0] - 0.5
    assert outcome.tokens == 8 * sum(row["length"] for row in tokenize(load_tokenizer(untied_llama), TEXTS, 32))
    head = [name for name in weights(tmp_path / "sft") if "lm_head" in name]
    assert len(head) == 2
    assert json.loads((tmp_path / "sft" / "adapter_config.json").read_text("utf-8"))["bias"] == "none"
    assert convert(model=str(tmp_path / "sft"), output=tmp_path / "served")["merged"] == 3


def test_full_training_writes_a_whole_model_and_dpo_goes_on_from_it(
        tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, sft={
        "batch_size": 6, "max_length": 32, "learning_rate": 1e-3, "epochs": 4, "method": "full"})
    sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    assert losses(tmp_path / "sft")[-1] < losses(tmp_path / "sft")[0]
    assert not (tmp_path / "sft" / "adapter_config.json").exists()
    before, trained = load_model(tiny_llama), load_model(tmp_path / "sft")
    assert not torch.equal(before.model.embed_tokens.weight, trained.model.embed_tokens.weight)  # type: ignore[operator]

    pairs = [Pair("you are a", " fine friend", " stupid idiot", 0.9, "given", ends=True)] * 4
    monkeypatch.setattr(dpo_step, "make_pairs", lambda *_, **__: pairs)
    some = write_lines(tmp_path / "some.jsonl", [{"prompt": "you are a"}])
    dpo_step.train_dpo(
        recipe, adapter=tmp_path / "sft", records=some, prompts=some, clean=None, output=tmp_path / "dpo")
    assert losses(tmp_path / "dpo")[0] == pytest.approx(0.693147, abs=1e-5), "its reference is the SFT model"
    preferred = load_model(tmp_path / "dpo")
    assert not torch.equal(preferred.lm_head.weight, before.lm_head.weight)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(preferred.get_parameter(name), trained.get_parameter(name))
    convert(model=str(tmp_path / "dpo"), output=tmp_path / "served")


def test_a_recipe_without_preference_training_passes_the_sft_outcome_on(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, dpo={"enabled": False})
    sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    some = write_lines(tmp_path / "some.jsonl", [{"prompt": "x"}])
    dpo_step.train_dpo(
        recipe, adapter=tmp_path / "sft", records=some, prompts=some, clean=None, output=tmp_path / "dpo")
    one, other = weights(tmp_path / "sft"), weights(tmp_path / "dpo")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_translations_are_told_when_training_starts(
        tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama)
    values = recipe.model_dump(mode="json") | {
        "translations": [{"source": "fp16", "here": "bf16", "reason": "its scaler knows no bf16 adapters"}]}
    sft_step.train_sft(Recipe.model_validate(values), texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    assert "the source has fp16; here bf16: its scaler knows no bf16 adapters" in capsys.readouterr().err


@pytest.mark.parametrize(("free", "chosen"), [(2**50 - 1, "none"), (1, "nf4")])
def test_quantisation_is_left_out_on_request_where_the_memory_allows_and_says_so(
        tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
        free: int, chosen: str) -> None:
    monkeypatch.setattr(lora, "free_bytes", lambda: free)
    training = TrainingSection(quantization="auto")
    assert lora.resolve_quantization(training, str(tiny_llama), training.sft, tmp_path).quantization == chosen
    assert "quantization auto" in capsys.readouterr().err
    monkeypatch.setattr(lora, "free_bytes", lambda: 2**50 - free)
    again = lora.resolve_quantization(training, str(tiny_llama), training.sft, tmp_path)
    assert again.quantization == chosen, "a run that continues keeps to it"
    fixed = TrainingSection()
    assert lora.resolve_quantization(fixed, str(tiny_llama), fixed.sft, tmp_path) is fixed


def test_the_result_says_what_automatic_quantisation_decided(tmp_path: Path, tiny_llama: Path) -> None:
    for quantization, noted in (("auto", "none"), ("none", None)):
        recipe = small_recipe(tmp_path / "data", tiny_llama, quantization=quantization)
        output = tmp_path / quantization
        assert sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=output).quantization == noted
        assert read_manifest(output)["result"].get("quantization", None) == noted
        assert ("quantization" in read_manifest(output)["result"]) is (noted is not None)


def test_the_memory_of_a_llama_of_seven_billion_is_estimated_on_its_shape(tmp_path: Path, tiny_llama: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=32000).save_pretrained(tmp_path)  # the defaults are Llama-2-7B's
    (tmp_path / "tokenizer.json").write_bytes((tiny_llama / "tokenizer.json").read_bytes())
    save_file({"unread": torch.zeros(1)}, tmp_path / "model.safetensors")
    training = TrainingSection()
    needed = lora.bytes_needed(str(tmp_path), training.lora, training.sft)
    width = lora.compute_dtype().itemsize
    assert 6.7e9 * width < needed < 6.8e9 * width + 4e9 * width


def test_pairs_made_elsewhere_are_read_with_and_without_a_prompt(tmp_path: Path, tiny_llama: Path) -> None:
    from llm_detox.recipe.training import PairTable

    tokenizer = load_tokenizer(tiny_llama)
    named = write_lines(tmp_path / "named.jsonl", [
        {"prompt": "you are a", "chosen": "fine friend", "rejected": "you are a stupid idiot"},
        {"prompt": "x", "chosen": "same", "rejected": "same"}])
    turns = "\n\nHuman: hello\n\nAssistant:"
    whole = write_lines(tmp_path / "hh.jsonl", [
        {"chosen": f"{turns} I am fine", "rejected": f"{turns} I hate you"}] * 3)
    pairs = given_pairs([PairTable(source=str(named)), PairTable(source=str(whole), prompt_column=None, count=2)],
                        tokenizer)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [
        ("you are a", " fine friend", " stupid idiot"), *[(turns, " I am fine", " I hate you")] * 2]
    rows = dpo_step.pair_rows(tokenizer, pairs, 64, 4)
    assert all(row["chosen_ids"][-1] == row["rejected_ids"][-1] == tokenizer.eos_token_id for row in rows)
    assert all(len(row["prompt_ids"]) <= 4 for row in rows)
    with pytest.raises(DetoxError, match="'prompt' is missing"):
        given_pairs([PairTable(source=str(whole))], tokenizer)


def test_a_public_preference_set_is_read(shared_data: Path, tiny_llama: Path) -> None:
    from llm_detox.recipe.training import PairTable

    table = PairTable(source=str(shared_data / "hh_harmless_dev.jsonl"), prompt_column=None, count=200)
    pairs = given_pairs([table], load_tokenizer(tiny_llama))
    assert len(pairs) == 200
    assert all(pair.prompt.endswith("Assistant:") for pair in pairs)


def test_a_fresh_adapter_on_a_whole_model_changes_nothing_yet(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, sft={
        "batch_size": 6, "max_length": 32, "learning_rate": 1e-3, "method": "full"})
    sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    ids = torch.tensor([[5, 6, 7]])
    model, trained = open_adapter(tmp_path / "sft", recipe.training), load_model(tmp_path / "sft")
    assert torch.allclose(model(ids).logits, trained(ids).logits, atol=1e-5)
    assert new_adapter(load_training_base(str(tiny_llama), recipe.training), recipe.training.lora, 1) is not None


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_an_adapter_between_two_changes_every_weight_by_a_share_of_each(tmp_path: Path, tiny_llama: Path,
                                                                       share: float) -> None:
    """Not so the adapter whose two factors lie between theirs."""
    ends = []
    for seed in (1, 2):
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        torch.manual_seed(seed)
        model = get_peft_model(load_model(str(tiny_llama)), config)
        model.save_pretrained(tmp_path / str(seed))
        write_base_source(tmp_path / str(seed), str(tiny_llama))
        ends.append(load_model(str(tmp_path / str(seed))).state_dict())
    middle = load_model(str(between(tmp_path / "1", tmp_path / "2", share, tmp_path / "between"))).state_dict()
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in middle)
    for name, weight in middle.items():
        torch.testing.assert_close(weight, (1 - share) * ends[0][name] + share * ends[1][name])
