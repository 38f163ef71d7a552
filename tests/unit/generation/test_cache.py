"""The cache with room gives what transformers' growing cache gives."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

from llm_detox.generation.kv_cache import RoomyLayer, roomy_cache


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
