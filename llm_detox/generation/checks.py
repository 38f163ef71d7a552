"""The door for model folders: what a folder must be before anything of it is loaded, the same for every command.

Its configuration is JSON, it brings no code, its weights are whole safetensors files, and their embeddings have the
sizes that the configuration states. Imports no torch: a folder that is only served or converted is checked alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.generation.tensor_files import AGAIN, open_tensors, read_object, weight_files, weight_map
from llm_detox.runs.artifacts import ModelFolder, TrainedFolder

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
               "sentencepiece.bpe.model")
_EMBEDDINGS = re.compile(r"(.*\.)?(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared)\.weight")
POSITIONS = re.compile(r"(.*\.)?(embed_positions|wpe|position_embeddings)\.weight")
_PICKLES = ("adapter_model.bin", "adapter_model.pt")


def check_model(folder: Path) -> None:
    """Refuse a folder that is no whole Hugging Face model.

    Raises:
        DetoxError: it has no configuration, tokenizer or safetensors weights, one of them is damaged, they do not
            belong together, or the model needs code of its own.
    """
    path = ModelFolder(folder).config
    if not path.exists():
        raise DetoxError("no config.json: this is not a Hugging Face model folder", place=str(folder),
                         remedy="give a folder that `save_pretrained` wrote, or a .gguf file")
    config = read_object(path)
    _refuse_code(folder)
    if ModelFolder(folder).generation_config.exists():
        read_object(ModelFolder(folder).generation_config)
    if not any((folder / name).exists() for name in _TOKENIZERS):
        raise DetoxError("the model folder has no tokenizer", place=str(folder),
                         remedy="save it beside the model: `tokenizer.save_pretrained(folder)`")
    if config.get("transformers_weights") is not None:
        raise DetoxError("the configuration names weight files of its own (transformers_weights)", place=str(path),
                         remedy="save the model again: `model.save_pretrained(folder)`")
    _check_sizes(config, _shapes(folder), path)


def check_adapter(folder: Path) -> None:
    """Refuse a folder that is no whole PEFT adapter.

    Raises:
        DetoxError: its configuration or its weights are damaged or missing, or it brings code.
    """
    read_object(TrainedFolder(folder).adapter_config)
    _refuse_code(folder)
    weights = TrainedFolder(folder).adapter_weights
    if not weights.exists():
        pickled = next((name for name in _PICKLES if (folder / name).exists()), None)
        raise DetoxError(f"the adapter folder has no {TrainedFolder.adapter_weights}", place=str(folder),
                         remedy=f"save the adapter again: `model.save_pretrained(folder)`; pickled weights "
                                f"({pickled or '.bin'}) are not read")
    open_tensors(weights)


def _refuse_code(folder: Path) -> None:
    """Code is never run; where a model is part of transformers all the same, it lies there without use."""
    if next(folder.rglob("*.py"), None) is None:
        return
    for path in sorted(folder.glob("*config.json")):
        if "auto_map" in read_object(path):
            raise code_refused(path)


def code_refused(path: Path) -> DetoxError:
    """The error about a model that needs code of its own."""
    return DetoxError("the model brings its own code (auto_map), which is not run", place=str(path),
                      remedy="use a model whose architecture is part of transformers; then the .py files can go")


def _shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of each tensor.

    Raises:
        DetoxError: a file is damaged, or lacks a tensor that the index looks for in it.
    """
    headers = {file.name: open_tensors(file).header for file in weight_files(folder)}
    if ModelFolder.weights not in headers:
        for name, file in weight_map(ModelFolder(folder).weights_index).items():
            if name not in headers[file]:
                raise DetoxError(f"the weight file lacks the tensor {name}", place=str(folder / file), remedy=AGAIN)
    return ((name, entry["shape"]) for header in headers.values() for name, entry in header.items())


def _check_sizes(config: Mapping[str, Any], shapes: Iterator[tuple[str, list[int]]], place: Path) -> None:
    """Compare embeddings of tokens and positions with the configuration; one with parts is left to transformers."""
    if any(isinstance(value, dict) and name.endswith("_config") for name, value in config.items()
           if name != "quantization_config"):
        return
    vocabulary = config.get("vocab_size")
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    for name, shape in shapes:
        if _EMBEDDINGS.fullmatch(name) and isinstance(vocabulary, int) and shape[0] != vocabulary:
            raise DetoxError(f"vocab_size is {vocabulary}, but {name} has {shape[0]} rows", place=str(place),
                             remedy=AGAIN)
        if POSITIONS.fullmatch(name) and isinstance(positions, int) and shape[0] < positions:
            raise DetoxError(f"max_position_embeddings is {positions}, but {name} has {shape[0]} rows",
                             place=str(place), remedy=AGAIN)
