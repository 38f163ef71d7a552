"""A BART-like model read in batches: what it predicts at one position of each text, and nothing else.

The decoder is cut behind that position and only it goes through the output layer, so a batch of any texts holds [rows,
vocabulary] logits instead of [rows, length, vocabulary].

A BART is read without padding: the tokens of all texts are in one row, text after text, [tokens, d]. Every layer but
attention works on tokens of any text; for attention they are spread to [texts, longest, d] and packed again.

Where only the last state of each text is wanted, the last layer computes no other, for no later layer reads them. And
to let one query look at n states, it is cheaper to carry the query into their space than to project each of them to a
key and a value. Of a head with projections K and V: q . (K x) = (K' q) . x, and sum_i a_i (V x_i) = V (sum_i a_i x_i).
A key's bias adds the same to all scores, which softmax does not see; a value's bias is added once, the a_i being 1 in
sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.bart.modeling_bart import (
    BartAttention,
    BartDecoder,
    BartDecoderLayer,
    BartEncoder,
    BartEncoderLayer,
)

from llm_detox.errors import DetoxError
from llm_detox.generation.batching import budget_batches, paired_batches
from llm_detox.generation.parallel import side_by_side
from llm_detox.runs.artifacts import TrainedFolder

Ids = list[int]
_ROOM_FOR_MASKS = 8
_ENCODED_BATCHES = 4  # whose encoder states are kept at once


def is_seq2seq(source: str) -> bool:
    """Whether the source is an encoder with a decoder; an adapter of ours is of a causal model."""
    from llm_detox.generation.models import model_folder, open_config

    folder = model_folder(source)
    return not TrainedFolder(folder).is_adapter and bool(open_config(folder).is_encoder_decoder)


def load_seq2seq(source: str | PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of a source, or the model that is given, in eval mode.

    Args:
        source: hub id, folder, `s3://`; or a loaded model.
        dtype: of the weights of a source; the default is `compute_dtype()`.
    """
    if not isinstance(source, str):
        source.eval()
        return source
    from llm_detox.generation.models import compute_dtype, model_folder, open_weights

    return open_weights(AutoModelForSeq2SeqLM, model_folder(source), dtype=dtype or compute_dtype())


def load_seq2seq_tokenizer(source: str | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of a source, splitting words as the reference does (with a space in front of the first)."""
    if not isinstance(source, str):
        return source
    from llm_detox.generation.models import model_folder, open_tokenizer

    tokenizer = open_tokenizer(model_folder(source), add_prefix_space=True)
    if tokenizer.mask_token_id is None or tokenizer.eos_token_id is None:
        raise DetoxError("the tokenizer has no mask and end tokens", place=source,
                         remedy="masking needs a BART-like model, such as facebook/bart-base")
    return tokenizer


def fits(ids: Ids, models: Sequence[PreTrainedModel]) -> bool:
    """Whether a text is short enough for the models, with room for the masks that are put into it."""
    limits = [int(model.config.max_position_embeddings) for model in models
              if getattr(model.config, "max_position_embeddings", None)]
    return not limits or len(ids) + _ROOM_FOR_MASKS <= min(limits)


class Seq2SeqReader:
    """Reads encoder texts with the decoder shifted right, as `labels = input_ids` would.

    Args:
        model: of the BART family.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._network = PackedBart(model) if PackedBart.fits(model) else _Padded(model)
        self._start = int(model.config.decoder_start_token_id)
        limit = getattr(model.config, "max_position_embeddings", None)
        self.max_tokens = int(limit) if limit else None

    @torch.inference_mode()
    def encode(self, ids: Sequence[Ids]) -> list[Tensor]:
        """Encoder states of one batch of token ids with their special tokens: for each text [tokens, d]."""
        return self._network.encode(ids)

    @torch.inference_mode()
    def logits_at(self, ids: Sequence[Ids], places: Sequence[int], encoded: Sequence[Tensor] | None = None) -> Tensor:
        """Logits where the text's token `places[i]` stands, read from the tokens before it and the whole encoder text.

        Args:
            ids: one batch of token ids with their special tokens.
            places: an index into each.
            encoded: their encoder states, where `encode` gave them before.

        Returns:
            float32 [rows, vocabulary] on the model's device.
        """
        return self._head(self._network.decode_last(self._before(ids, places), encoded or self.encode(ids)))

    @torch.inference_mode()
    def logits_at_all(self, ids: Sequence[Ids], places: Sequence[Sequence[int]]) -> list[Tensor]:
        """Like `logits_at` with several places of each text: for each text float32 [places, vocabulary]."""
        hidden = self._network.decode(self._before(ids, [max(row) for row in places]), self.encode(ids))
        wanted = torch.cat([states[list(row)] for states, row in zip(hidden, places, strict=True)])
        return list(self._head(wanted).split([len(row) for row in places]))

    def _before(self, ids: Sequence[Ids], places: Sequence[int]) -> list[Ids]:
        """What the decoder reads to predict the token at a place: the start token and all before it."""
        return [[self._start, *row[:place]] for row, place in zip(ids, places, strict=True)]

    def _head(self, hidden: Tensor) -> Tensor:
        layer: Any = self.model.get_output_embeddings()
        logits: Tensor = layer(hidden)
        bias = getattr(self.model, "final_logits_bias", None)
        return (logits if bias is None else logits + bias[0]).float()


def logits_at_masks(readers: Sequence[Seq2SeqReader], copies: Sequence[tuple[Ids, int]],
                    budget: int) -> Iterator[tuple[list[int], list[Tensor]]]:
    """What each model predicts at the mask of each copy.

    A text is copied with a mask at each of its places. So the copies are encoded beside others of their length, and
    decoded beside others whose mask stands as far to the right: else every decoder would run to the end of its text.

    Args:
        readers: the models.
        copies: token ids, and where the mask stands in them.
        budget: padded tokens of a batch.

    Yields:
        some of the copies' indices, and each reader's float32 [copies, vocabulary] for them.
    """
    lengths = [len(ids) for ids, _ in copies]
    with side_by_side([reader.model for reader in readers]) as run:
        for group in budget_batches(lengths, _ENCODED_BATCHES * budget):
            texts = [copies[i][0] for i in group]
            encoded = run([partial(_encoded, reader, texts, budget) for reader in readers])
            for batch in paired_batches([(copies[i][1] + 1, lengths[i]) for i in group], budget):
                ids, places = zip(*(copies[group[k]] for k in batch), strict=True)
                yield [group[k] for k in batch], run([
                    partial(reader.logits_at, ids, places, [states[k] for k in batch])
                    for reader, states in zip(readers, encoded, strict=True)])


def _encoded(reader: Seq2SeqReader, texts: Sequence[Ids], budget: int) -> list[Tensor]:
    encoded: list[Tensor] = [torch.empty(0)] * len(texts)
    for batch in budget_batches([len(ids) for ids in texts], budget):
        for k, states in zip(batch, reader.encode([texts[k] for k in batch]), strict=True):
            encoded[k] = states
    return encoded


class _Padded:
    """Any encoder with a decoder, read by its own forward pass; see `PackedBart` for what the methods give."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._encoder: Any = model.get_encoder()
        self._decoder: Any = model.get_decoder()

    def encode(self, texts: Sequence[Ids]) -> list[Tensor]:
        padded, mask = self._padded([torch.tensor(ids) for ids in texts])
        states = self._encoder(input_ids=padded, attention_mask=mask).last_hidden_state
        return [row[: len(ids)] for row, ids in zip(states, texts, strict=True)]

    def decode(self, texts: Sequence[Ids], encoded: Sequence[Tensor]) -> list[Tensor]:
        padded, _ = self._padded([torch.tensor(ids) for ids in texts])
        read, mask = self._padded(encoded)
        states = self._decoder(input_ids=padded, encoder_hidden_states=read, encoder_attention_mask=mask,
                               use_cache=False).last_hidden_state
        return [row[: len(ids)] for row, ids in zip(states, texts, strict=True)]

    def decode_last(self, texts: Sequence[Ids], encoded: Sequence[Tensor]) -> Tensor:
        return torch.stack([states[-1] for states in self.decode(texts, encoded)])

    def _padded(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """[rows, longest, ...] with 0 behind a row's end, and 1 where a row is, [rows, longest]."""
        device = self._encoder.device
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        return pad_sequence(list(rows), batch_first=True).to(device), mask.to(device)


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
        device: of the states.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths, self.width = list(lengths), max(lengths)
        sizes = torch.tensor(self.lengths, device=device)
        ends = sizes.cumsum(0)
        text = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
        self.last = ends - 1
        self.places = torch.arange(len(text), device=device) - (ends - sizes)[text]
        self._slots = text * self.width + self.places
        self.seen = None if min(lengths) == self.width else (
            torch.arange(self.width, device=device) < sizes.unsqueeze(1))

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
    states: Tensor = part.layernorm_embedding(part.embed_tokens(ids) + places)
    return states


def _encoder_layer(layer: BartEncoderLayer, states: Tensor, layout: _Layout) -> Tensor:
    states = layer.self_attn_layer_norm(states + _attend(layer.self_attn, states, layout, states, layout))
    states = _fed_forward(layer, states)
    if states.dtype != torch.float16:
        return states
    most = torch.finfo(torch.float16).max - 1000  # what overflows is held back here, and only here, in the original too
    return states.clamp(-most, most)


def _decoder_layer(layer: BartDecoderLayer, states: Tensor, layout: _Layout, read: Tensor, of: _Layout) -> Tensor:
    attended = _attend(layer.self_attn, states, layout, states, layout, causal=True)
    states = layer.self_attn_layer_norm(states + attended)
    states = layer.encoder_attn_layer_norm(states + _attend(layer.encoder_attn, states, layout, read, of))
    return _fed_forward(layer, states)


def _fed_forward(layer: BartEncoderLayer | BartDecoderLayer, states: Tensor) -> Tensor:
    normed: Tensor = layer.final_layer_norm(states + layer.fc2(layer.activation_fn(layer.fc1(states))))
    return normed


def _attend(attention: BartAttention, queries: Tensor, at: _Layout, states: Tensor, of: _Layout,
            causal: bool = False) -> Tensor:
    """Multi-head attention of the tokens [tokens, d] of each text to the states [others, d] that belong to it."""

    def heads(packed: Tensor, layout: _Layout) -> Tensor:
        split: Tensor = layout.spread(packed).unflatten(-1, (attention.num_heads, -1))
        return split.transpose(1, 2)

    # A causal look goes to the left, where there is no padding.
    mask = None if causal or of.seen is None else of.seen[:, None, None]
    attended = scaled_dot_product_attention(
        heads(attention.q_proj(queries), at), heads(attention.k_proj(states), of), heads(attention.v_proj(states), of),
        attn_mask=mask, is_causal=causal, scale=attention.scaling)
    projected: Tensor = attention.out_proj(at.pack(attended.transpose(1, 2).flatten(2)))
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
    attended = torch.einsum("thd,hwd->thw", scores.softmax(-1) @ padded, values).flatten(1)
    projected: Tensor = attention.out_proj(attended + attention.v_proj.bias)
    return projected
