"""The product of few rows gives what the linear layer gives, with the parameters that the model has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from serving.engine import few_rows
from serving.engine.few_rows import FewRowsLinear, for_few_rows


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=3), bias=st.booleans(), seed=st.integers(0, 9))
def test_any_input_gives_what_the_linear_layer_gives(shape: list[int], bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(7, 11, bias=bias)
    inputs = torch.randn(*shape, 7)
    with torch.no_grad():
        expected, found = linear(inputs), FewRowsLinear(linear)(inputs)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()


def test_many_rows_go_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "_MOST_ROWS", 3)
    linear = nn.Linear(2, 3)
    inputs = torch.randn(4, 2)
    torch.testing.assert_close(FewRowsLinear(linear)(inputs), linear(inputs))


def test_tied_weights_stay_one_parameter_and_other_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    class Special(nn.Linear):
        """A layer that knows its own way."""

    model = nn.Sequential(nn.Embedding(5, 4), nn.Sequential(nn.Linear(4, 4)), Special(4, 4), nn.Linear(4, 5))
    model[3].weight = model[0].weight
    before = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    for_few_rows(model)
    assert {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)} == before
    assert [type(one) for one in (model[1][0], model[2], model[3])] == [FewRowsLinear, Special, FewRowsLinear]


def test_one_thread_leaves_the_model_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    model = nn.Sequential(nn.Linear(2, 2))
    for_few_rows(model)
    assert type(model[0]) is nn.Linear
