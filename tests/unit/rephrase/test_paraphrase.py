"""Generators as methods: questions, answers, and how they are drawn."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import BartForConditionalGeneration

from llm_detox.recipe.rephrase import ParaphraseSection
from llm_detox.rephrase.build import MethodFactory
from llm_detox.rephrase.paraphrase import Generator, Generators, first_line
from llm_detox.rephrase.seq2seq import load_seq2seq, load_seq2seq_tokenizer
from tests.helpers import tiny_rewriters as tiny
from tests.helpers.answering import caikit, http_server
from tests.helpers.rewriters import recipe

TEXTS = ["you are a stupid man", "the idiot was here", "my house is cold and your garden is old"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    yield from tiny.one_thread()


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paraphrase") / "bart"
    words = tiny.bart_tokenizer()
    tiny.bart(0, words).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def rewrites(base: Path, texts: Sequence[str] = TEXTS, **paraphrase: object) -> list[list[str]]:
    """What the method of a recipe offers, three candidates a text."""
    settings = recipe(base, detoxify={"paraphrase": {"candidates": 3, "max_new_tokens": 8, **paraphrase}})
    return MethodFactory(settings).method("paraphrase").candidates(texts)


def likeliest(base: Path) -> list[list[str]]:
    """The greedy answer to each text."""
    model, words = load_seq2seq(str(base)), load_seq2seq_tokenizer(str(base))
    answers = [model.generate(torch.tensor([words(text)["input_ids"]]), max_new_tokens=8, num_beams=1, do_sample=False)
               for text in TEXTS]
    return [[line] if (line := first_line(words.decode(answer[0], skip_special_tokens=True))) else []
            for answer in answers]


def test_a_seq2seq_paraphraser_draws_as_temperature_and_nucleus_say(bart: Path) -> None:
    assert rewrites(bart, temperature=1e-4) == rewrites(bart, temperature=1.5, top_p=1e-9) == likeliest(bart)
    many = rewrites(bart, temperature=1.5, top_p=1.0)
    assert all(len(group) == 3 for group in many)
    assert many != rewrites(bart, temperature=1.5, top_p=0.5)


def test_what_a_seq2seq_paraphraser_draws_does_not_hang_on_the_batch(
        bart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    generate = BartForConditionalGeneration.generate

    def counted(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        rows.append(len(input_ids))
        return generate(self, input_ids, **options)

    monkeypatch.setattr(BartForConditionalGeneration, "generate", counted)
    together = rewrites(bart, temperature=1.5)
    assert rows == [9]
    assert rewrites(bart, temperature=1.5, batch_tokens=1) == together
    assert rows[1:] == [3, 3, 3]
    assert rewrites(bart, TEXTS[1:2], temperature=1.5) == together[1:2]


def test_an_endpoint_gets_the_recipes_sampling_in_several_requests_at_once(tmp_path: Path) -> None:
    bodies: list[Any] = []
    together = threading.Barrier(3, timeout=20)  # one request at a time would never fill it

    def answer(handler: Any) -> None:
        bodies.append(handler.asked())
        together.wait()
        caikit([f"{bodies[-1]['inputs'].split()[1]} {handler.asked()['parameters']['seed']}"])(handler)

    with http_server(answer) as url:
        groups = rewrites(tmp_path, url=url, model="polite", temperature=0.4, top_p=0.6, max_new_tokens=5)
    assert [len(group) for group in groups] == [3, 3, 3]
    seeds = {body["parameters"].pop("seed") for body in bodies}
    assert len(seeds) == 9
    assert {body["model_id"] for body in bodies} == {"polite"}
    assert {json.dumps(body["parameters"], sort_keys=True) for body in bodies} == {json.dumps(
        {"decoding_method": "SAMPLING", "max_new_tokens": 5, "temperature": 0.4, "top_p": 0.6}, sort_keys=True)}
    assert sorted(body["inputs"] for body in bodies) == sorted(f"Rude: {text}\nPolite:" for text in TEXTS * 3)


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
