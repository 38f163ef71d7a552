"""The batched engine against one text at a time, and the rewriting on top of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llm_detox.generation.likelihood import ContextAveragedReader, LikelihoodReader
from llm_detox.rephrase.acceptance import Acceptance, Bounds
from llm_detox.rephrase.causal import CausalRewriter, Masking, Prompted
from llm_detox.rephrase.words import Delete
from tests.helpers import tiny_rewriters as tiny


class WordScorer:
    """1 for a text with a toxic word, 0 otherwise."""

    def score(self, texts: Sequence[str]) -> list[float | None]:
        return [float(any(word in text.lower() for word in tiny.TOXIC)) for text in texts]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    yield from tiny.one_thread()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> LikelihoodReader:
    folder = tiny.causal_folder(tmp_path_factory.mktemp("causal"))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return LikelihoodReader(model, AutoTokenizer.from_pretrained(folder), batch_tokens=64)


def slow_loss(engine: LikelihoodReader, text: str) -> tuple[float, int]:
    ids = torch.tensor([engine.ids(text)])
    if ids.shape[1] < 2:
        return 0.0, 0
    with torch.no_grad():
        logs = engine.model(input_ids=ids).logits.float().log_softmax(-1)
    return -float(logs[0, :-1].gather(-1, ids[0, 1:, None]).sum()), ids.shape[1] - 1


@pytest.mark.parametrize(("names", "first"), [
    ({"bos_token": "<s>", "eos_token": "</s>"}, "<s>"), ({"eos_token": "</s>"}, "</s>"), ({}, "fine"),
    ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}, "<|endoftext|>")])
def test_a_text_starts_where_texts_were_parted_and_not_where_a_turn_of_a_chat_begins(
        engine: LikelihoodReader, names: dict[str, str], first: str) -> None:
    words = {word: number for number, word in enumerate(["fine", "day", *names.values()])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words)), **names)
    assert LikelihoodReader(engine.model, tokenizer).ids("day") == [words[first], words["day"]]


CONTEXT = "the people were good "

words = st.lists(st.sampled_from(tiny.NEUTRAL + tiny.TOXIC), max_size=8).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(groups=st.lists(st.lists(words, min_size=1, max_size=3), max_size=5))
def test_packed_losses_equal_one_text_at_a_time(engine: LikelihoodReader, groups: list[list[str]]) -> None:
    engine.forget()
    for group, losses in zip(groups, engine.variant_losses(groups), strict=True):
        for text, (nll, tokens) in zip(group, losses, strict=True):
            expected, count = slow_loss(engine, text)
            assert tokens == count
            assert nll == pytest.approx(expected, abs=2e-3)


@settings(max_examples=15, deadline=None)
@given(groups=st.lists(st.lists(words, min_size=1, max_size=3), max_size=4))
def test_a_context_is_read_and_does_not_count(engine: LikelihoodReader, groups: list[list[str]]) -> None:
    behind = LikelihoodReader(engine.model, engine.tokenizer, context=CONTEXT, batch_tokens=64)
    before, given_tokens = slow_loss(behind, "")
    for group, losses in zip(groups, behind.variant_losses(groups), strict=True):
        for text, (nll, tokens) in zip(group, losses, strict=True):
            whole, count = slow_loss(behind, text)
            assert tokens == count - given_tokens
            assert nll == pytest.approx(whole - before, abs=2e-3)


def test_the_mean_over_the_contexts_counts(engine: LikelihoodReader) -> None:
    behind = LikelihoodReader(engine.model, engine.tokenizer, context=CONTEXT)
    texts = ["my house is good", "my house was here"]
    found = ContextAveragedReader([engine, behind]).variant_losses([texts])[0]
    for (nll, tokens), (first, count), (second, same) in zip(
            found, engine.variant_losses([texts])[0], behind.variant_losses([texts])[0], strict=True):
        assert nll == pytest.approx((first + second) / 2)
        assert tokens == count == same


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(words, min_size=1, max_size=5))
def test_packed_predictions_equal_one_text_at_a_time(engine: LikelihoodReader, texts: list[str]) -> None:
    prefixes = [engine.ids(text) for text in texts]
    found = engine.next_log_probs(prefixes, [[0, len(ids) - 1] for ids in prefixes])
    for ids, rows in zip(prefixes, found, strict=True):
        logs = engine.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        torch.testing.assert_close(rows, logs[[0, -1]], atol=1e-4, rtol=1e-4)


def test_candidates_lose_the_toxic_words_and_keep_the_others(engine: LikelihoodReader) -> None:
    method = CausalRewriter(engine, WordScorer(), Masking(0.5), proposals=3, candidates=6, fill_above=0)
    texts = ["You are a stupid friend.", "My house is good.", "The idiot was here today with some people."]
    groups = method.candidates(texts)
    assert groups[1] == []
    assert groups[0][0] == "You are a friend."
    assert len(groups[0]) == len(groups[2]) == 4
    for group in (groups[0], groups[2]):
        assert all(word not in text.lower() for text in group for word in tiny.TOXIC)
    assert all(text.endswith("here today with some people.") for text in groups[2])


def test_proposals_follow_the_product_of_experts(engine: LikelihoodReader) -> None:
    """With an expert of weight w the product is base + w * expert, read in left context."""
    text = "You are a stupid friend."
    expert = Prompted(engine, "very good")
    method = CausalRewriter(engine, WordScorer(), Masking(0.5), experts=[(-0.7, expert)], proposals=3, candidates=8,
                            fill_above=0)
    left = engine.ids("You are a")
    base = engine.model(input_ids=torch.tensor([left])).logits[0, -1].log_softmax(-1)
    anti = engine.model(input_ids=torch.tensor([engine.ids("very good") + left])).logits[0, -1].log_softmax(-1)
    product = base - 0.7 * anti
    vocabulary = [(product[i].item(), engine.tokenizer.decode(i).strip()) for i in method._word_ids]
    best = [word for _, word in sorted(vocabulary, reverse=True) if word not in tiny.TOXIC][:3]
    fillings = {candidate.split()[3] for candidate in method.candidates([text])[0] if len(candidate.split()) == 5}
    assert fillings == set(best)


def test_acceptance_names_the_bound_that_failed(engine: LikelihoodReader) -> None:
    class Half:
        def cosine(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
            return [0.9 if "friend" in text else 0.1 for text in b]

    original = "You are a stupid friend."
    group = ["You are a friend.", "You are an idiot.", "The river.", original]
    judged = Acceptance(WordScorer(), Half(), engine, Bounds(0.5, 0.6, math.inf)).judge([original], [group])[0]
    assert {one.text: one.refused for one in judged} == {
        "You are a friend.": None, "You are an idiot.": "toxic", "The river.": "not similar"}
    assert judged[0].text == "You are a friend."
    [[strict]] = Acceptance(WordScorer(), Half(), engine, Bounds(0.5, 0.6, 1e-9)).judge([original], [group[:1]])
    assert strict.refused == "not fluent"
    nll, tokens = slow_loss(engine, "You are a friend.")
    assert strict.perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-3)


def test_delete_leaves_out_the_fewest_words() -> None:
    method = Delete(WordScorer(), below=0.5, largest_share=0.5)
    assert method.candidates(["You are a stupid friend.", "Nice."]) == [["You are a friend."], []]

