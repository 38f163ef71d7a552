"""Tiny models and labelled text for the tests of rephrasing: made from a configuration, no downloads."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TOXIC = ["idiot", "moron", "scum", "stupid", "filthy"]
NEUTRAL = [
    "you", "are", "a", "the", "my", "friend", "house", "garden", "people", "work", "very", "some", "old", "new", "read",
    "book", "talk", "page", "article", "here", "today", "with", "and", "for", "was", "is", "good", "nice", "kind",
    "bad", "cold", "man", "woman", "town", "river",
]


def one_thread() -> Iterator[None]:
    """Tiny models run faster without threads, and a busy machine does not slow them down so much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sentences(count: int, *, toxic_share: float = 0.5, seed: int = 0) -> list[tuple[str, bool]]:
    rng = random.Random(seed)
    found = []
    for i in range(count):
        words = rng.choices(NEUTRAL, k=rng.randint(5, 14))
        toxic = i < count * toxic_share
        if toxic:
            for _ in range(rng.randint(1, 2)):
                words.insert(rng.randrange(len(words)), rng.choice(TOXIC))
        found.append((" ".join(words).capitalize() + ".", toxic))
    rng.shuffle(found)
    return found


def labelled_csv(path: Path) -> Path:
    rows = [f'{int(toxic)},"{text}"' for text, toxic in sentences(3000, seed=1)]
    path.write_text("is_offensive,text\n" + "\n".join(rows) + "\n", "utf-8")
    return path


def tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator([text for text, _ in sentences(400, seed=2)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def causal_folder(folder: Path) -> Path:
    """A Llama of two layers with random weights, and its tokenizer."""
    torch.manual_seed(0)
    words = tokenizer(["<|end|>"])
    words.add_special_tokens({"eos_token": "<|end|>", "bos_token": "<|end|>", "pad_token": "<|end|>"})
    config = LlamaConfig(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
                         bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def bart(seed: int, words: PreTrainedTokenizerFast, *, positions: int = 64) -> BartForConditionalGeneration:
    """A BART of two layers with random weights, large enough that its distributions differ clearly."""
    torch.manual_seed(seed)
    config = BartConfig(vocab_size=len(words), d_model=16, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32,
                        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
                        max_position_embeddings=positions, init_std=0.5, bos_token_id=0, pad_token_id=1, eos_token_id=2,
                        decoder_start_token_id=2, forced_eos_token_id=2)
    model = BartForConditionalGeneration(config)
    model.eval()
    return model


def bart_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing

    words = tokenizer(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    words.add_special_tokens({"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
                              "mask_token": "<mask>"})
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return words


def write_texts(path: Path, count: int) -> Path:
    lines = [json.dumps({"id": f"r{i}", "text": text}) for i, (text, _) in enumerate(sentences(count, seed=3))]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path
