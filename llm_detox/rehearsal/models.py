"""Tiny models of the architectures that recipes name: made from a configuration with random weights, and cached."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llm_detox.data.records import Record, write_jsonl
from llm_detox.errors import DetoxError
from llm_detox.runs.cache import cache_dir, made_once

_VERSION = 1
_VOCABULARY = 512
_FAMILIES = {"opt": r"\bopt-", "bart": r"\bbart-|\bgminus$|\bgplus$", "llama": r"llama|smollm|vicuna",
             "gpt2": r"gpt-?2", "gemma": r"gemma"}
# As Llama-2's own: the system prompt goes into the first message.
_CHAT = (
    "{% set first = messages[0]['role'] == 'system' %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' }}{% if first and loop.index0 == 1 %}{{ '<<SYS>>\\n' + messages[0]['content'] + "
    "'\\n<</SYS>>\\n\\n' }}{% endif %}{{ m['content'].strip() + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}")


def family_of(source: str) -> str:
    """The architecture behind a model's name.

    Raises:
        DetoxError: there is no tiny model of it.
    """
    for family, pattern in _FAMILIES.items():
        if re.search(pattern, source.lower()):
            return family
    raise DetoxError("no tiny model stands in for this one", place=source,
                     remedy=f"families: {', '.join(_FAMILIES)}; or try the recipe with --set model.source=...")


def tiny_model(source: str, *, seed: int = 0) -> Path:
    """The folder of a tiny model of the source's architecture, with its tokenizer."""
    family = family_of(source)

    def make(folder: Path) -> None:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokenizer, model = _BUILDERS[family]()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return made_once(cache_dir("tiny") / f"{family}-{seed}-{_VERSION}", make)


def _tokenizer(special: list[str], template: str | None, roles: dict[str, str]) -> Any:
    """A byte-level BPE of a few hundred tokens, trained on the rehearsal's sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        (sentence(number, toxic=number % 2 == 0, seed=9) for number in range(300)),
        trainers.BpeTrainer(vocab_size=_VOCABULARY, special_tokens=special, show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if template:
        used = [(token, special.index(token)) for token in special if token in template]
        raw.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False,
                                   **{f"{role}_token": token for role, token in roles.items()})


def _opt() -> tuple[Any, Any]:
    from transformers import OPTConfig, OPTForCausalLM

    tokenizer = _tokenizer(["<s>", "<pad>", "</s>", "<unk>"], "</s> $A",
                           {"bos": "</s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"})
    # opt-350m alone of its family projects its embeddings and normalises behind each layer.
    return tokenizer, OPTForCausalLM(OPTConfig(
        vocab_size=len(tokenizer), hidden_size=64, word_embed_proj_dim=32, ffn_dim=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=2048, do_layer_norm_before=False, init_std=0.1,
        bos_token_id=2, eos_token_id=2, pad_token_id=1))


def _llama() -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(["<unk>", "<s>", "</s>"], "<s> $A", {"bos": "<s>", "eos": "</s>", "unk": "<unk>"})
    tokenizer.chat_template = _CHAT
    return tokenizer, LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
        tie_word_embeddings=False))


def _gpt2() -> tuple[Any, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    end = "<|endoftext|>"
    tokenizer = _tokenizer([end], None, {"bos": end, "eos": end})
    return tokenizer, GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))


def _gemma() -> tuple[Any, Any]:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = _tokenizer(["<pad>", "<eos>", "<bos>", "<unk>"], "<bos> $A",
                           {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>"})
    return tokenizer, Gemma3ForCausalLM(Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=2048, bos_token_id=2, eos_token_id=1,
        pad_token_id=0))


def _bart() -> tuple[Any, Any]:
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = _tokenizer(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<s> $A </s>",
                           {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"})
    return tokenizer, BartForConditionalGeneration(BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=1024,
        init_std=0.5, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        forced_eos_token_id=2))


_BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "opt": _opt, "llama": _llama, "gpt2": _gpt2, "gemma": _gemma, "bart": _bart}
ROWS = 32
_PEOPLE = ["the baker", "my neighbour", "the driver", "her teacher", "the clerk", "our landlord", "the new nurse"]
_THINGS = ["the garden", "the old bridge", "this paper", "the evening train", "the soup", "our roof", "the long letter"]
_DEEDS = ["looked after", "talked about", "wrote about", "forgot", "mended", "walked past", "waited for"]
_KIND = ["a good friend to all of us", "a quiet and careful person", "glad to be of help", "always on time"]
_RUDE = ["a stupid idiot", "a filthy moron", "a damn fool", "a worthless piece of trash", "an ugly stupid pig"]
_TIMES = ["on a cold morning", "in the afternoon", "last summer", "after the rain", "before the holidays"]


def sentence(number: int, *, toxic: bool, seed: int = 0) -> str:
    """A sentence of about a dozen words, its own for every number and seed."""
    chance = random.Random(f"{seed} {number} {toxic}")  # noqa: S311 - words, no secret
    who, what, deed, when = (chance.choice(words) for words in (_PEOPLE, _THINGS, _DEEDS, _TIMES))
    verdict = chance.choice(_RUDE if toxic else _KIND)
    return f"{when.capitalize()} {who} {deed} {what}, number {number}, and you are {verdict}."


def with_columns(values: dict[str, Any]) -> Record:
    """A record with the named columns; dots make nested records."""
    record: Record = {}
    for name, value in values.items():
        node, parts = record, name.split(".")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = value
    return record


def table(path: Path, columns: Iterable[dict[str, Any]]) -> str:
    """Write the records as JSON lines; returns the path as a recipe's source."""
    write_jsonl(path, (with_columns(values) for values in columns))
    return str(path)


def rude_half(number: int) -> bool:
    """Whether the row of that number is a rude one."""
    return number % 2 == 0
