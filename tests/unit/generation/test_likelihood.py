"""Fluency: losses are the model's own, whatever the batches, and add up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_detox.errors import DetoxError
from llm_detox.generation import likelihood
from llm_detox.generation.generators import LocalGenerator, variant_losses
from llm_detox.generation.likelihood import LikelihoodReader, perplexity_of
from llm_detox.generation.models import load_model, load_tokenizer


@pytest.fixture(scope="module")
def reader(tiny_llama: Path) -> LikelihoodReader:
    return LikelihoodReader(load_model(str(tiny_llama)), load_tokenizer(str(tiny_llama)))


PASSAGES = ["the quick brown fox jumps", "a", "", "what a fine day for a walk in the park with my friends", "you are"]


def test_losses_are_those_of_the_model_one_text_at_a_time(reader: LikelihoodReader) -> None:
    for text, (loss, count) in zip(PASSAGES, reader.losses(PASSAGES), strict=True):
        tokens = reader.tokenizer(text)["input_ids"] if text else []
        assert count == max(len(tokens) - 1, 0)
        if count:
            ids = torch.tensor([tokens])
            expected = float(reader.model(input_ids=ids, labels=ids).loss.detach()) * count
            assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 25, 10_000])
def test_neither_batches_nor_pieces_change_the_losses(reader: LikelihoodReader, batch_tokens: int,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reader.losses(PASSAGES)
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 1)
    other = LikelihoodReader(reader.model, reader.tokenizer, batch_tokens=batch_tokens)
    for (left, count), (right, same) in zip(whole, other.losses(PASSAGES), strict=True):
        assert (right, same) == (pytest.approx(left, rel=1e-4), count)


def test_context_and_text_add_up_to_the_whole(reader: LikelihoodReader) -> None:
    context, text = "the quick brown", " fox jumps over"
    (whole,), (before,) = reader.losses([context + text]), reader.losses([context])
    ((after, count),) = reader.losses([text], contexts=[context])
    assert after + before[0] == pytest.approx(whole[0], rel=1e-4)
    assert count + before[1] == whole[1]


GROUPS = [["Question: who are you?", "Question: who are you? a fine day", "Question: who are you? the park"],
          ["the train", "the train leaves at noon", "the train is late", "the train"]]


def test_a_beginning_that_is_read_once_changes_no_loss(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, counted = LocalGenerator(str(tiny_llama)), list[int]()
    together = variant_losses(generator, GROUPS, counted.append)
    alone = [[variant_losses(generator, [[text]])[0][0] for text in group] for group in GROUPS]
    for left, right in zip(together, alone, strict=True):
        assert [count for _, count in left] == [count for _, count in right]
        assert [loss for loss, _ in left] == pytest.approx([loss for loss, _ in right], abs=1e-3)
    assert sum(counted) == 7
    monkeypatch.setattr(LikelihoodReader, "reads_trees", lambda self: False)
    texts = [text for group in GROUPS for text in group]
    by_itself = [loss for group in variant_losses(generator, GROUPS) for loss in group]
    assert by_itself == generator.losses(texts)


@pytest.mark.parametrize("broken", ["sees other variants", "takes no such mask"])
def test_a_model_that_does_not_read_trees_rightly_is_noticed(
        reader: LikelihoodReader, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    assert reader.reads_trees()
    forward = reader.model.forward

    def other(*, attention_mask: torch.Tensor, **inputs: Any) -> Any:
        if broken == "takes no such mask":
            raise ValueError("a mask of two dimensions is needed")
        return forward(attention_mask=None, **inputs)

    monkeypatch.setattr(reader.model, "forward", other)
    assert not reader.reads_trees()


def test_perplexity_weighs_texts_by_their_tokens() -> None:
    assert perplexity_of([(math.log(2) * 3, 3), (math.log(8) * 1, 1), (0.0, 0)]) == pytest.approx(2 ** (6 / 4))
    with pytest.raises(DetoxError, match="no text"):
        perplexity_of([(0.0, 0)])
