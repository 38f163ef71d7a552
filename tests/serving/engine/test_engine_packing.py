"""Packed layers multiply as the plain ones do, and a model that cannot have them is served without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llm_detox.generation.models import load_model
from serving.engine.backend_transformers import Model
from serving.engine.packing import PackedLinear, pack, rounded
from serving.engine.settings import Settings
from serving.engine.source import Source


@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=3), bias=st.booleans(), seed=st.integers(0, 9))
def test_any_input_gives_what_the_linear_layer_gives(shape: list[int], bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(7, 11, bias=bias)
    inputs = torch.randn(*shape, 7)
    apart = torch.randn(*shape, 9)[..., 1:8]  # a slice, as of the last positions
    with torch.inference_mode():
        packed = PackedLinear(linear)
        for one in (inputs, apart):
            torch.testing.assert_close(packed(one), linear(one))


@given(rows=st.integers(1, 10_000))
def test_rows_are_rounded_up_by_a_quarter_at_most_and_to_few_numbers(rows: int) -> None:
    assert rows <= rounded(rows) <= max(1.25 * rows, rows)
    assert rounded(rounded(rows)) == rounded(rows)
    assert len({rounded(n) for n in range(1, 2049)}) < 50


def test_a_model_gives_the_same_logits_and_its_embeddings_stay(tiny_llama: Path) -> None:
    model, plain = load_model(tiny_llama), load_model(tiny_llama)
    pack(model)
    ids = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits)
    kinds = {type(module) for module in model.modules()}
    assert PackedLinear in kinds
    assert nn.Linear not in kinds
    assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)


def test_layers_with_a_way_of_their_own_are_left_alone_and_shared_ones_stay_shared() -> None:
    class Special(nn.Linear):
        """Multiplies as it likes."""

    class Small(nn.Module):
        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.special, self.coarse = nn.Embedding(5, 4), Special(4, 4), nn.Linear(4, 4).half()
            self.first = self.again = nn.Linear(4, 4)

        def forward(self, input_ids: Any) -> Any:
            return self.again(self.first(self.special(self.embedding(input_ids))))

    model = Small()
    pack(model)
    assert [type(model.special), type(model.coarse), type(model.first)] == [Special, nn.Linear, PackedLinear]
    assert model.first is model.again


def test_a_model_that_reads_its_weights_is_served_as_it_is(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward
    monkeypatch.setattr(LlamaForCausalLM, "forward",
                        lambda self, *a, **k: (self.lm_head.weight.dtype, forward(self, *a, **k))[1])
    model = Model(Source(str(tiny_llama)), Settings(str(tiny_llama), "127.0.0.1"))
    assert type(model.model.lm_head) is nn.Linear
    assert model.rows.limit > 1
