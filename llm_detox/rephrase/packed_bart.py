"""BART's encoder and decoder over texts of different lengths, without padding.

The tokens of all texts are in one row, text after text, [tokens, d]. Every layer but attention works on tokens of any
text; for attention they are spread to [texts, longest, d] and packed again.

Where only the last state of each text is wanted, the last layer computes no other, for no later layer reads them. And
to let one query look at n states, it is cheaper to carry the query into their space than to project each of them to a
key and a value. Of a head with projections K and V: q . (K x) = (K' q) . x, and sum_i a_i (V x_i) = V (sum_i a_i x_i).
A key's bias adds the same to all scores, which softmax does not see; a value's bias is added once, the a_i being 1 in
sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.models.bart.modeling_bart import (
    BartAttention,
    BartDecoder,
    BartDecoderLayer,
    BartEncoder,
    BartEncoderLayer,
)

Ids = list[int]


class PackedBart:
    """Reads with a BART in eval mode.

    Args:
        model: one of which `fits` is true.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._encoder = cast("BartEncoder", model.get_encoder())
        self._decoder = cast("BartDecoder", model.get_decoder())

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether the model is a BART, and none of its relatives that order their layers otherwise."""
        return type(model.get_encoder()) is BartEncoder and type(model.get_decoder()) is BartDecoder

    def encode(self, texts: Sequence[Ids]) -> list[Tensor]:
        """The encoder's states of each text, [tokens, d]."""
        layout = _Layout([len(ids) for ids in texts], self._encoder.device)
        states = _embedded(self._encoder, texts, layout)
        for layer in self._encoder.layers:
            states = _encoder_layer(cast("BartEncoderLayer", layer), states, layout)
        return list(states.split(layout.lengths))

    def decode(self, texts: Sequence[Ids], encoded: Sequence[Tensor]) -> list[Tensor]:
        """The decoder's states of each text, [tokens, d], attending to the text's encoder states."""
        states, layout, _, _ = self._decoded(texts, encoded, len(self._decoder.layers))
        return list(states.split(layout.lengths))

    def decode_last(self, texts: Sequence[Ids], encoded: Sequence[Tensor]) -> Tensor:
        """The decoder's state of the last token of each text, [texts, d]."""
        states, layout, read, of = self._decoded(texts, encoded, len(self._decoder.layers) - 1)
        layer = cast("BartDecoderLayer", self._decoder.layers[-1])
        last = states[layout.last]
        last = layer.self_attn_layer_norm(last + _one_attends(layer.self_attn, last, states, layout))
        last = layer.encoder_attn_layer_norm(last + _one_attends(layer.encoder_attn, last, read, of))
        return _fed_forward(layer, last)

    def _decoded(self, texts: Sequence[Ids], encoded: Sequence[Tensor],
                 layers: int) -> tuple[Tensor, _Layout, Tensor, _Layout]:
        """States behind so many layers and their layout, encoder states and theirs."""
        layout = _Layout([len(ids) for ids in texts], self._decoder.device)
        read, of = torch.cat(list(encoded)), _Layout([len(states) for states in encoded], self._decoder.device)
        states = _embedded(self._decoder, texts, layout)
        for layer in self._decoder.layers[:layers]:
            states = _decoder_layer(cast("BartDecoderLayer", layer), states, layout, read, of)
        return states, layout, read, of


class _Layout:
    """Where the tokens of packed texts belong.

    Args:
        lengths: of the texts, none 0.
        where: the device.
    """

    def __init__(self, lengths: Sequence[int], where: torch.device) -> None:
        self.lengths, self.width = list(lengths), max(lengths)
        sizes = torch.tensor(self.lengths, device=where)
        ends = sizes.cumsum(0)
        text = torch.arange(len(sizes), device=where).repeat_interleave(sizes)
        self.last = ends - 1
        self.places = torch.arange(len(text), device=where) - (ends - sizes)[text]
        self._slots = text * self.width + self.places
        self.seen = None if min(lengths) == self.width else (
            torch.arange(self.width, device=where) < sizes.unsqueeze(1))

    def spread(self, states: Tensor) -> Tensor:
        """[tokens, d] -> [texts, longest, d], 0 after a text's end."""
        if self.seen is not None:
            padded = states.new_zeros(self.seen.numel(), states.shape[-1])
            states = padded.index_copy_(0, self._slots, states)
        return states.view(len(self.lengths), self.width, -1)

    def pack(self, padded: Tensor) -> Tensor:
        """[texts, longest, d] -> [tokens, d]."""
        flat = padded.flatten(0, 1)
        return flat if self.seen is None else flat.index_select(0, self._slots)


def _embedded(part: BartEncoder | BartDecoder, texts: Sequence[Ids], layout: _Layout) -> Tensor:
    ids = torch.tensor([token for text in texts for token in text], device=layout.places.device)
    places: Tensor = part.embed_positions(ids, position_ids=layout.places)[0]
    found: Tensor = part.layernorm_embedding(part.embed_tokens(ids) + places)
    return found


def _encoder_layer(layer: BartEncoderLayer, states: Tensor, layout: _Layout) -> Tensor:
    states = layer.self_attn_layer_norm(states + _attend(layer.self_attn, states, layout, states, layout))
    states = _fed_forward(layer, states)
    if states.dtype != torch.float16:
        return states
    most = torch.finfo(torch.float16).max - 1000  # what overflows is held back here, and only here, in the original too
    return states.clamp(-most, most)


def _decoder_layer(layer: BartDecoderLayer, states: Tensor, layout: _Layout, read: Tensor, of: _Layout) -> Tensor:
    found = _attend(layer.self_attn, states, layout, states, layout, causal=True)
    states = layer.self_attn_layer_norm(states + found)
    states = layer.encoder_attn_layer_norm(states + _attend(layer.encoder_attn, states, layout, read, of))
    return _fed_forward(layer, states)


def _fed_forward(layer: BartEncoderLayer | BartDecoderLayer, states: Tensor) -> Tensor:
    found: Tensor = layer.final_layer_norm(states + layer.fc2(layer.activation_fn(layer.fc1(states))))
    return found


def _attend(attention: BartAttention, queries: Tensor, at: _Layout, states: Tensor, of: _Layout,
            causal: bool = False) -> Tensor:
    """Multi-head attention of the tokens [tokens, d] of each text to the states [others, d] that belong to it."""

    def heads(packed: Tensor, layout: _Layout) -> Tensor:
        found: Tensor = layout.spread(packed).unflatten(-1, (attention.num_heads, -1))
        return found.transpose(1, 2)

    # A causal look goes to the left, where there is no padding.
    mask = None if causal or of.seen is None else of.seen[:, None, None]
    found = scaled_dot_product_attention(
        heads(attention.q_proj(queries), at), heads(attention.k_proj(states), of), heads(attention.v_proj(states), of),
        attn_mask=mask, is_causal=causal, scale=attention.scaling)
    projected: Tensor = attention.out_proj(at.pack(found.transpose(1, 2).flatten(2)))
    return projected


def _one_attends(attention: BartAttention, queries: Tensor, states: Tensor, of: _Layout) -> Tensor:
    """Multi-head attention of one query [texts, d] a text to the states [others, d] that belong to it."""
    keys, values = (projection.weight.unflatten(0, (attention.num_heads, -1))
                    for projection in (attention.k_proj, attention.v_proj))
    padded = of.spread(states)
    asked = (attention.q_proj(queries) * attention.scaling).unflatten(-1, (attention.num_heads, -1))
    scores = torch.einsum("thw,hwd->thd", asked, keys) @ padded.transpose(1, 2)
    if of.seen is not None:
        scores = scores.masked_fill(~of.seen.unsqueeze(1), -torch.inf)
    found = torch.einsum("thd,hwd->thw", scores.softmax(-1) @ padded, values).flatten(1)
    projected: Tensor = attention.out_proj(found + attention.v_proj.bias)
    return projected
