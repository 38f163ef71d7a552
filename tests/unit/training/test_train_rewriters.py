"""Training experts and paraphrasers, generators as methods, and causal experts as adapters on one base."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_detox.errors import DetoxError
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.recipe.rephrase import ParaphraseSection
from llm_detox.rephrase.build import MethodFactory
from llm_detox.rephrase.causal import adapter_readers
from llm_detox.rephrase.fit import IGNORED, fit
from llm_detox.rephrase.paraphrase import Generator, Generators, first_line
from llm_detox.rephrase.seq2seq import load_seq2seq, load_seq2seq_tokenizer
from llm_detox.training import train_rewriters
from tests.helpers import tiny_rewriters as tiny
from tests.helpers.rewriters import recipe


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    yield from tiny.one_thread()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    tiny.causal_folder(folder / "causal")
    words = tiny.bart_tokenizer()
    tiny.bart(0, words).save_pretrained(folder / "bart")
    words.save_pretrained(folder / "bart")
    (folder / "texts.jsonl").write_text("".join(
        json.dumps({"text": text, "toxic": toxic}) + "\n" for text, toxic in tiny.sentences(60)), "utf-8")
    (folder / "pairs.tsv").write_text("toxic\tneutral1\tneutral2\n" + "".join(
        f"{text}\tgood friend\tnice friend\n" for text, toxic in tiny.sentences(20) if toxic), "utf-8")
    return folder


def test_causal_experts_share_one_base_and_tell_the_classes_apart(place: Path, tmp_path: Path) -> None:
    result = train_rewriters.train_experts(recipe(place / "causal"), texts=place / "texts.jsonl",
        output=tmp_path / "out")
    for name in ("expert", "anti_expert"):
        assert result[name]["loss_last"] < result[name]["loss_first"]
        assert (tmp_path / "out" / name / "adapter_model.safetensors").exists()
    model = AutoModelForCausalLM.from_pretrained(place / "causal").eval()
    engine = LikelihoodReader(model, AutoTokenizer.from_pretrained(place / "causal"))
    [before] = engine.next_log_probs([engine.ids("you are a")], [[2]])
    readers = adapter_readers(engine, {name: str(tmp_path / "out" / name) for name in ("expert", "anti_expert")})
    shares: dict[bool, list[float]] = {True: [], False: []}
    for text in [text for text, toxic in tiny.sentences(40, seed=8) if toxic]:
        ids = engine.ids(text)
        [expert], [anti] = (readers[name].next_log_probs([ids], [range(len(ids) - 1)])
                            for name in ("expert", "anti_expert"))
        for place, token in enumerate(ids[1:]):
            word = str(engine.tokenizer.decode([token])).strip().lower()
            shares[word in tiny.TOXIC].append(float(anti[place, token] - expert[place, token]))
    mean = {toxic: sum(values) / len(values) for toxic, values in shares.items()}
    assert mean[True] > mean[False] + 0.4, mean
    [after] = engine.next_log_probs([engine.ids("you are a")], [[2]])
    torch.testing.assert_close(before, after)  # the adapters are off where none is asked


def test_seq2seq_experts_learn_to_fill_holes(place: Path, tmp_path: Path) -> None:
    train_rewriters.train_experts(recipe(place / "bart"), texts=place / "texts.jsonl", output=tmp_path / "out")
    for name in ("expert", "anti_expert"):
        folder = str(tmp_path / "out" / name)
        assert load_seq2seq(folder).config.is_encoder_decoder
        assert load_seq2seq_tokenizer(folder).mask_token == "<mask>"


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_paraphraser_says_what_its_pairs_say(
        place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """All pairs answer "good friend" or "nice friend": so must it, through the method of the recipe."""
    settings = {"learning_rate": 2e-2, "epochs": 12, "batch_size": 8, "lora": {"r": 8, "alpha": 16},
                "precision": precision}
    bases = []
    monkeypatch.setattr(train_rewriters, "fit", lambda model, *rest, **how: (
        bases.append(model.get_base_model().dtype), fit(model, *rest, **how))[1])
    trained = recipe(place / "causal", rephraser_training=settings)
    result = train_rewriters.train_paraphraser(trained, pairs=place / "pairs.tsv", output=tmp_path / "out")
    assert result["pairs"] == 20
    assert bases == [{"float32": torch.float32, "bf16": torch.bfloat16}[precision]]
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {weights.dtype for weights in adapter.values()} == {torch.float32}  # bf16 would lose small updates
    asked = recipe(place / "causal", detoxify={"paraphrase": {
        "model": str(tmp_path / "out"), "candidates": 2, "max_new_tokens": 6, "temperature": 0.1}})
    method = MethodFactory(asked).method("paraphrase")
    answers = [answer for group in method.candidates(["You are a stupid man.", "The idiot was here."])
               for answer in group]
    assert answers
    assert any("friend" in answer for answer in answers)


def test_only_the_polite_half_of_a_pair_counts(place: Path) -> None:
    words = AutoTokenizer.from_pretrained(place / "causal")
    row = train_rewriters.pair_row(words, "you idiot", "you friend", 100)
    counted = [token for token in row.labels if token != IGNORED]
    assert words.decode(counted[:-1]).strip() == "you friend"
    assert counted[-1] == words.eos_token_id
    assert len(row.labels) == len(row.input_ids)


def test_experts_need_both_classes(place: Path, tmp_path: Path) -> None:
    (tmp_path / "clean.jsonl").write_text('{"text": "fine", "toxic": false}\n', "utf-8")
    with pytest.raises(DetoxError, match="no toxic text"):
        train_rewriters.train_experts(recipe(place / "causal"), texts=tmp_path / "clean.jsonl", output=tmp_path / "out")
    (tmp_path / "pairs.tsv").write_text("toxic\tneutral1\n", "utf-8")
    with pytest.raises(DetoxError, match="no pairs"):
        train_rewriters.train_paraphraser(
            recipe(place / "causal"), pairs=tmp_path / "pairs.tsv", output=tmp_path / "out")


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(0, 1000))
def test_holes_hide_words_and_change_none(words: list[str], seed: int) -> None:
    left = train_rewriters.with_holes(words, "<mask>", random.Random(seed)).split()
    kept = [word for word in left if word != "<mask>"]
    remaining = iter(words)
    assert all(word in remaining for word in kept)  # in their order
    assert "<mask>" in left
    assert len(words) - len(kept) <= max(1, round(0.3 * len(words)))


def test_answers_become_candidates() -> None:
    def generate(questions: Sequence[str]) -> list[list[str]]:
        assert questions == ["Say: you fool"]
        return [[' "Hello there."\nmore', "Hello there.", "\n\n", "Hi"]]

    assert Generator("instruct", "Say: {text}", generate).candidates(["you\nfool"]) == [["Hello there.", "Hi"]]
    assert first_line("") == ""
    assert first_line("“Hi there”") == "Hi there"
    assert first_line('"One" and "two"') == '"One" and "two"'


def test_rewrites_of_several_generators_compete_each_once() -> None:
    one = Generator("paraphrase", "{text}", lambda questions: [[f"{text} a", f"{text} b"] for text in questions])
    other = Generator("paraphrase", "{text}", lambda questions: [[f"{text} b", f"{text} c"] for text in questions])
    both = Generators([one, other])
    assert both.name == "paraphrase"
    assert both.candidates(["x", "y"]) == [["x a", "x b", "x c"], ["y a", "y b", "y c"]]


def test_other_paraphrasers_beside_an_endpoint_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave out `also` or `url`"):
        ParaphraseSection(url="http://localhost:1", also=["somewhere"])
