"""Preference pairs: the chosen text is less toxic, comes from the same prompt, and nothing is lost on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_tokenizer
from llm_detox.recipe.training import DpoSection
from llm_detox.training.dpo import pair_rows
from llm_detox.training.pairs import Pair, prompt_texts, rewrite_pairs, sampled_pairs

SCORES = st.one_of(st.none(), st.floats(0, 1))


def rewritten(text: str, original: str, before: float = 0.9, after: float = 0.1) -> dict[str, object]:
    return {"text": text, "original": original, "action": "rewritten",
            "scores": {"toxicity_before": before, "toxicity_after": after}}


def test_a_rewrite_is_preferred_to_its_original_from_the_word_where_they_part() -> None:
    [pair] = rewrite_pairs([rewritten("you are a kind man", "you are a stupid man")], 9)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("you are a", " kind man", " stupid man")
    assert pair.margin == pytest.approx(0.8)


def test_a_rewrite_without_a_common_beginning_or_without_a_rest_makes_no_pair() -> None:
    records = [rewritten("kind man", "stupid man"), rewritten("go away", "go away you idiot"),
               {**rewritten("a b", "a c"), "action": "kept"}, {**rewritten("a b", "a c"), "action": "dropped"}]
    assert rewrite_pairs(records, 9) == []


def test_the_rewrites_whose_toxicity_falls_most_are_taken_first() -> None:
    records = [rewritten(f"so it is {n}", f"so it was {n}", after=0.1 * n) for n in range(5)]
    assert [pair.chosen for pair in rewrite_pairs(records, 2)] == [" is 0", " is 1"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(SCORES, min_size=3, max_size=6), min_size=1, max_size=6), st.floats(0, 1),
       st.integers(1, 3), st.integers(1, 8))
def test_chosen_is_less_toxic_by_the_margin_and_limits_hold(
        values: list[list[float | None]], margin: float, per_prompt: int, most: int) -> None:
    texts = [[f"continuation {i} number {j}" for j in range(len(row))] for i, row in enumerate(values)]
    score = {text: value for row, scores in zip(texts, values, strict=True)
             for text, value in zip(row, scores, strict=True)}
    prompts = [f"prompt {i}" for i in range(len(values))]
    limits = DpoSection(margin=margin, pairs_per_prompt=per_prompt, max_pairs=most)
    pairs = sampled_pairs(prompts, texts, values, limits)
    assert len(pairs) <= most
    for pair in pairs:
        low, high = score[pair.chosen], score[pair.rejected]
        assert low is not None
        assert high is not None
        assert high - low == pytest.approx(pair.margin)
        assert pair.margin >= margin
        assert pair.chosen != pair.rejected
        assert {pair.chosen, pair.rejected} <= set(texts[prompts.index(pair.prompt)])
    for prompt in prompts:
        mine = [text for pair in pairs if pair.prompt == prompt for text in (pair.chosen, pair.rejected)]
        assert len(mine) <= 2 * per_prompt


def test_an_almost_empty_continuation_is_never_the_one_to_prefer() -> None:
    texts = [["", " .", " a decent sentence here", " you stupid idiot"]]
    [pair] = sampled_pairs(["p"], texts, [[0.0, 0.01, 0.1, 0.9]], DpoSection(margin=0.3))
    assert pair.chosen == " a decent sentence here"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["you", "stupid", "kind", "fox", "day", "walk", "park"]), min_size=1, max_size=30),
       st.lists(st.sampled_from(["fine", "friend", "idiot", "moron"]), min_size=1, max_size=20), st.integers(8, 40))
def test_rows_keep_the_end_of_the_prompt_and_put_no_end_behind_a_completion(
        tiny_llama: Path, prompt: list[str], completion: list[str], longest: int) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    pair = Pair(" ".join(prompt), " " + " ".join(completion), " some other text", 0.5, "sampled")
    [row] = pair_rows(tokenizer, [pair], longest)
    whole = tokenizer(pair.prompt + pair.chosen)["input_ids"]
    joined = row["prompt_ids"] + row["chosen_ids"]
    start = next(n for n in range(len(whole)) if whole[n: n + len(joined)] == joined)
    assert len(joined) <= longest
    assert len(row["prompt_ids"]) <= max(1, longest // 2)
    assert start == max(0, len(tokenizer(pair.prompt)["input_ids"]) - longest // 2)
    assert tokenizer.eos_token_id not in joined + row["rejected_ids"]


def test_prompts_are_read_from_records_and_from_plain_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": {"text": " one ", "toxicity": 0.7}}\n{"prompt": "two"}\n{"prompt": {"text": ""}}\n')
    assert prompt_texts(path) == ["one", "two"]
    path.write_text("\n")
    with pytest.raises(DetoxError, match="no prompts"):
        prompt_texts(path)
