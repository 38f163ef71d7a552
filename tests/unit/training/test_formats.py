"""What training reads: formats, labels, what is cut or left out, packing, and steps of batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, TrainingArguments

from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_model, load_tokenizer
from llm_detox.runs.folders import read_manifest
from llm_detox.training import dpo as dpo_step
from llm_detox.training import sft as sft_step
from llm_detox.training.batches import PackedBatches, check_packing, pack
from llm_detox.training.encoding import IGNORED, TextCounts, encode, tokenize, training_texts
from llm_detox.training.pairs import Pair, given_pairs, make_pairs
from llm_detox.training.run import training_arguments
from tests.helpers.sources import write_lines
from tests.helpers.training import TEXTS, losses, small_recipe, texts_file

CHAT = ("{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}")


@pytest.fixture
def chat_tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = CHAT
    return tokenizer


def learned(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != IGNORED]))


def test_the_completion_alone_is_learned_with_its_end(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    [row] = encode(tokenizer, [{"prompt": "you are a", "completion": " fine friend"}], 64)
    assert tokenizer.decode(row["input_ids"]) == "you are a fine friend</s>"
    assert learned(tokenizer, row) == " fine friend</s>"
    [row] = encode(tokenizer, [{"prompt": "you are a", "completion": " fine friend"}], 64, completion_only=False)
    assert row["labels"] == row["input_ids"]


def test_a_completion_that_is_cut_off_teaches_nothing_and_is_left_out(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    prompt = {"prompt": "a long prompt that fills it all up", "completion": " no"}
    counts = Counter[str]()
    assert encode(tokenizer, [prompt], 6, counts=counts) == []
    assert tokenize(tokenizer, ["a text that is too long for it", "you"], 4, counts)
    assert counts == {"left_out": 1, "cut": 1}


def test_what_is_cut_or_left_out_is_told_and_counted(
        tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, sft={"batch_size": 8, "max_length": 4})
    texts = write_lines(tmp_path / "texts.jsonl", [
        {"text": TEXTS[0]}, {"text": "you"}, {"prompt": TEXTS[0], "completion": " no"}])
    outcome = sft_step.train_sft(recipe, texts=texts, clean=None, output=tmp_path / "sft")
    assert (outcome.cut, outcome.left_out) == (1, 1)
    assert read_manifest(tmp_path / "sft")["counts"]["left_out"] == 1
    assert "training.sft.max_length cuts 1 examples off, and 1 are left out" in capsys.readouterr().err


def test_a_system_prompt_that_the_template_refuses_goes_into_the_first_message_in_training_too(
        chat_tokenizer: PreTrainedTokenizerBase) -> None:
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
        "{{ m.content }}|{% endfor %}")
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "you"},
                {"role": "assistant", "content": "fine"}]
    [row] = encode(chat_tokenizer, [{"messages": messages}], 200)
    assert chat_tokenizer.decode(row["input_ids"]) == "be kind\n\nyou|fine|"
    assert learned(chat_tokenizer, row) == "fine|"
    chat_tokenizer.chat_template = "{{ raise_exception('not this') }}"
    with pytest.raises(DetoxError, match="refuses a conversation: not this"):
        encode(chat_tokenizer, [{"messages": messages}], 200)


@pytest.mark.parametrize("with_prompt", [True, False])
def test_preferred_conversations_begin_and_end_once(
        tmp_path: Path, chat_tokenizer: PreTrainedTokenizerBase, with_prompt: bool) -> None:
    from tokenizers.processors import TemplateProcessing

    from llm_detox.recipe.training import PairTable

    chat_tokenizer.chat_template = CHAT.replace("{{ eos_token }}", "{{ eos_token + '\\n' }}")
    backend: Any = chat_tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    asked = [{"role": "user", "content": "you are"}]
    answers = {name: [*asked, {"role": "assistant", "content": text}]
               for name, text in (("chosen", "my friend"), ("rejected", "a fool"))}
    table = write_lines(tmp_path / "pairs.jsonl", [{"prompt": asked, **answers} if with_prompt else answers])
    pairs = given_pairs(
        [PairTable(source=str(table), prompt_column="prompt" if with_prompt else None)], chat_tokenizer)
    [row] = dpo_step.pair_rows(chat_tokenizer, pairs, 64)
    assert (row["prompt_ids"].count(0), row["prompt_ids"][0]) == (1, 0)
    assert row["chosen_ids"].count(1) == row["rejected_ids"].count(1) == 1
    assert 0 not in row["chosen_ids"] + row["rejected_ids"]


def test_pairs_that_are_cut_or_left_out_are_counted(tiny_llama: Path) -> None:
    counts, tokenizer = Counter[str](), load_tokenizer(tiny_llama)
    pairs = [Pair("you", " are", " am", 0.0, "given"), Pair("you", f" {TEXTS[0]}", " am", 0.0, "given"),
             Pair("", "are", "am", 0.0, "given")]
    assert len(dpo_step.pair_rows(tokenizer, pairs, 6, counts=counts)) == 2
    assert counts == {"cut": 1, "left_out": 1}


def test_no_pair_names_the_sources_that_were_tried_and_what_helps_there(tmp_path: Path, tiny_llama: Path) -> None:
    some = write_lines(tmp_path / "some.jsonl", [{"text": "a", "original": "a", "action": "kept"}])

    def failure(**dpo: Any) -> str:
        recipe = small_recipe(tmp_path / "data", tiny_llama, dpo={"max_pairs": 0, **dpo})
        with pytest.raises(DetoxError, match="no preference pair") as caught:
            make_pairs(recipe.training.dpo, adapter=tiny_llama, records=some, prompts=some,
                       sampling=recipe.evaluation.sampling, scorer=recipe.scoring.training, seed=recipe.seed)
        return str(caught.value)

    rewrites = failure()
    assert "no rewritten record" in rewrites
    assert "margin" not in rewrites
    assert "no source of pairs is on" in failure(rewrite_pairs=0)


def test_the_answers_of_a_conversation_are_learned_and_nothing_else(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "you idiot"}, {"role": "assistant", "content": "no thanks"},
                {"role": "user", "content": "why"}, {"role": "assistant", "content": "because"}]
    [row] = encode(chat_tokenizer, [{"messages": messages}], 200)
    assert chat_tokenizer.decode(row["input_ids"]) == (
        "<s>[INST] you idiot [/INST] no thanks </s><s>[INST] why [/INST] because </s>")
    assert learned(chat_tokenizer, row) == " no thanks </s> because </s>"


def test_a_conversation_needs_a_chat_template(tiny_llama: Path) -> None:
    with pytest.raises(DetoxError, match="no chat template"):
        encode(load_tokenizer(tiny_llama), [{"messages": [{"role": "assistant", "content": "hello"}]}], 64)


def test_records_of_every_format_are_read_and_empty_ones_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "mixed.jsonl", [
        {"text": "a text"}, {"prompt": "p", "completion": " c"}, {"prompt": "p", "completion": " "},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}]}, {"text": "x", "action": "dropped"}])
    examples, counts = training_texts(path)
    assert [sorted(record) for record in examples] == [["text"], ["completion", "prompt"], ["messages"]]
    assert counts == TextCounts(texts=3, dropped=1, empty=2)
    with pytest.raises(DetoxError, match="neither `text`"):
        training_texts(write_lines(tmp_path / "odd.jsonl", [{"body": "x"}]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=60))
def test_packing_keeps_every_text_whole_and_wastes_less_than_one_text_a_row(lengths: list[int]) -> None:
    rows = [{"input_ids": [n] * size, "labels": [n] * size, "length": size} for n, size in enumerate(lengths)]
    packed = pack(rows, 40)
    assert sorted(token for row in packed for token in row["input_ids"]) == sorted(
        token for row in rows for token in row["input_ids"])
    assert all(row["length"] == len(row["input_ids"]) == len(row["labels"]) <= 40 for row in packed)
    for row in packed:
        starts = [place for place, position in enumerate(row["position_ids"]) if position == 0]
        assert all(row["labels"][place] == IGNORED for place in starts)
        assert len({row["input_ids"][place] for place in starts}) == len(starts)
    assert sum(row["length"] <= 20 for row in packed) <= 1


def test_packed_texts_do_not_see_each_other(tiny_llama: Path) -> None:
    tokenizer, model = load_tokenizer(tiny_llama), load_model(tiny_llama)
    rows = tokenize(tokenizer, TEXTS, 32)
    batch = PackedBatches(1)(pack(rows, 40))
    assert len(batch["input_ids"]) < len(rows)
    together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    for row in rows:
        size = row["length"]
        place = next((line, start) for line in range(len(batch["input_ids"]))
                     for start in range(batch["input_ids"].shape[1])
                     if batch["input_ids"][line, start: start + size].tolist() == row["input_ids"])
        alone = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        assert torch.allclose(together[place[0], place[1]: place[1] + size], alone, atol=1e-4)


def test_packing_is_refused_for_a_model_whose_packed_texts_see_each_other(tmp_path: Path, tiny_llama: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    check_packing(load_model(tiny_llama))
    torch.manual_seed(0)
    OPTForCausalLM(OPTConfig(
        vocab_size=400, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, init_std=0.2)).save_pretrained(tmp_path / "opt")
    load_tokenizer(tiny_llama).save_pretrained(tmp_path / "opt")
    recipe = small_recipe(tmp_path / "data", tmp_path / "opt", sft={"max_length": 48, "packing": True})
    with pytest.raises(DetoxError, match="sees the texts before") as caught:
        sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    assert caught.value.place == "training.sft.packing"


def test_a_packed_step_has_the_loss_of_its_texts_and_counts_their_tokens(tmp_path: Path, tiny_llama: Path) -> None:
    outcomes = []
    for name, packing, size in (("plain", False, 8), ("packed", True, 8)):
        recipe = small_recipe(tmp_path / name, tiny_llama,
                              sft={
            "batch_size": size, "max_length": 48, "packing": packing, "learning_rate": 1e-2, "epochs": 3})
        outcomes.append(sft_step.train_sft(
            recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / name / "o"))
    assert outcomes[0].tokens == outcomes[1].tokens
    found = losses(tmp_path / "plain" / "o")
    assert len(found) == 3
    assert found == pytest.approx(losses(tmp_path / "packed" / "o"), rel=1e-3)


def test_accumulated_batches_make_one_step_with_the_loss_of_the_whole(tmp_path: Path, tiny_llama: Path) -> None:
    found = []
    for name, how in (("whole", {"batch_size": 6}), ("parts", {"batch_size": 2, "accumulation": 3})):
        recipe = small_recipe(tmp_path / name, tiny_llama, sft={
            "max_length": 32, "learning_rate": 1e-2, "epochs": 3, **how})
        sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / name / "o")
        found.append(losses(tmp_path / name / "o"))
    assert len(found[0]) == len(found[1]) == 3
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_steps_and_warm_up_are_what_the_recipe_says(tmp_path: Path) -> None:
    from llm_detox.recipe.training import SftSection

    def arguments(section: SftSection, rows: int) -> TrainingArguments:
        return training_arguments(TrainingArguments, section, rows=rows, seed=1, work=tmp_path)

    by_steps = arguments(SftSection(max_steps=1000, warmup_steps=5, optimizer="paged_adamw_8bit"), 40)
    assert (by_steps.max_steps, by_steps.warmup_steps, by_steps.optim) == (1000, 5, "paged_adamw_8bit")
    by_epochs = arguments(SftSection(epochs=5, batch_size=1, accumulation=2, warmup_ratio=0.03), 557)
    assert (by_epochs.max_steps, by_epochs.warmup_steps) == (-1, int(0.03 * 279 * 5))
