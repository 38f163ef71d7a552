"""Tiny real models: a Llama of two layers with random weights and a byte-level BPE tokenizer made on the spot."""

from __future__ import annotations

from pathlib import Path

CORPUS = [
    "the quick brown fox jumps over the lazy dog and runs away from you",
    "you are a stupid idiot and I hate you so much", "this is a fine day for a walk in the park with my friends",
    "what a damn fool you are", "the train to the city leaves at noon and arrives in the evening",
    "naïve café Straße ☕ 日本語 🙂", "shut up you dumb moron", "thank you for the lovely dinner, it was great",
]


def save_tiny_llama(folder: Path, *, seed: int = 0, vocabulary: int = 400) -> Path:
    """Write a Llama with 2 layers of width 64 and its tokenizer; returns the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(CORPUS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>", clean_up_tokenization_spaces=False)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        tie_word_embeddings=True, initializer_range=0.2)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_chat_llama(folder: Path, *, seed: int = 0, positions: int = 4096) -> Path:
    """A tiny Llama with a chat template and room for a judge's question; returns the folder."""
    import json

    save_tiny_llama(folder, seed=seed)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}), "utf-8")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
        "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}", "utf-8")
    return folder
