"""Loading causal language models: hub id, folder, S3, a packaged GGUF file, or an adapter that a step wrote.

No remote code is run and no pickle is read: weights are safetensors or GGUF.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from tokenizers import Tokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llm_detox.data.sources import fetch
from llm_detox.errors import DetoxError
from llm_detox.generation.checks import POSITIONS, check_adapter, check_model, code_refused
from llm_detox.generation.gguf_files import converted, incomplete, packaged_gguf
from llm_detox.generation.tensor_files import AGAIN, read_object
from llm_detox.progress import say
from llm_detox.recipe.base import Precision
from llm_detox.runs.artifacts import ModelFolder, TrainedFolder

if TYPE_CHECKING:
    from peft import PeftModel

# What configurations call the length of the longest sequence.
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length",
            "max_seq_length", "seq_len")
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LONGEST_CAUSE = 300  # characters


def device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(on: torch.device | None = None) -> torch.dtype:
    """bfloat16 on a GPU that has it; float32 on CPUs, where bfloat16 products can be 300 times slower."""
    on = on or device()
    return torch.bfloat16 if on.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def resolve_dtype(precision: Precision) -> torch.dtype:
    """The dtype of products that a recipe asks for: `auto` is `compute_dtype()`, `bf16` takes in CPUs that do it well.

    CPUs with AMX are about twice as fast in bf16 (docs/rephrasing.md), others slower by up to two orders: those
    compute in float32, with a message.
    """
    if precision == "float32":
        return torch.float32
    if precision == "bf16" and compute_dtype() is torch.float32:
        if device().type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16"):
            return torch.bfloat16
        say("precision bf16: float32 here, since bf16 is slower by up to two orders on a CPU without AMX or an old GPU")
    return compute_dtype()


def model_folder(source: str) -> Path:
    """A local Hugging Face folder for the source; a GGUF file is converted once and kept in the cache.

    Every command that takes a model comes through here: what a folder must be, `check_model` and `check_adapter` say.

    Raises:
        DetoxError: the source is missing, is no whole model, brings code, or is of a type that is not known here.
    """
    path = fetch(source, kind="model")
    if TrainedFolder(path).is_adapter:
        check_adapter(path)
        return path
    if gguf := packaged_gguf(path):
        return converted(gguf)
    check_model(path)
    check_type(path)
    return path


def check_type(folder: Path) -> None:
    """Refuse a model whose architecture transformers does not have.

    Raises:
        DetoxError: `model_type` is missing or unknown, stands for code of the model's own, or other values are wrong.
    """
    place = ModelFolder(folder).config
    config = read_object(place)
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        open_config(folder)
        return
    if "auto_map" in config:
        raise code_refused(place)
    raise DetoxError(f"the model type {kind!r} is not known to transformers {transformers.__version__}",
                     place=str(place), remedy="use a model whose architecture is part of this release")


def open_config(folder: Path) -> PretrainedConfig:
    """The configuration of a checked model folder.

    Raises:
        DetoxError: it does not fit its model type.
    """
    try:
        return cast("PretrainedConfig", AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:  # the library raises all kinds for values that it does not expect
        raise _unusable("configuration", folder, error) from error


def base_folder(folder: Path) -> Path:
    """The folder of the whole model below a checked folder, which may be an adapter's."""
    while TrainedFolder(folder).is_adapter:
        folder = model_folder(read_base_source(folder))
    return folder


def positions(config: PretrainedConfig) -> int | None:
    """How many tokens a model of this configuration can read; None where it does not say.

    Some models have an embedding for each position, and fail beyond the last; others get worse there.
    """
    text = config.get_text_config()
    return next((int(length) for name in _LENGTHS if (length := getattr(text, name, None))), None)


def learns_positions(model: PreTrainedModel) -> bool:
    """Whether the model has an embedding for each position, as OPT and GPT-2 do."""
    return any(isinstance(part, torch.nn.Embedding) and POSITIONS.fullmatch(f"{name}.weight")
               for name, part in model.named_modules())


def open_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a checked model folder, as it is.

    Raises:
        DetoxError: its files cannot be read, or the model has no embeddings for some of its tokens.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
        vocabulary = tokenizer.get_vocab()
    except Exception as error:  # the libraries raise bare ones for damaged files
        raise _unusable("tokenizer", folder, error) from error
    rows = getattr(open_config(base_folder(folder)).get_text_config(), "vocab_size", None)
    if rows and (beyond := {token for token, number in vocabulary.items() if number >= rows}):
        _leave_out(tokenizer, beyond, rows, folder)
    return tokenizer


def _leave_out(tokenizer: PreTrainedTokenizerBase, tokens: set[str], rows: int, folder: Path) -> None:
    """Forget tokens without an embedding, such as Gemma's for images: a text with one would end in an index error.

    Raises:
        DetoxError: one is no special token, or has a role in texts: without it the model would read other texts.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    used = {str(token) for role in _ROLES if (token := getattr(tokenizer, role))}
    needed = [token for token in tokens if token not in special or token in used
              or token in str(tokenizer.chat_template or "")]
    if needed or not tokenizer.is_fast:
        raise DetoxError(f"{len(tokens)} tokens of the tokenizer, such as {min(needed or tokens)}, are beyond the "
                         f"model's {rows} embeddings", place=str(folder),
                         remedy="`model.resize_token_embeddings(len(tokenizer))`, and save the model")
    say(f"the model has no embeddings for {', '.join(sorted(tokens))}: in a text they are read as plain characters")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [one for one in state["added_tokens"] if one["content"] not in tokens]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model source, with a pad token and left padding (for generation).

    Raises:
        DetoxError: there is none, or no token of it ends a text.
    """
    folder = model_folder(str(source))
    tokenizer = open_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise DetoxError("the tokenizer names no token that ends a text (eos_token)", place=str(folder),
                         remedy="set it and save: `tokenizer.eos_token = ...; tokenizer.save_pretrained(folder)`")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def load_model(source: str | Path, *, dtype: torch.dtype | None = None, **options: Any) -> PreTrainedModel:
    """The model of a source, in eval mode on `device()`; an adapter folder comes merged into its base.

    Args:
        source: see `llm_detox.data.sources`; or an adapter folder of ours (`write_base_source`).
        dtype: of the weights; the default is `compute_dtype()`.
        options: for `from_pretrained`, such as `quantization_config`.
    """
    folder = model_folder(str(source))
    dtype = dtype or compute_dtype()
    if TrainedFolder(folder).is_adapter:
        base = load_model(read_base_source(folder), dtype=dtype, **options)
        merged: PreTrainedModel = put_adapter(base, folder).merge_and_unload()  # type: ignore[operator]
        merged.eval()
        return merged
    return open_weights(AutoModelForCausalLM, folder, dtype=dtype, **options)


def open_weights(kind: Any, folder: Path, *, optional: str = "", **options: Any) -> PreTrainedModel:
    """A model of a checked folder in eval mode, on `device()` unless an option says where it goes.

    Args:
        kind: one of transformers' Auto classes.
        folder: see `model_folder`.
        optional: pattern of weights that may be missing; any other would be random numbers.
        options: for `from_pretrained`.

    Raises:
        DetoxError: the weights do not make up a model of that kind.
    """
    try:
        model, loading = kind.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the libraries raise all kinds for weights and settings that do not fit
        raise _unusable("model", folder, error) from error
    missing = [name for name in loading["missing_keys"] if not (optional and re.search(optional, name))]
    if missing:
        raise incomplete(missing, str(folder))
    if not {"quantization_config", "distributed_config"} & options.keys():  # those are in their place already
        model.to(device())
    model.eval()
    return cast("PreTrainedModel", model)


def put_adapter(model: PreTrainedModel | PeftModel, folder: Path, *, name: str = "default",
                trainable: bool = False) -> PeftModel:
    """The model with the adapter of a checked folder on it, beside those that it has already.

    Raises:
        DetoxError: the adapter does not fit the model.
    """
    from peft import PeftModel

    try:
        if isinstance(model, PeftModel):
            missing = model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable).missing_keys
            if missing:
                raise ValueError(f"it lacks {missing[0]}")
            return model
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*missing adapter keys")  # they would be random numbers
            return PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=trainable)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the library raises all kinds for what does not fit
        raise DetoxError(f"the adapter does not fit the model ({_shortly(error)})", place=str(folder),
                         remedy="use the base that the adapter was trained on") from error


def write_base_source(folder: Path, base: str) -> None:
    """Note in an adapter folder which base it belongs to, as a source that every machine can resolve."""
    TrainedFolder(folder).base.write_text(json.dumps({"base": base}), "utf-8")


def read_base_source(folder: Path) -> str:
    """The base model source of an adapter folder.

    Raises:
        DetoxError: the folder does not name one.
    """
    note = TrainedFolder(folder).base
    path, key = (note, "base") if note.exists() else (TrainedFolder(folder).adapter_config, "base_model_name_or_path")
    source = read_object(path).get(key)
    if not isinstance(source, str) or not source:
        raise DetoxError(f"the adapter does not name its base model ({key})", place=str(path),
                         remedy="save the adapter again, or write the base's source there")
    return source


def _unusable(what: str, folder: Path, error: Exception) -> DetoxError:
    return DetoxError(f"the {what} cannot be loaded ({_shortly(error)})", place=str(folder), remedy=AGAIN)


def _shortly(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_CAUSE]}"
