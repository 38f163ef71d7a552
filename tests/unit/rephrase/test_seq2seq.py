"""BART without padding reads what the model's own forward pass reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BartConfig, BartForConditionalGeneration, MBartConfig, MBartForConditionalGeneration

from llm_detox.generation.parallel import side_by_side
from llm_detox.rephrase.seq2seq import PackedBart, Seq2SeqReader

SIZES: dict[str, Any] = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 32, "max_position_embeddings": 20,
    "scale_embedding": True, "init_std": 0.5, "decoder_start_token_id": 2,
}
TEXTS = st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=12), min_size=1, max_size=5)


def model_of(kind: str) -> Any:
    torch.manual_seed(1)
    if kind == "bart":
        model: Any = BartForConditionalGeneration(BartConfig(**SIZES))
    else:
        model = MBartForConditionalGeneration(MBartConfig(**SIZES))
    for name, weights in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weights)
    model.final_logits_bias.normal_()
    return model.double().eval()


MODELS = {kind: model_of(kind) for kind in ("bart", "mbart")}


def test_only_a_bart_is_read_without_padding() -> None:
    assert PackedBart.fits(MODELS["bart"])
    assert not PackedBart.fits(MODELS["mbart"])


@pytest.mark.parametrize("kind", list(MODELS))
@settings(max_examples=30, deadline=None)
@given(texts=TEXTS, data=st.data())
@torch.no_grad()
def test_a_batch_gives_what_the_model_gives_for_each_text(kind: str, texts: list[list[int]], data: Any) -> None:
    model, reader = MODELS[kind], Seq2SeqReader(MODELS[kind])
    places = [data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=3)) for ids in texts]
    one, several = reader.logits_at(texts, [row[0] for row in places]), reader.logits_at_all(texts, places)
    encoded = reader.encode(texts)
    for k, ids in enumerate(texts):
        shifted = [model.config.decoder_start_token_id, *ids[:-1]]
        out = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([shifted]))
        assert torch.allclose(encoded[k], out.encoder_last_hidden_state[0])
        assert torch.allclose(several[k], out.logits[0, places[k]].float(), atol=1e-5)
        assert torch.allclose(one[k], out.logits[0, places[k][0]].float(), atol=1e-5)


def test_models_side_by_side_answer_in_their_order_and_leave_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with side_by_side([MODELS["bart"], MODELS["mbart"]]) as run:
            assert run([torch.get_num_threads, lambda: 7]) == [2, 7]
        assert torch.get_num_threads() == 4
        with pytest.raises(ZeroDivisionError), side_by_side([MODELS["bart"], MODELS["mbart"]]) as run:
            run([lambda: 1 // 0, lambda: 1])
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_models_without_a_core_each_run_one_by_one() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with side_by_side([MODELS["bart"], MODELS["mbart"]]) as run:
            assert run([torch.get_num_threads, torch.get_num_threads]) == [1, 1]
    finally:
        torch.set_num_threads(before)
