"""Training experts and paraphrasers: what they learn, and causal experts as adapters on one base."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_detox.errors import DetoxError
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.recipe import Recipe
from llm_detox.rephrase.build import MethodFactory
from llm_detox.rephrase.causal import adapter_readers
from llm_detox.rephrase.paraphrase_pairs import TextPair, read_pairs
from llm_detox.rephrase.seq2seq import load_seq2seq, load_seq2seq_tokenizer
from llm_detox.training import rewriters, sft
from llm_detox.training.encoding import IGNORED
from llm_detox.training.rewriters import (
    completion_rows,
    read_classes,
    select_pairs,
    seq2seq_rows,
    train_experts,
    train_paraphraser,
    with_holes,
)
from tests.helpers import tiny_rewriters as tiny
from tests.helpers.rewriters import recipe
from tests.helpers.sources import write_lines
from tests.helpers.training import losses

make_trainer = sft.make_trainer


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
    texts = write_lines(tmp_path / "texts.jsonl", [
        {"text": text, "toxic": toxic} for text, toxic in tiny.sentences(160)])
    settings = {"learning_rate": 1e-2, "epochs": 8, "batch_size": 8, "lora": {"r": 8, "alpha": 16}}
    result = train_experts(recipe(place / "causal", rephraser_training=settings), texts=texts, output=tmp_path / "out")
    for name, figures in (("expert", result.expert), ("anti_expert", result.anti_expert)):
        assert figures.texts == 80
        assert figures.loss_last < figures.loss_first
        assert len(losses(tmp_path / "out" / name)) == figures.steps == 8 * 10
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
    result = train_experts(recipe(place / "bart"), texts=place / "texts.jsonl", output=tmp_path / "out")
    for name in ("expert", "anti_expert"):
        folder = str(tmp_path / "out" / name)
        assert load_seq2seq(folder).config.is_encoder_decoder
        assert load_seq2seq_tokenizer(folder).mask_token == "<mask>"
        assert load_file(f"{folder}/model.safetensors")["model.shared.weight"].dtype is torch.float32  # as the base
    assert result.expert.loss_last < result.expert.loss_first


def test_a_seq2seq_paraphraser_starts_at_its_bases_mean_loss_of_a_target_token(place: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-9, "epochs": 1, "batch_size": 20}
    model, words = load_seq2seq(str(place / "bart")), load_seq2seq_tokenizer(str(place / "bart"))
    model.config.dropout = 0.0
    model.save_pretrained(tmp_path / "bart")
    words.save_pretrained(tmp_path / "bart")
    train_paraphraser(recipe(tmp_path / "bart", rephraser_training=settings), pairs=place / "pairs.tsv",
                      output=tmp_path / "out")
    total, tokens = 0.0, 0
    for rude, polite in read_pairs(place / "pairs.tsv"):
        ids, labels = (words(text, return_tensors="pt")["input_ids"] for text in (rude, polite))
        total += model.eval()(input_ids=ids, labels=labels).loss.item() * labels.numel()
        tokens += labels.numel()
    assert losses(tmp_path / "out") == pytest.approx([total / tokens], rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_paraphraser_says_what_its_pairs_say(
        place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """All pairs answer "good friend" or "nice friend": so must it, through the method of the recipe."""
    settings = {"learning_rate": 2e-2, "epochs": 12, "batch_size": 8, "lora": {"r": 8, "alpha": 16},
                "precision": precision}
    bases = []
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(sft, "make_trainer", lambda model, *rest, **options: (
        bases.append(model.get_base_model().dtype), make_trainer(model, *rest, **options))[1])
    trained = recipe(place / "causal", rephraser_training=settings)
    result = train_paraphraser(trained, pairs=place / "pairs.tsv", output=tmp_path / "out")
    assert result.pairs == 20
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
    [row] = completion_rows(words, [("you idiot", "you friend")], 100, Counter())
    learned = [token for token in row["labels"] if token != IGNORED]
    assert words.decode(learned[:-1]) == " you friend"
    assert learned[-1] == words.eos_token_id
    assert words.decode(row["input_ids"][:-1]) == "Rude: you idiot\nPolite: you friend"


def test_long_pairs_are_cut_and_counted(place: Path) -> None:
    words, counts = load_seq2seq_tokenizer(str(place / "bart")), Counter[str]()
    pairs = [("you are a house", "you"), ("you", "you are a house"), ("you", "you")]
    rows = seq2seq_rows(words, pairs, 4, counts)
    assert [(len(row["input_ids"]), len(row["labels"])) for row in rows] == [(4, 3), (3, 4), (3, 3)]
    assert [row["length"] for row in rows] == [7, 7, 6]
    assert counts["cut"] == 2


def test_experts_need_both_classes(place: Path, tmp_path: Path) -> None:
    (tmp_path / "clean.jsonl").write_text('{"text": "fine", "toxic": false}\n', "utf-8")
    with pytest.raises(DetoxError, match="no toxic text"):
        train_experts(recipe(place / "causal"), texts=tmp_path / "clean.jsonl", output=tmp_path / "out")
    (tmp_path / "pairs.tsv").write_text("toxic\tneutral1\n", "utf-8")
    with pytest.raises(DetoxError, match="no pairs"):
        train_paraphraser(recipe(place / "causal"), pairs=tmp_path / "pairs.tsv", output=tmp_path / "out")


def test_experts_learn_no_text_with_both_labels(tmp_path: Path) -> None:
    labelled = [{"text": f"text number {number}", "toxic": number % 2 == 0} for number in range(60)]
    doubtful = [{"text": "doubtful", "toxic": True}, {"text": "Doubtful!", "toxic": False}]
    classes = read_classes(write_lines(tmp_path / "texts.jsonl", labelled + doubtful))
    assert {name: len(members) for name, members in classes.items()} == {"expert": 30, "anti_expert": 30}
    with pytest.raises(DetoxError, match="1 have both labels, of 2"):
        read_classes(write_lines(tmp_path / "texts.jsonl", [labelled[0], *doubtful]))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(0, 1000))
def test_holes_hide_words_and_change_none(words: list[str], seed: int) -> None:
    left = with_holes(words, "<mask>", random.Random(seed)).split()
    kept = [word for word in left if word != "<mask>"]
    remaining = iter(words)
    assert all(word in remaining for word in kept)  # in their order
    assert "<mask>" in left
    assert len(words) - len(kept) <= max(1, round(0.3 * len(words)))


RUDE = "You are a stupid man, and your house is cold."
GOOD = (RUDE, "You are a man, and your house is cold.")
STILL_RUDE = (RUDE, "You are a stupid idiot, and your house is cold.")
SOMETHING_ELSE = (RUDE, "People read a new book in the garden today.")


def bounded(folder: Path, **bounds: float) -> Recipe:
    source = str(tiny.labelled_csv(folder / "labelled.csv"))
    return recipe(folder, rephraser_training=bounds, scoring={
        "training": {"kind": "ngram", "source": source}, "judging": {"kind": "bilstm"}})


def chosen_of(recipe: Recipe, pairs: list[TextPair]) -> list[TextPair]:
    return select_pairs(pairs, recipe.rephraser_training, scorer=recipe.scoring.training,
                        encoder=recipe.detoxify.similarity_model, place="pairs.tsv")


def test_rude_rewrites_and_other_sentences_teach_nothing(tmp_path: Path) -> None:
    settings = bounded(tmp_path, pair_toxicity=0.5, pair_similarity=0.6)
    assert chosen_of(settings, [STILL_RUDE, GOOD, SOMETHING_ELSE]) == [GOOD]


def test_without_bounds_every_pair_teaches(tmp_path: Path) -> None:
    pairs = [STILL_RUDE, GOOD, SOMETHING_ELSE]
    assert sorted(chosen_of(bounded(tmp_path), pairs)) == sorted(pairs)


def test_the_choice_of_pairs_does_not_hang_on_their_order(tmp_path: Path) -> None:
    pairs = [(f"rude {number}", f"polite {number}") for number in range(40)]
    settings = bounded(tmp_path, max_pairs=7)
    chosen = chosen_of(settings, pairs)
    assert len(chosen) == 7
    assert chosen_of(settings, pairs[::-1]) == chosen
    assert {pair for pair in chosen if pair in pairs[:30]} <= set(
        chosen_of(settings, pairs[:30])), "more pairs push some out, and change no other"


def test_bounds_that_leave_nothing_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="none of 1 pairs is within the bounds") as refused:
        chosen_of(bounded(tmp_path, pair_toxicity=0.5), [STILL_RUDE])
    assert "pair_toxicity" in str(refused.value.remedy)


def test_all_rewrites_of_a_text_are_read_and_quotes_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text('toxic\tneutral1\tneutral2\tneutral3\na "rude\tb\t\tc\n\td\t\t\n', "utf-8")
    assert read_pairs(tmp_path / "pairs.tsv") == [('a "rude', "b"), ('a "rude', "c")]


def test_the_recipes_encoder_measures_how_alike_a_pair_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder:
        def __init__(self, source: str) -> None:
            self.source = source

        def cosine(self, one: list[str], other: list[str]) -> list[float]:
            assert self.source == "another encoder"
            return [float("house" in text) for text in other]

    monkeypatch.setattr(rewriters, "SentenceSimilarity", Encoder)
    (tmp_path / "pairs.tsv").write_text("toxic\tneutral\nyou fool\tyou\nmy stupid house\tmy house\n", "utf-8")
    tiny.causal_folder(tmp_path / "causal")
    settings = recipe(tmp_path / "causal", rephraser_training={"pair_similarity": 0.5},
                      detoxify={"similarity_model": "another encoder"})
    assert train_paraphraser(settings, pairs=tmp_path / "pairs.tsv", output=tmp_path / "out").pairs == 1
    with pytest.raises(DetoxError, match="no sentence encoder") as refused:
        chosen_of(recipe(tmp_path, rephraser_training={"pair_similarity": 0.5}, detoxify={"similarity_model": None}),
                  [GOOD])
    assert "detoxify.similarity_model" in str(refused.value.remedy)
