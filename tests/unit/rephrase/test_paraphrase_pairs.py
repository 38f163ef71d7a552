"""Preference pairs from a paraphraser's own rewrites, and that `dpo` learns from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_detox.data.records import Record, read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.generation.models import load_model, load_tokenizer
from llm_detox.recipe import Recipe
from llm_detox.rephrase import paraphrase_pairs as step
from llm_detox.rephrase.build import MethodFactory
from llm_detox.rephrase.detoxify import outcomes
from llm_detox.runs.artifacts import ParaphrasesFolder
from llm_detox.training.dpo import train_dpo
from llm_detox.training.rewriters import train_paraphraser
from tests.helpers import tiny_rewriters as tiny
from tests.helpers.training import losses

CANDIDATES = 6


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    yield from tiny.one_thread()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny paraphraser, and the pairs that it learnt from."""
    folder = tmp_path_factory.mktemp("preferences")
    tiny.causal_folder(folder / "causal")
    rude = [text for text, toxic in tiny.sentences(24) if toxic]
    (folder / "pairs.tsv").write_text("toxic\tneutral1\tneutral2\n" + "".join(
        f"{text}\t{text.split()[0]} good friend\tnice idiot\n" for text in rude), "utf-8")
    train_paraphraser(recipe(folder), pairs=folder / "pairs.tsv", output=folder / "paraphraser")
    return folder


def recipe(place: Path, *, accept_toxicity: float = 0.3, url: str | None = None, **training_section: Any) -> Recipe:
    return Recipe.model_validate({
        "name": "tiny", "model": {"source": str(place / "causal")},
        "data": {"texts": {"source": "nowhere"}, "prompts": {"sources": ["x"]}, "clean": {"sources": ["x"]}},
        "scoring": {"training": {"kind": "ngram"}, "judging": {"kind": "bilstm"}},
        "detoxify": {"accept_toxicity": accept_toxicity, "accept_similarity": 0, "accept_fluency": 1e9,
                     "similarity_model": None, "tidy": True,
                     "paraphrase": {"url": url, "model": str(place / "paraphraser"), "candidates": CANDIDATES,
                                    "max_new_tokens": 8, "temperature": 1.0}},
        "rephraser_training": {"learning_rate": 2e-2, "epochs": 4, "batch_size": 8, "lora": {"r": 8, "alpha": 16}},
        "training": {"quantization": "none", **training_section},
    })


@pytest.fixture(scope="module")
def ranked(place: Path) -> Path:
    step.paraphrase_pairs(recipe(place), pairs=place / "pairs.tsv", output=place / "ranked")
    return place / "ranked"


def test_candidates_stand_in_the_order_that_acceptance_gives_them(place: Path, ranked: Path) -> None:
    records = list(read_jsonl(ParaphrasesFolder(ranked).ranked))
    rude = [line.split("\t")[0] for line in (place / "pairs.tsv").read_text("utf-8").splitlines()[1:]]
    assert [record["text"] for record in records] == list(dict.fromkeys(rude))
    assert any(one["refused"] for record in records for one in record["candidates"])
    for record in records:
        refused = [one["refused"] is not None for one in record["candidates"]]
        assert refused == sorted(refused)
        texts = {one["text"] for one in record["candidates"]}
        people = {f"{record['text'].split()[0]} good friend", "nice idiot"}
        assert {text.lower().rstrip(".") for text in texts} >= {text.lower() for text in people}
        assert len(texts) <= CANDIDATES + len(people)
    manifest = json.loads((ranked / "manifest.json").read_text("utf-8"))
    assert manifest["counts"]["pairs"] == len(list(read_jsonl(ParaphrasesFolder(ranked).pairs))) > 0
    assert manifest["counts"]["texts"] == len(records)


def candidate(text: str, refused: str | None = None) -> Record:
    return {"text": text, "refused": refused}


def test_of_many_candidates_the_best_is_paired_with_the_end_of_the_first_quarter_too() -> None:
    many = [candidate(letter) for letter in "abcdefgh"]
    for candidates, rejected in ((many, [" h", " e", " c"]), (many[:7], [" g", " d"])):
        found = list(step.preferences([{"text": "t", "candidates": candidates}]))
        assert [(pair["chosen"], pair["rejected"]) for pair in found] == [(" a", worse) for worse in rejected]


def test_the_best_is_paired_with_the_worst_and_with_the_middle() -> None:
    record = {"text": "you\nfool", "candidates": [
        candidate("a"), candidate("b"), candidate("c"), candidate("d", "toxic"), candidate("e", "toxic")]}
    assert list(step.preferences([record])) == [
        {"prompt": "Rude: you fool\nPolite:", "chosen": " a", "rejected": " e"},
        {"prompt": "Rude: you fool\nPolite:", "chosen": " a", "rejected": " c"}]


@pytest.mark.parametrize(("candidates", "chosen"), [
    ([], []),
    ([candidate("a"), candidate("b")], []),
    ([candidate("a", "toxic"), candidate("b", "toxic"), candidate("c", "toxic")], []),
    ([candidate("a"), candidate("b", "toxic"), candidate("c", "toxic")], [" a", " a"]),
])
def test_what_was_refused_is_never_chosen_and_few_candidates_make_no_pair(
        candidates: list[Record], chosen: list[str]) -> None:
    found = list(step.preferences([{"text": "t", "candidates": candidates}]))
    assert [pair["chosen"] for pair in found] == chosen


def test_the_two_best_that_were_accepted_are_learnt_from() -> None:
    found = list(step.best([
        {"text": "t", "candidates": [candidate("a"), candidate("b"), candidate("c")]},
        {"text": "u", "candidates": [candidate("a"), candidate("b", "toxic")]},
        {"text": "v", "candidates": [candidate("a", "toxic")]}, {"text": "w", "candidates": []}]))
    assert [(pair["toxic"], pair["neutral"]) for pair in found] == [("t", "a"), ("t", "b"), ("u", "a")]


def test_a_paraphraser_learns_from_its_best_rewrites(place: Path, ranked: Path, tmp_path: Path) -> None:
    further = recipe(place).model_dump(mode="json")
    further["rephraser_training"]["base"] = str(place / "paraphraser")
    result = train_paraphraser(Recipe.model_validate(further), pairs=ParaphrasesFolder(ranked).best,
                               output=tmp_path / "b")
    assert result.pairs == len(list(read_jsonl(ParaphrasesFolder(ranked).best))) > 0
    steps = losses(tmp_path / "b")
    an_epoch = len(steps) // 4
    assert sum(steps[-an_epoch:]) < sum(steps[:an_epoch])  # of the same pairs


def test_an_interrupted_ranking_goes_on_to_the_same_files(
        place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(*arguments: Any) -> Iterator[list[Record]]:
        yield next(outcomes(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_detox.rephrase.detoxify.CHUNK", 4)
    step.paraphrase_pairs(recipe(place), pairs=place / "pairs.tsv", output=tmp_path / "whole")
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(step, "outcomes", torn)
        step.paraphrase_pairs(recipe(place), pairs=place / "pairs.tsv", output=tmp_path / "out")
    left = (tmp_path / ".out.part" / ParaphrasesFolder.ranked).read_bytes()
    assert left.count(b"\n") == 4
    step.paraphrase_pairs(recipe(place), pairs=place / "pairs.tsv", output=tmp_path / "out")
    for name in (ParaphrasesFolder.ranked, ParaphrasesFolder.best, ParaphrasesFolder.pairs):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_dpo_takes_the_pairs_and_the_paraphraser_comes_to_prefer_the_chosen(
        place: Path, ranked: Path, tmp_path: Path) -> None:
    how = {"max_pairs": 0, "rewrite_pairs": 0, "epochs": 3, "batch_size": 4, "learning_rate": 1e-3,
           "pairs": [{"source": str(ParaphrasesFolder(ranked).pairs)}]}
    train_dpo(recipe(place, dpo=how), adapter=place / "paraphraser", records=None, prompts=None, clean=None,
              output=tmp_path / "better")
    words = load_tokenizer(tmp_path / "better")
    margins = []
    for folder in (place / "paraphraser", tmp_path / "better"):
        model = load_model(folder)
        margins.append(sum(log_probability(model, words, pair["prompt"], pair["chosen"])
                           - log_probability(model, words, pair["prompt"], pair["rejected"])
                           for pair in read_jsonl(ParaphrasesFolder(ranked).pairs)))
    assert margins[1] > margins[0] + 1


def log_probability(model: Any, words: Any, prompt: str, answer: str) -> float:
    ids = torch.tensor([words(prompt + answer)["input_ids"]])
    start = len(words(prompt)["input_ids"])
    with torch.inference_mode():
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return float(scores[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum())


def test_pairs_need_a_causal_paraphraser_and_a_source_that_was_given(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="causal paraphraser"):
        step.paraphrase_pairs(recipe(place, url="http://127.0.0.1:1"), pairs=place / "pairs.tsv",
                              output=tmp_path / "out")
    for settings, what in (({"max_pairs": 0}, "records"), ({"rewrite_pairs": 0}, "prompts")):
        with pytest.raises(DetoxError, match=f"no {what} to make preference pairs of"):
            train_dpo(recipe(place, dpo=settings), adapter=place / "paraphraser", records=None, prompts=None,
                      clean=None, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_text_that_gives_no_pair_at_all_is_told(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="no preference pair could be made"):
        step.paraphrase_pairs(recipe(place, accept_toxicity=0.0), pairs=place / "pairs.tsv", output=tmp_path / "out")


def test_a_fluency_model_reads_along_with_a_paraphraser_of_its_vocabulary(place: Path, tmp_path: Path) -> None:
    texts = [text for text, toxic in tiny.sentences(24) if toxic]
    alone, guided = (MethodFactory(weighted(place, weight)).link("paraphrase").candidates(texts)
                     for weight in (0.0, 3.0))
    assert alone != guided
    other = tiny.causal_folder(tmp_path / "other")
    words = tiny.tokenizer(["<|stop|>"])
    words.add_special_tokens({"eos_token": "<|stop|>", "bos_token": "<|stop|>", "pad_token": "<|stop|>"})
    words.save_pretrained(other)
    with pytest.raises(DetoxError, match="another vocabulary"):
        MethodFactory(weighted(place, 1.0, fluency_model=str(other))).link("paraphrase").candidates(texts)
    with pytest.raises(ValueError, match="an endpoint samples without it"):
        weighted(place, 1.0, url="http://127.0.0.1:1")


def weighted(place: Path, weight: float, *, url: str | None = None, fluency_model: str | None = None) -> Recipe:
    plain = recipe(place).model_dump(mode="json")
    plain["detoxify"]["paraphrase"].update(fluency_weight=weight, url=url)
    plain["detoxify"]["fluency_model"] = fluency_model
    return Recipe.model_validate(plain)


def test_candidates_are_read_in_the_contexts_of_the_recipe(place: Path) -> None:
    plain = recipe(place).model_dump(mode="json")
    plain["detoxify"]["fluency_contexts"] = ["", "the people were "]
    workshop = MethodFactory(Recipe.model_validate(plain))
    texts = ["my house is good", "my house was here"]
    alone, behind = workshop.engine, LikelihoodReader(
        workshop.engine.model, workshop.engine.tokenizer, context="the people were ")
    expected = [(one + other) / 2 for (one, _), (other, _) in
                zip(alone.variant_losses([texts])[0], behind.variant_losses([texts])[0], strict=True)]
    assert [nll for nll, _ in workshop.fluency.variant_losses([texts])[0]] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx([nll for nll, _ in alone.variant_losses([texts])[0]], rel=1e-3)


def test_a_seq2seq_paraphraser_draws_alone(place: Path, tmp_path: Path) -> None:
    words = tiny.tokenizer(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tiny.bart(0, words).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    guided = weighted(place, 1.0).model_dump(mode="json")
    guided["detoxify"]["paraphrase"]["model"] = str(tmp_path)
    with pytest.raises(DetoxError, match="seq2seq paraphraser samples without it"):
        MethodFactory(Recipe.model_validate(guided)).link("paraphrase").candidates(["you fool"])


def test_the_models_that_draw_and_read_are_of_the_precision_asked_for(
        place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    texts = ["my house is good", "my house was here"]
    read = {}
    for precision, amx in (("float32", False), ("bf16", True), ("bf16", False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda amx=amx: {"amx_bf16": amx})
        plain = recipe(place).model_dump(mode="json")
        plain["detoxify"]["precision"] = precision
        workshop = MethodFactory(Recipe.model_validate(plain))
        assert workshop.link("paraphrase").candidates(texts[:1])
        assert workshop.engine.model.dtype is (torch.bfloat16 if precision == "bf16" and amx else torch.float32)
        assert capfd.readouterr().err.count("without AMX") == int(precision == "bf16" and not amx)  # of two models
        read[precision, amx] = [nll for nll, _ in workshop.fluency.variant_losses([texts])[0]]
    exact, coarse = read["float32", False], read["bf16", True]
    assert coarse == pytest.approx(exact, rel=.02) != pytest.approx(exact, rel=1e-6)
    assert read["bf16", False] == exact
