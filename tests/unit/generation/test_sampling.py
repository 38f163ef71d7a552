"""Sampling: the draw follows the nucleus distribution, and nothing but seed, key and number decides it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.cache_utils import DynamicLayer

from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_model, load_tokenizer, model_folder
from llm_detox.generation.next_token import draw, gumbel, row_key
from llm_detox.generation.sampling import Guide, RoomyLayer, roomy_cache, sample_continuations
from llm_detox.recipe.evaluation import SamplingSection

PROMPTS = ["the quick", "you are a stupid idiot and", "what", "the train to the city leaves", "thank you for the"]


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> tuple[Any, Any]:
    return load_model(str(tiny_llama)), load_tokenizer(str(tiny_llama))


def settings_of(**values: Any) -> SamplingSection:
    return SamplingSection(**{"max_new_tokens": 8, **values})


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 100_000])
def test_the_batch_size_does_not_change_the_sample(loaded: tuple[Any, Any], batch_tokens: int) -> None:
    whole = sample_continuations(*loaded, PROMPTS, k=5, sampling=settings_of(), seed=3)
    assert sample_continuations(*loaded, PROMPTS, k=5, sampling=settings_of(batch_tokens=batch_tokens), seed=3) == whole


def test_neither_order_nor_sharding_nor_more_continuations_change_the_sample(loaded: tuple[Any, Any]) -> None:
    whole = sample_continuations(*loaded, PROMPTS, k=4, sampling=settings_of(), seed=3)
    backwards = sample_continuations(*loaded, PROMPTS[::-1], k=4, sampling=settings_of(), seed=3)
    assert backwards[::-1] == whole
    shards = [sample_continuations(*loaded, PROMPTS[part::2], k=4, sampling=settings_of(), seed=3) for part in (0, 1)]
    assert [shards[i % 2][i // 2] for i in range(len(PROMPTS))] == whole
    more = sample_continuations(*loaded, PROMPTS, k=9, sampling=settings_of(), seed=3)
    assert [texts[:4] for texts in more] == whole


def test_seed_key_and_number_each_change_the_sample(loaded: tuple[Any, Any]) -> None:
    prompts = ["the quick brown fox"] * 2
    first, second = sample_continuations(*loaded, prompts, k=3, sampling=settings_of(), seed=1, keys=["a", "b"])
    assert len({*first, *second}) == 6
    assert sample_continuations(*loaded, prompts[:1], k=3, sampling=settings_of(), seed=2, keys=["a"])[0] != first


def test_the_sample_is_that_of_an_uncached_loop_over_the_full_distribution(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    tokens = tokenizer("the train to")["input_ids"]
    expected = uncached(tokenizer, "the train to", lambda drawn: model(torch.tensor([tokens + drawn])).logits[0, -1])
    got = sample_continuations(model, tokenizer, ["the train to"], k=1, sampling=settings_of(), seed=11, keys=["k"])
    assert got == [[expected]]


def uncached(tokenizer: Any, prompt: str, logits_behind: Callable[[list[int]], torch.Tensor]) -> str:
    """What seed 11 draws behind the prompt for the key "k", all of the distribution sorted at each token."""
    tokens, drawn = tokenizer(prompt)["input_ids"], []
    with torch.inference_mode():
        for step in range(8):
            probabilities = logits_behind(drawn).softmax(-1)
            order = probabilities.argsort(descending=True)
            nucleus = order[: int((probabilities[order].cumsum(0) < 0.9).sum()) + 1]
            noise = gumbel(torch.tensor([row_key(11, "k", 0)]), step, nucleus[None])[0]
            token = int(nucleus[(probabilities[nucleus].double().log() + noise).argmax()])
            if token == tokenizer.eos_token_id:
                break
            drawn.append(token)
    return str(tokenizer.decode(tokens + drawn)[len(prompt):].rstrip("\ufffd"))


@pytest.fixture(scope="module")
def guide(loaded: tuple[Any, Any]) -> Guide:
    """A model with other weights than the one that it guides."""
    config = loaded[0].config
    torch.manual_seed(4)
    return Guide(type(loaded[0])(config).eval(), loaded[1]("what")["input_ids"], weight=2.0)


def test_a_guided_sample_is_drawn_from_the_product_of_both(loaded: tuple[Any, Any], guide: Guide) -> None:
    model, tokenizer = loaded
    end = tokenizer.eos_token_id

    def product(drawn: list[int]) -> torch.Tensor:
        log_p = model(torch.tensor([tokenizer("the train to")["input_ids"] + drawn])).logits[0, -1].log_softmax(-1)
        log_q = guide.model(torch.tensor([guide.context + drawn])).logits[0, -1].log_softmax(-1)
        log_q[end] = -torch.distributions.Categorical(logits=log_q).entropy()
        return log_p + 2.0 * log_q

    alone = sample_continuations(model, tokenizer, ["the train to"], k=1, sampling=settings_of(), seed=11, keys=["k"])
    got = sample_continuations(model, tokenizer, ["the train to"], k=1, sampling=settings_of(), seed=11, keys=["k"],
                               guide=guide)
    assert got == [[uncached(tokenizer, "the train to", product)]] != alone


@pytest.mark.parametrize("batch_tokens", [1, 40, 100])
def test_the_batch_size_does_not_change_a_guided_sample(
        loaded: tuple[Any, Any], guide: Guide, batch_tokens: int) -> None:
    whole = sample_continuations(*loaded, PROMPTS, k=5, sampling=settings_of(), seed=3, guide=guide)
    assert sample_continuations(*loaded, PROMPTS, k=5, sampling=settings_of(batch_tokens=batch_tokens), seed=3,
                                guide=guide) == whole


def test_a_guide_has_no_say_about_the_end_beyond_its_mean_surprise() -> None:
    guide = Guide(None, [0], weight=0.5)  # type: ignore[arg-type] - the product asks no model
    logs = [-(0.5 * np.log(2) + 0.5 * np.log(4)), -np.log(4), -np.log(4)]
    for padding in (0, 2):  # of the output layer of the model that is guided
        found = guide.product(torch.zeros(1, 3 + padding), torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([0]))
        assert found.tolist() == [[pytest.approx(0.5 * value) for value in logs]]


def test_a_token_that_the_guide_holds_impossible_is_not_drawn() -> None:
    guide = Guide(None, [0], weight=0.5)  # type: ignore[arg-type] - the product asks no model
    found = guide.product(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([0]))
    assert found.softmax(-1)[0, 2] == 0
    assert found[0, :2].isfinite().all()


def test_draws_follow_the_nucleus_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])
    noise = torch.tensor([row_key(5, "x", number) for number in range(40_000)])
    tokens = draw(probabilities.log().expand(len(noise), -1), noise, 0, top_p=0.9, temperature=1.0)
    counts = np.bincount(tokens.numpy(), minlength=5)
    assert counts[3] == counts[4] == 0
    expected = np.array([0.5, 0.3, 0.15]) / 0.95 * len(noise)
    assert stats.chisquare(counts[:3], expected).pvalue > 1e-4


def test_temperature_sharpens_the_draw() -> None:
    logits = torch.tensor([1.0, 0.0]).expand(20_000, -1)
    noise = torch.tensor([row_key(5, "t", number) for number in range(20_000)])
    share = float((draw(logits, noise, 0, top_p=1.0, temperature=0.5) == 0).float().mean())
    assert share == pytest.approx(1 / (1 + np.exp(-2)), abs=0.01)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), top_p=st.floats(0.05, 1.0))
def test_a_nucleus_wider_than_the_first_look_is_still_whole(seed: int, top_p: float) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(3, 3000) * 0.1  # nearly flat: the nucleus takes most of the vocabulary
    noise = torch.tensor([seed, seed + 1, seed + 2])
    probabilities = logits.softmax(-1)
    got = draw(logits, noise, 1, top_p=top_p, temperature=1.0)
    ordered, order = probabilities.sort(descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    scores = ordered.log().masked_fill(outside, -torch.inf).double() + gumbel(noise, 1, order)
    assert got.tolist() == order.gather(1, scores.argmax(1, keepdim=True)).squeeze(1).tolist()


def test_noise_is_gumbel_and_independent_between_steps() -> None:
    noise = torch.tensor([row_key(1, "n", number) for number in range(200)])
    tokens = torch.arange(300).expand(200, -1)
    first, second = (gumbel(noise, step, tokens).flatten().numpy() for step in (0, 1))
    assert stats.kstest(first, "gumbel_r").pvalue > 1e-4
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


def test_continuations_keep_their_leading_space_and_join_to_the_prompt(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    got = sample_continuations(model, tokenizer, ["thank you for the"], k=30, sampling=settings_of(), seed=0)[0]
    assert any(text.startswith(" ") for text in got)
    assert not any("</s>" in text or "<s>" in text for text in got)


def test_rows_that_ended_are_left_out_and_the_others_go_on(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    free = sample_continuations(model, tokenizer, PROMPTS, k=6, sampling=settings_of(), seed=4)
    before = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [before, *range(200, 260)]
        stopped = sample_continuations(model, tokenizer, PROMPTS, k=6, sampling=settings_of(), seed=4)
    finally:
        model.generation_config.eos_token_id = before
    assert sum(map(len, chain.from_iterable(stopped))) < 0.6 * sum(map(len, chain.from_iterable(free)))
    for with_stop, without in zip(chain.from_iterable(stopped), chain.from_iterable(free), strict=True):
        assert without.startswith(with_stop)


@pytest.mark.parametrize("architecture", ["opt", "gemma3"])
def test_other_architectures_sample_the_same_in_any_batch(loaded: tuple[Any, Any], architecture: str) -> None:
    tokenizer = loaded[1]
    torch.manual_seed(0)
    shared = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "eos_token_id": 1, "pad_token_id": 1, "bos_token_id": 0}
    model = OPTForCausalLM(OPTConfig(**shared, ffn_dim=64, word_embed_proj_dim=16, max_position_embeddings=64)) \
        if architecture == "opt" else Gemma3ForCausalLM(Gemma3TextConfig(
            **shared, intermediate_size=64, num_key_value_heads=2, head_dim=8, sliding_window=4))
    for parameter in model.parameters():
        parameter.data.mul_(8)
    model.eval()
    whole = sample_continuations(model, tokenizer, PROMPTS, k=3, sampling=settings_of(), seed=3)
    assert sample_continuations(model, tokenizer, PROMPTS, k=3, sampling=settings_of(batch_tokens=1), seed=3) == whole
    assert len(set(chain.from_iterable(whole))) > 8


def test_a_prompt_longer_than_the_model_is_cut_from_the_left(loaded: tuple[Any, Any]) -> None:
    long = " ".join(["the quick brown fox"] * 200)
    assert len(sample_continuations(*loaded, [long], k=2, sampling=settings_of(), seed=0)[0]) == 2


def test_no_prompts_give_no_continuations_and_an_empty_prompt_is_refused(loaded: tuple[Any, Any]) -> None:
    assert sample_continuations(*loaded, [], k=2, sampling=settings_of(), seed=0) == []
    with pytest.raises(DetoxError, match="without tokens"):
        sample_continuations(*loaded, ["the", ""], k=2, sampling=settings_of(), seed=0)


def test_progress_adds_up_to_all_continuations(loaded: tuple[Any, Any]) -> None:
    seen: list[int] = []
    sample_continuations(*loaded, PROMPTS, k=7, sampling=settings_of(batch_tokens=60), seed=0, on_progress=seen.append)
    assert sum(seen) == 7 * len(PROMPTS)
    assert len(seen) > 1


def test_a_packaged_model_with_a_missing_part_names_the_packages(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DETOX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "big_model/data").mkdir(parents=True)
    (tmp_path / "big_model/data/SHA256SUMS").write_text("0" * 64 + "  big.gguf\n")
    (tmp_path / "big_model_part1/data").mkdir(parents=True)
    (tmp_path / "big_model_part1/data/big.gguf.part00").write_bytes(b"half")
    with pytest.raises(DetoxError, match="do not add up") as caught:
        model_folder(str(tmp_path / "big_model"))
    assert "pip install big-model" in str(caught.value)
    assert not list((tmp_path / "cache/models").glob("*big.gguf*"))


def test_columns_are_written_into_place_and_rows_are_repeated_and_dropped() -> None:
    torch.manual_seed(0)
    roomy, growing = RoomyLayer(6), DynamicLayer()
    for width, chosen in ((3, [0, 0, 1, 1, 1]), (1, [4, 0, 2]), (1, None), (1, [1])):
        rows = len(growing.keys) if growing.is_initialized else 2
        keys, values = torch.rand(rows, 2, width, 4), torch.rand(rows, 2, width, 4)
        for got, expected in zip(roomy.update(keys, values), growing.update(keys, values), strict=True):
            torch.testing.assert_close(got, expected)
        if chosen is not None:
            for layer in (roomy, growing):
                layer.batch_select_indices(torch.tensor(chosen))
        assert roomy.get_seq_length() == growing.get_seq_length()
        torch.testing.assert_close(roomy.keys, growing.keys)
        torch.testing.assert_close(roomy.values, growing.values)


def test_a_model_reads_it_like_its_own_cache() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                                         num_attention_heads=4, num_key_value_heads=2)).eval()
    tokens = torch.randint(50, (3, 9))
    caches = [roomy_cache(model.config, 9), DynamicCache(config=model.config)]
    with torch.inference_mode():
        for first, end in ((0, 5), (5, 6), (6, 7), (7, 9)):
            logits = [model(tokens[:, first:end], past_key_values=cache, use_cache=True).logits for cache in caches]
            torch.testing.assert_close(*logits)


def test_layers_of_other_kinds_stay_as_they_are() -> None:
    config = Gemma3TextConfig(num_hidden_layers=12, sliding_window=4)
    kinds = [type(layer) for layer in DynamicCache(config=config).layers]
    assert [type(layer) for layer in roomy_cache(config, 9).layers] == [
        RoomyLayer if kind is DynamicLayer else kind for kind in kinds]
    assert len(set(kinds)) == 2


def test_more_columns_than_there_is_room_for_are_refused() -> None:
    layer = RoomyLayer(2)
    with pytest.raises(RuntimeError):
        layer.update(torch.rand(1, 1, 3, 4), torch.rand(1, 1, 3, 4))
