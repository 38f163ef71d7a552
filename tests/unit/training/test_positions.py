"""Texts that are longer than what a model reads: cut and counted in training and sampling, never an index error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import PreTrainedTokenizerBase

from llm_detox.errors import DetoxError
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.generation.models import load_model, load_tokenizer, model_folder, positions
from llm_detox.generation.sampling import Guide, sample_continuations
from llm_detox.recipe import Recipe
from llm_detox.recipe.evaluation import SamplingSection
from llm_detox.rephrase.paraphrase import causal_generate, seq2seq_generate
from llm_detox.rephrase.seq2seq import load_seq2seq, load_seq2seq_tokenizer
from llm_detox.training.dpo import DpoResult, train_dpo
from llm_detox.training.rewriters import train_experts, train_paraphraser
from llm_detox.training.sft import train_sft
from tests.helpers import tiny_rewriters
from tests.helpers.damage import copy_of, edit_json
from tests.helpers.sources import write_lines
from tests.helpers.tiny import save_tiny_llama
from tests.helpers.training import small_recipe

READ = 32  # tokens that the models read
LONG = "the train to the city leaves at noon and arrives in the evening " * 8


@pytest.fixture(scope="module", params=["opt", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with an embedding for each position, and none beyond."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("short") / request.param)
    shared: dict[str, Any] = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    made: Any = {
        "opt": lambda: transformers.OPTForCausalLM(transformers.OPTConfig(
            hidden_size=32, word_embed_proj_dim=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=READ, **shared)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
            n_embd=32, n_layer=1, n_head=2, n_positions=READ, **shared))}[request.param]()
    made.save_pretrained(folder)
    return folder


def recipe(folder: Path, model: Path) -> Recipe:
    stage = {"batch_size": 2, "max_length": 4 * READ, "learning_rate": 1e-3, "max_steps": 2}
    return small_recipe(
        folder, model, sft=stage,
        dpo={**stage, "margin": 0.0, "samples_per_prompt": 3, "max_prompt_length": 2 * READ, "max_pairs": 0})


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "texts.jsonl", [{"text": LONG}, {"text": "a fine day"}, {"text": "a walk " + LONG}])


def test_sft_and_dpo_cut_texts_at_what_the_model_reads_and_count_them(
    model: Path, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = recipe(tmp_path / "sources", model)
    sft = train_sft(settings, texts=texts, clean=None, output=tmp_path / "sft")
    assert (sft.texts, sft.cut, sft.left_out) == (3, 2, 0)
    assert f"training.sft.max_length is {4 * READ}, but the model reads {READ} tokens" in capsys.readouterr().err
    records = write_lines(tmp_path / "records.jsonl", [
        {"action": "rewritten", "original": f"{start} you stupid idiot {LONG}", "text": f"{start} my friend {LONG}",
         "scores": {"before": 0.9, "after": 0.1}} for start in ("well", LONG)])
    dpo = train_dpo(settings, adapter=tmp_path / "sft", records=records, prompts=None, clean=None,
                    output=tmp_path / "dpo")
    assert isinstance(dpo, DpoResult)
    assert (dpo.pairs["rewrite"], dpo.cut, dpo.left_out) == (2, 2, 0)
    assert "training.dpo.max_length cuts the beginning of 1 prompts off" in capsys.readouterr().err


def test_experts_cut_texts_at_what_the_model_reads(model: Path, tmp_path: Path) -> None:
    values = recipe(tmp_path / "sources", model).model_dump(mode="json")
    values["rephraser_training"] |= {"max_length": 4 * READ, "batch_size": 2}
    labelled = write_lines(tmp_path / "labelled.jsonl", [
        {"text": LONG, "toxic": False}, {"text": f"you stupid idiot {LONG}", "toxic": True}])
    result = train_experts(Recipe.model_validate(values), texts=labelled, output=tmp_path / "experts")
    assert result.expert.steps == 1


def test_an_evaluation_continues_prompts_at_and_beyond_the_limit_and_says_which_it_cut(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(model)
    ids = tokenizer(LONG)["input_ids"]
    prompts = write_lines(tmp_path / "prompts.jsonl", [
        {"prompt": tokenizer.decode(ids[:size])} for size in (READ - 7, READ - 6, READ - 5, READ - 1, READ, READ + 1)])
    clean = write_lines(tmp_path / "clean.jsonl", [{"text": tokenizer.decode(ids[:READ + 5])}])
    report = evaluate(recipe(tmp_path / "sources", model), model=str(model), arm="base", prompts=prompts, clean=clean,
                      output=tmp_path / "out")
    assert report.prompts == 6
    assert report.unscored == 0
    assert f"4 of 6 prompts lose their beginning: with 6 new tokens they are longer than the {READ}" in (
        capsys.readouterr().err)
    assert len((tmp_path / "out/generations.jsonl").read_text("utf-8").splitlines()) == 6


def sampled(model: Path, prompt: str, new_tokens: int, **options: Any) -> list[list[str]]:
    return sample_continuations(load_model(model), load_tokenizer(model), [prompt], k=2, seed=1,
                                sampling=SamplingSection(max_new_tokens=new_tokens), **options)


@pytest.mark.parametrize("new_tokens", [READ - 1, READ, READ + 8])
def test_continuations_that_leave_no_room_for_a_prompt_are_refused(model: Path, new_tokens: int) -> None:
    with pytest.raises(DetoxError, match="leave no room for a prompt"):
        sampled(model, "the train", new_tokens)


def test_a_guide_that_cannot_read_to_the_end_is_refused(model: Path, tiny_llama: Path) -> None:
    with pytest.raises(DetoxError, match=f"the guide reads {READ} tokens"):
        sampled(tiny_llama, "the train", READ, guide=Guide(load_model(model), [0], 1.0))


def test_a_cut_prompt_keeps_the_token_that_begins_every_text(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    monkeypatch.setattr("llm_detox.generation.sampling._prefill",
                        lambda network, prompts, new_tokens: seen.extend(prompts) or pytest.skip("seen"))
    tokenizer = with_beginning(load_tokenizer(model))
    with pytest.raises(pytest.skip.Exception):
        sample_continuations(load_model(model), tokenizer, [LONG], k=1, seed=1,
                             sampling=SamplingSection(max_new_tokens=6))
    assert len(seen[0]) == READ - 6
    assert seen[0] == [tokenizer.bos_token_id, *tokenizer(LONG)["input_ids"][-(READ - 7):]]


def with_beginning(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    from tokenizers.processors import TemplateProcessing

    start = str(tokenizer.bos_token)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)])
    return tokenizer


def test_variants_of_a_text_are_read_up_to_the_limit(model: Path) -> None:
    reader = LikelihoodReader(load_model(model), load_tokenizer(model))
    (short, long), = reader.variant_losses([[LONG, f"{LONG} and back"]])
    assert short[1] == long[1] == READ - 1


def test_a_question_that_is_too_long_for_a_paraphraser_gets_no_answer_instead_of_one_to_its_end(model: Path) -> None:
    generate = causal_generate(load_model(model), load_tokenizer(model), candidates=2, seed=1, chat=False,
                               sampling=SamplingSection(max_new_tokens=6))
    answers = generate(["Rude: you fool\nPolite:", f"Rude: {LONG}\nPolite:"])
    assert [len(texts) for texts in answers] == [2, 0]


def test_a_seq2seq_paraphraser_reads_up_to_its_positions_and_writes_no_further(tmp_path: Path) -> None:
    bart, words = tmp_path / "bart", tiny_rewriters.bart_tokenizer()
    tiny_rewriters.bart(0, words, positions=READ).save_pretrained(bart)
    words.save_pretrained(bart)
    tokenizer = load_seq2seq_tokenizer(str(bart))
    generate = seq2seq_generate(load_seq2seq(str(bart)), tokenizer, candidates=2, seed=1,
                                sampling=SamplingSection(max_new_tokens=4 * READ))
    whole = tokenizer.decode(tokenizer(LONG)["input_ids"][1:READ - 1])
    assert len(tokenizer(whole)["input_ids"]) == READ
    assert [len(texts) for texts in generate(["you fool", whole, LONG])] == [2, 2, 0]
    rows = write_lines(tmp_path / "pairs.jsonl", [{"toxic": LONG, "neutral": LONG}, {"toxic": "you", "neutral": "me"}])
    values = recipe(tmp_path / "sources", bart).model_dump(mode="json")
    values["rephraser_training"] |= {"max_length": 4 * READ, "batch_size": 2}
    result = train_paraphraser(Recipe.model_validate(values), pairs=rows, output=tmp_path / "paraphraser")
    assert result.pairs == 2


@pytest.mark.parametrize("asked", [None, READ, 4 * READ])
def test_the_engine_takes_no_longer_sequences_than_there_are_positions(model: Path, asked: int | None) -> None:
    from serving.engine.backend_transformers import Model
    from serving.engine.settings import Settings
    from serving.engine.source import Source

    served = Model(Source(str(model)), Settings("m", "127.0.0.1", max_sequence_length=asked))
    assert served.max_sequence_length == READ


def test_positions_that_the_weights_do_not_have_are_refused_before_anything_is_loaded(
    model: Path, tmp_path: Path
) -> None:
    folder = copy_of(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    [name] = config.keys() & {"max_position_embeddings", "n_positions"}
    edit_json(folder / "config.json", **{name: 4 * READ})
    with pytest.raises(DetoxError, match=f"max_position_embeddings is {4 * READ}, but .* has {READ}|{READ + 2} rows"):
        model_folder(str(folder))


def test_the_length_is_read_by_every_name_that_configurations_have_for_it(model: Path) -> None:
    assert positions(load_model(model).config) == READ
    assert positions(transformers.MptConfig(max_seq_len=77)) == 77
    assert json.loads((model / "config.json").read_text("utf-8")).keys() & {"max_position_embeddings", "n_positions"}
