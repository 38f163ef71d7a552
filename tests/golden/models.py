"""Tiny real models with random weights, and tokenizers that are trained on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.golden.sentences import sentences

_START, _END = "<s>", "</s>"
_BART_TOKENS = (_START, "<pad>", _END, "<unk>", "<mask>")
_OTHER_WRITING = "naïve café Straße ☕ 日本語 🙂"


def save_llama(folder: Path, *, seed: int, likely_end: bool = False) -> None:
    """A Llama of two layers.

    Args:
        folder: to write.
        seed: of the weights.
        likely_end: the end of a sequence gets a logit that is small, but not zero, so that penalties act on it.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_pairs((_START, _END)), bos_token=_START, eos_token=_END, pad_token=_END,
        clean_up_tokenization_spaces=False)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        tie_word_embeddings=True, initializer_range=0.2))
    if likely_end:
        with torch.no_grad():
            rows = model.get_input_embeddings().weight
            rows[1] = 0.05 * rows[2]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_bart(folder: Path, *, seed: int) -> None:
    """A BART of two layers, with room for the 128 tokens that MaRCo may write."""
    raw = _byte_pairs(_BART_TOKENS)
    raw.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(_START, 0), (_END, 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=_START, pad_token="<pad>", eos_token=_END, unk_token="<unk>",
        mask_token="<mask>", clean_up_tokenization_spaces=False)
    torch.manual_seed(seed)
    BartForConditionalGeneration(BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=256,
        init_std=0.5, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        forced_eos_token_id=2)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _byte_pairs(special: tuple[str, ...]) -> Tokenizer:
    """A byte-level BPE of 400 tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        [*(text for text, _ in sentences(200, seed=10)), _OTHER_WRITING],
        trainers.BpeTrainer(vocab_size=400, special_tokens=list(special), show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return raw
