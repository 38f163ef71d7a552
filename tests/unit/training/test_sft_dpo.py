"""Training: the losses are those of the papers, a run is repeatable, bad input and bad numbers stop it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForCausalLM
from trl.trainer.dpo_trainer import DPOTrainer

from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_model, load_tokenizer, read_base_source
from llm_detox.recipe import Recipe
from llm_detox.recipe.training import SftSection
from llm_detox.training import dpo as dpo_step
from llm_detox.training import sft as sft_step
from llm_detox.training.batches import LikeLengths
from llm_detox.training.dpo import anchor_rows, divergence, own_continuations, padded_with_mask
from llm_detox.training.encoding import tokenize
from llm_detox.training.lora import load_training_base, new_adapter, open_adapter
from llm_detox.training.pairs import Pair
from tests.helpers.sources import write_lines
from tests.helpers.training import TEXTS, losses, small_recipe, texts_file, weights

PAIRS = [Pair("you are a", " fine friend of mine", " stupid idiot", 0.9, "sampled"),
         Pair("what a", " lovely dinner", " damn fool you are, moron", 0.8, "sampled"),
         Pair("the train", " leaves at noon", " is dumb", 0.7, "rewrite"),
         Pair("I", " thank you so much", " hate you", 0.6, "rewrite")]

GOLDEN_SFT = [7.39357, 7.79859, 7.99244]
GOLDEN_DPO = [0.693147, 0.608477, 0.736919]


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path) -> Recipe:
    return small_recipe(tmp_path / "data", tiny_llama)


@pytest.fixture
def adapter(tmp_path: Path, recipe: Recipe) -> Path:
    sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    return tmp_path / "sft"


def test_sft_loss_of_three_steps_is_the_golden_one(adapter: Path) -> None:
    assert losses(adapter) == pytest.approx(GOLDEN_SFT, abs=2e-3)


def test_sft_starts_at_the_bases_mean_loss_of_a_token(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, sft={"batch_size": 8, "max_length": 32})
    sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), load_tokenizer(tiny_llama)
    total, tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])[:, :32]
        total += functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    assert losses(tmp_path / "sft") == pytest.approx([total / tokens], rel=1e-4)


def test_the_adapter_folder_holds_what_a_reader_needs_and_nothing_else(adapter: Path, tiny_llama: Path) -> None:
    assert {path.name for path in adapter.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "base.json", "manifest.json", "metrics.jsonl",
        "tokenizer.json", "tokenizer_config.json"}
    assert read_base_source(adapter) == str(tiny_llama)
    trained, base = load_model(adapter), load_model(tiny_llama)
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.allclose(trained(ids).logits, base(ids).logits, atol=1e-3)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
        tmp_path: Path, tiny_llama: Path, quantization: str) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, quantization=quantization)
    other = recipe.model_copy(update={"seed": 7})
    for name, settings in (("one", recipe), ("two", recipe), ("other", other)):
        sft_step.train_sft(settings, texts=texts_file(tmp_path), clean=None, output=tmp_path / name)
    one, two, third = (weights(tmp_path / name) for name in ("one", "two", "other"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], third[key]) for key in one)


def test_dropped_and_empty_records_are_not_trained_on_and_clean_text_is_mixed_in(
        tmp_path: Path, recipe: Recipe) -> None:
    kept = [{"text": text, "action": "kept"} for text in TEXTS]
    left_out = [{"text": "you stupid idiot", "action": "dropped"}, {"text": "  ", "action": "rewritten"}]
    clean = write_lines(tmp_path / "clean.jsonl", [{"text": "a harmless line"}])
    outcome = sft_step.train_sft(recipe, texts=write_lines(tmp_path / "records.jsonl", left_out + kept), clean=clean,
                                 output=tmp_path / "sft")
    assert (outcome.texts, outcome.dropped, outcome.empty, outcome.clean) == (6, 1, 1, 1)
    tokenizer = load_tokenizer(recipe.model.source)
    rows = tokenize(tokenizer, [*TEXTS, "a harmless line"], 32)
    assert outcome.tokens == sum(row["length"] for row in rows)


def test_nothing_to_train_on_stops_with_the_reason(tmp_path: Path, recipe: Recipe) -> None:
    texts = write_lines(tmp_path / "none.jsonl", [{"text": "you idiot", "action": "dropped"}])
    with pytest.raises(DetoxError, match=r"no text to train on \(1 dropped") as caught:
        sft_step.train_sft(recipe, texts=texts, clean=None, output=tmp_path / "sft")
    assert "detoxify.accept" in (caught.value.remedy or "")
    assert not (tmp_path / "sft").exists()


def test_where_filtering_leaves_no_text_the_clean_passages_are_trained_on(tmp_path: Path, recipe: Recipe,
                                                                          capsys: pytest.CaptureFixture[str]) -> None:
    nothing = write_lines(tmp_path / "kept.jsonl", [])
    clean = write_lines(tmp_path / "clean.jsonl", [{"text": "a harmless line"}])
    outcome = sft_step.train_sft(recipe, texts=nothing, clean=clean, output=tmp_path / "sft")
    assert (outcome.texts, outcome.clean) == (0, 1)
    assert "kept.jsonl: no text is left to train on, the 1 clean passages are all" in capsys.readouterr().err
    with pytest.raises(DetoxError, match="no text to train on"):
        sft_step.train_sft(recipe, texts=nothing, clean=write_lines(tmp_path / "empty.jsonl", []),
                           output=tmp_path / "other")


def test_a_loss_that_is_no_number_stops_and_leaves_no_output(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, sft={
        "batch_size": 2, "max_length": 32, "learning_rate": 1e30, "epochs": 4, "warmup_ratio": 0.0})
    with pytest.raises(DetoxError, match=r"the loss is (nan|inf) at step") as caught:
        sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    assert "learning_rate" in (caught.value.remedy or "")
    assert not (tmp_path / "sft").exists()


def test_a_target_module_that_the_model_lacks_is_named(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, lora={"target_modules": ["query_key_value"]})
    with pytest.raises(DetoxError, match="query_key_value") as caught:
        sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    assert "q_proj" in (caught.value.remedy or "")


def test_event_files_without_their_package_are_refused_with_the_remedy(
        tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    recipe = small_recipe(tmp_path / "data", tiny_llama, tensorboard=True)
    with pytest.raises(DetoxError, match="tensorboard is not installed") as refused:
        sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    assert "pip install tensorboard" in refused.value.remedy
    assert not (tmp_path / "sft").exists()


def test_training_says_nothing_on_stdout(tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    assert capsys.readouterr().out == ""


def sequence_logps(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probability of each completion token: the definition, one sequence at a time."""
    ids = torch.tensor([prompt + completion])
    logps = functional.log_softmax(model(input_ids=ids).logits[0, :-1].float(), dim=-1)
    return logps.gather(1, ids[0, 1:, None])[len(prompt) - 1:, 0]


def test_dpo_loss_is_the_papers_formula_with_likelihood_and_anchor(adapter: Path, tmp_path: Path) -> None:
    settings = small_recipe(tmp_path / "again", Path(read_base_source(adapter))).training
    dpo = settings.dpo.model_copy(update={
        "beta": 0.3, "likelihood_weight": 0.2, "anchor_weight": 0.5, "batch_size": 4})
    tokenizer, reference = load_tokenizer(adapter), load_model(adapter)
    model = open_adapter(adapter, settings)
    rows, harmless = dpo_step.pair_rows(tokenizer, PAIRS, 48), tokenizer("a harmless line of text")["input_ids"]
    trainer = dpo_step.make_trainer(model, tokenizer, rows, dpo, anchor=[harmless], seed=1, work=tmp_path / "work")
    with torch.no_grad():
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ".ref." not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    loss = trainer.compute_loss(model, trainer.data_collator(list(trainer.train_dataset))).item()

    preference, chosen_logps = [], []
    for row in rows:
        ratio = {}
        for side in ("chosen_ids", "rejected_ids"):
            policy, base = (sequence_logps(m, row["prompt_ids"], row[side]) for m in (model, reference))
            ratio[side] = (policy - base).sum()
            chosen_logps += [policy] if side == "chosen_ids" else []
        preference.append(-functional.logsigmoid(0.3 * (ratio["chosen_ids"] - ratio["rejected_ids"])))
    start, now = (functional.log_softmax(m(input_ids=torch.tensor([harmless])).logits[0].float(), dim=-1)
                  for m in (reference, model))
    drift = (start.exp() * (start - now)).sum(-1).mean()
    expected = (torch.stack(preference).mean() - 0.2 * torch.cat(chosen_logps).mean()
                + 0.5 * drift)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert abs(torch.stack(preference).mean().item() - 0.6931) > 0.01, "the policy must have left its reference"
    assert drift.item() > 0.01


def run_dpo(recipe: Recipe, adapter: Path, output: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[Pair]) -> Any:
    monkeypatch.setattr(dpo_step, "make_pairs", lambda *_, **__: pairs)
    some = write_lines(output.parent / "some.jsonl", [{"prompt": "you are a"}])
    return dpo_step.train_dpo(recipe, adapter=adapter, records=some, prompts=some, clean=None, output=output)


def test_dpo_loss_of_three_steps_is_the_golden_one_and_starts_at_log_two(
        tmp_path: Path, recipe: Recipe, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run_dpo(recipe, adapter, tmp_path / "dpo", monkeypatch, [*PAIRS, *PAIRS[:2]])
    found = losses(tmp_path / "dpo")
    assert found[0] == pytest.approx(0.693147, abs=1e-5)
    assert found == pytest.approx(GOLDEN_DPO, abs=2e-3)
    assert outcome.pairs == {"rewrite": 2, "sampled": 4}


def test_the_reference_reads_pairs_of_like_length_together_and_each_keeps_its_own_log_probabilities(
        tmp_path: Path, recipe: Recipe, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    compute, kept = DPOTrainer._precompute_ref_logps, []

    def spied(self: DPOTrainer, dataset: Any, *rest: Any) -> Any:
        seen.append(list(dataset["length"]))
        return compute(self, dataset, *rest)

    def keeping(*arguments: Any, **options: Any) -> Any:
        kept.append(make(*arguments, **options))
        return kept[-1]

    make = dpo_step.make_trainer
    monkeypatch.setattr(DPOTrainer, "_precompute_ref_logps", spied)
    monkeypatch.setattr(dpo_step, "make_trainer", keeping)
    long = Pair("you are", " my good friend and I am glad of it", " a stupid idiot and I hate you for it", 1, "sampled")
    run_dpo(recipe, adapter, tmp_path / "dpo", monkeypatch, [long, *PAIRS, long, *PAIRS])
    rows, model = kept[0].train_dataset, load_model(adapter)
    assert seen[0] == sorted(seen[0])
    assert rows["length"] != sorted(rows["length"])
    for row in rows:
        for side in ("chosen", "rejected"):
            alone = sequence_logps(model, row["prompt_ids"], row[f"{side}_ids"]).sum().item()
            assert row[f"ref_{side}_logps"] == pytest.approx(alone, abs=1e-3)


def test_dpo_on_a_quantised_base_starts_exactly_at_its_reference(
        tmp_path: Path, recipe: Recipe, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantised = recipe.model_copy(update={"training": recipe.training.model_copy(update={"quantization": "nf4"})})
    run_dpo(quantised, adapter, tmp_path / "dpo", monkeypatch, PAIRS)
    first = json.loads((tmp_path / "dpo" / "metrics.jsonl").read_text("utf-8").splitlines()[0])
    assert first["reward_margin"] == pytest.approx(0, abs=1e-5)


def test_dpo_makes_pairs_from_samples_and_rewrites_and_prefers_the_chosen(
        tmp_path: Path, recipe: Recipe, adapter: Path) -> None:
    records = write_lines(tmp_path / "records.jsonl", [
        {"text": "you are my good friend", "original": "you are my stupid idiot", "action": "rewritten"},
        {"text": "kept as it is", "original": "kept as it is", "action": "kept"}])
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": {"text": text}} for text in TEXTS])
    outcome = dpo_step.train_dpo(recipe, adapter=adapter, records=records, prompts=prompts, clean=None,
                                 output=tmp_path / "dpo")
    pairs = [json.loads(line) for line in (tmp_path / "dpo" / "pairs.jsonl").read_text("utf-8").splitlines()]
    assert [pair["source"] for pair in pairs].count("rewrite") == outcome.pairs["rewrite"] == 1
    assert outcome.pairs["sampled"] == sum(pair["prompt"] in TEXTS for pair in pairs) > 0
    before, after = weights(adapter), weights(tmp_path / "dpo")
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[key], after[key]) for key in before)
    policy, reference, tokenizer = load_model(tmp_path / "dpo"), load_model(adapter), load_tokenizer(adapter)
    row = dpo_step.pair_rows(tokenizer, [Pair("you are my", " good friend", " stupid idiot", 1, "rewrite")], 48)[0]
    gains = [(sequence_logps(policy, row["prompt_ids"], row[side]) - sequence_logps(
        reference, row["prompt_ids"], row[side])).sum().item() for side in ("chosen_ids", "rejected_ids")]
    assert gains[0] > gains[1]


def test_dpo_on_a_folder_without_an_adapter_says_so(tmp_path: Path, tiny_llama: Path, recipe: Recipe) -> None:
    with pytest.raises(DetoxError, match=r"no adapter_config\.json"):
        open_adapter(tiny_llama, recipe.training)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 3))
def test_batches_hold_every_row_once_and_like_lengths_together(lengths: list[int], size: int, epoch: int) -> None:
    sampler = LikeLengths(lengths, size, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert order == list(sampler)
    whole = [order[start: start + size] for start in range(0, len(order) - len(order) % size, size)]
    spread = sum(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in whole)
    assert spread <= max(lengths) - min(lengths)


def test_the_trainer_draws_batches_of_like_length_and_others_in_the_next_epoch(
        tiny_llama: Path, recipe: Recipe, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    rows = tokenize(tokenizer, [" ".join(["word"] * (1 + n % 10)) for n in range(80)], 64)
    model = new_adapter(load_training_base(str(tiny_llama), recipe.training), recipe.training.lora, 1)
    trainer = sft_step.make_trainer(model, tokenizer, rows, SftSection(batch_size=4, max_length=64), seed=1,
                                    work=tmp_path / "work")
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        masks = [batch["attention_mask"] for batch in loader]
        assert all(bool(mask.all()) for mask in masks)
        epochs.append([mask.shape for mask in masks])
    assert epochs[0] != epochs[1]


PASSAGES = [f"the train {number} leaves at noon and arrives in the evening with all the passengers" for number in
            ("one", "two", "three")]


def continuations(recipe: Recipe, model: Path, passages: list[str]) -> list[str]:
    return own_continuations(model, passages, count=recipe.training.dpo.anchor_samples,
                             sampling=recipe.evaluation.sampling, seed=recipe.seed)


def test_the_anchor_is_the_start_models_own_continuations_of_harmless_openings(
        tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_llama, dpo={"anchor_weight": 1.0, "anchor_samples": 8})
    texts = continuations(recipe, tiny_llama, PASSAGES)
    assert len(texts) == 8
    assert texts == continuations(recipe, tiny_llama, PASSAGES)
    for number, opening in enumerate(("the train one", "the train two leaves", "the train three leaves at")):
        own = [text for text in texts if text.startswith(opening)]
        assert len(own) == (3, 3, 2)[number]
        assert not any(text in PASSAGES[number] for text in own)
    assert continuations(recipe, tiny_llama, []) == []


def test_no_more_is_sampled_for_the_anchor_than_it_holds(
        tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(dpo_step, "sample_continuations", lambda model, tokenizer, prompts, *, k, **_: asked.append(
        k * len(prompts)) or [[" text"] * k for _ in prompts])
    recipe = small_recipe(tmp_path, tiny_llama, dpo={"anchor_weight": 1.0, "anchor_samples": 4})
    assert len(continuations(recipe, tiny_llama, PASSAGES)) == 4
    assert asked == [4]


def test_the_divergence_is_zero_at_the_start_and_sees_tokens_alone(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_llama)
    model = new_adapter(load_training_base(str(tiny_llama), recipe.training), recipe.training.lora, seed=1)
    model.add_adapter("ref", model.peft_config["default"])
    rows = anchor_rows(load_tokenizer(tiny_llama), ["the brown fox", "a lazy dog jumps over the fence"], 32)
    ids, mask = padded_with_mask(rows, 0)
    assert divergence(model, ids, mask, start="ref").item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.normal_(std=0.2)
    together = divergence(model, ids, mask, start="ref").item()
    alone = [divergence(model, *padded_with_mask([row], 0), start="ref").item() for row in rows]
    assert together == pytest.approx(sum(len(row) * one for row, one in zip(rows, alone, strict=True))
                                     / sum(map(len, rows)), rel=1e-4)
    assert together > 1e-4
    assert model.active_adapter == "default"


def test_a_whole_model_cannot_be_anchored_and_says_what_to_change(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, sft={"method": "full", "batch_size": 4, "max_length": 32},
                          dpo={"anchor_weight": 1.0})
    sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    some = write_lines(tmp_path / "some.jsonl", [{"prompt": "you are", "text": "you are"}])
    with pytest.raises(DetoxError, match="only an adapter"):
        dpo_step._anchor_texts(recipe.training.dpo, tmp_path / "sft", some, recipe.evaluation.sampling, recipe.seed)
