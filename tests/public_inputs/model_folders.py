"""Public reports about model folders and files: what downloads leave, shards, unknown kinds, adapters, GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from llm_detox.generation.checks import check_adapter, check_model
from llm_detox.generation.models import load_model, load_tokenizer
from tests.helpers.damage import LFS_POINTER, WEB_PAGE, copy_of, cut, edit_json, save_gguf, split_weights
from tests.helpers.tiny import save_tiny_llama
from tests.public_inputs.case import Case, Refused

_WEIGHTS, _CONFIG, _INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
_ZIP = b"PK\x03\x04" + b"\0" * 2000  # how a pickled checkpoint begins


@cache
def _whole() -> Path:
    return save_tiny_llama(Path(mkdtemp()) / "llama")


def _copy(folder: Path) -> Path:
    return copy_of(_whole(), folder / "model")


def checked(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    """Looks at a model folder after the damage, as every command does first."""
    def read(folder: Path) -> object:
        damage(model := _copy(folder))
        return check_model(model)

    return read


def loaded(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    """Loads a model folder after the damage."""
    def read(folder: Path) -> object:
        damage(model := _copy(folder))
        load_tokenizer(model)
        return type(load_model(model)).__name__

    return read


def adapter(files: dict[str, bytes]) -> Callable[[Path], object]:
    """Looks at an adapter's folder with these files."""
    def read(folder: Path) -> object:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return check_adapter(folder)

    return read


def gguf(damage: Callable[[Path], object], *, split: tuple[int, int] | None = None) -> Callable[[Path], object]:
    """Looks at a GGUF file after the damage."""
    def read(folder: Path) -> object:
        from llm_detox.generation.gguf_files import check_gguf

        damage(path := save_gguf(folder / "model.gguf", split=split))
        return check_gguf(path)

    return read


def _put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _edit(**changes: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / _CONFIG, **changes)


def _long_header(folder: Path) -> None:
    (folder / _WEIGHTS).write_bytes(b"\x40\x9d\xdf\x07\0\0\0\0" + b"{" + b" " * 500)


def _half_index(folder: Path) -> None:
    """An index of twice as many shards as there are."""
    split_weights(folder, 2)
    index = json.loads((folder / _INDEX).read_text("utf-8"))
    names = {name: f"model-{number % 4 + 1:05d}-of-00004.safetensors"
             for number, name in enumerate(index["weight_map"])}
    (folder / _INDEX).write_text(json.dumps({"weight_map": names}), "utf-8")


def _suffix_in_the_middle(folder: Path) -> None:
    split_weights(folder, 2)
    text = (folder / _INDEX).read_text("utf-8")
    for number in (1, 2):
        old, new = f"model-0000{number}-of-00002", f"model.safetensors-0000{number}-of-00002"
        (folder / f"{old}.safetensors").rename(folder / f"{new}.safetensors")
        text = text.replace(old, new)
    (folder / _INDEX).write_text(text, "utf-8")


def _own_names(folder: Path) -> None:
    shutil.move(folder / _WEIGHTS, folder / "out-00000.safetensors")


WEIGHTS = (
    Case("safetensors/safetensors#668", "a header that says it has 126 MB", checked(_long_header),
         Refused("not a whole safetensors file")),
    Case("safetensors/safetensors#414", "a pickled checkpoint under the name of safetensors",
         checked(_put(_WEIGHTS, _ZIP)),
         Refused("not a whole safetensors file")),
    Case("haofanwang/Lora-for-Diffusers#3", "a Git LFS pointer in place of weights",
         checked(_put(_WEIGHTS, LFS_POINTER)),
         Refused("a Git LFS pointer lies in the file's place")),
    Case("kohya-ss/sd-scripts#990", "a checkpoint beside no weights",
         checked(lambda folder: (folder / _WEIGHTS).rename(folder / "model.ckpt")), Refused("no safetensors weights")),
    Case("huggingface/peft#298", "pickled weights alone",
         checked(lambda folder: (folder / _WEIGHTS).rename(folder / "pytorch_model.bin")),
         Refused("no safetensors weights[\\s\\S]*pickled weights \\(.bin\\) are not read")),
    Case("sgl-project/sglang#32279", "a shard of the index is missing",
         checked(lambda folder: split_weights(folder)[1].unlink()), Refused("lacks a weight file")),
    Case("Neph0s/CoSER#3", "an index of twice as many shards as there are", checked(_half_index),
         Refused("model-0000.-of-00004.safetensors: the model folder lacks a weight file")),
    Case("shamantechnology/xotorch#11", "one weight file, and no index",
         loaded(lambda folder: None), "LlamaForCausalLM"),
    Case("unslothai/unsloth-zoo#900", "shards with the suffix in the middle of their names",
         loaded(_suffix_in_the_middle), "LlamaForCausalLM"),
    Case("JustVugg/colibri#586", "weights under names of another program", checked(_own_names),
         Refused("no safetensors weights")),
)

CONFIGURATION = (
    Case("huggingface/transformers#42381", "no model_type", loaded(_edit(model_type=None)),
         Refused("the model type None is not known")),
    Case("wdndev/tiny-llm-zh#7", "a model_type that is not known", loaded(_edit(model_type="tinyllm")),
         Refused("the model type 'tinyllm' is not known")),
    Case("huggingface/transformers.js#921", "the key model in place of model_type",
         loaded(_edit(model_type=None, model={"type": "voice"})), Refused("the model type None is not known")),
    Case("huggingface/peft#523", "no config.json", checked(lambda folder: (folder / _CONFIG).unlink()),
         Refused("no config.json")),
    Case("huggingface/transformers#12763", "one embedding more in the configuration than in the weights",
         checked(lambda folder: edit_json(folder / _CONFIG, vocab_size=1 + json.loads(
             (folder / _CONFIG).read_text("utf-8"))["vocab_size"])),
         Refused("vocab_size is [0-9]+, but .* has [0-9]+ rows")),
)

ADAPTERS = (
    Case("huggingface/peft#420", "weights without adapter_config.json", adapter({"adapter_model.bin": b"PK"}),
         Refused("adapter_config.json: cannot be read: No such file")),
    Case("huggingface/peft#1661", "a model's configuration in the adapter's place",
         adapter({"adapter_config.json": b'{"model_type": "chatglm"}', "configuration_chatglm.py": b""}),
         Refused("the adapter folder has no adapter_model.safetensors")),
    Case("tloen/alpaca-lora#503", "an empty folder", adapter({}),
         Refused("adapter_config.json: cannot be read: No such file")),
)

GGUF = (
    Case("city96/ComfyUI-GGUF#43", "a file that is no GGUF", gguf(lambda path: path.write_bytes(b"\0" * 400)),
         Refused("not a whole GGUF file")),
    Case("augmentedmike/miniclaw-os#495", "a web page in its place", gguf(lambda path: path.write_bytes(WEB_PAGE)),
         Refused("a web page lies in the file's place")),
    Case("ggml-org/llama.cpp#9498", "an empty part",
         gguf(lambda path: path.write_bytes(b"")), Refused("model.gguf: damaged")),
    Case("ggml-org/llama.cpp#8264", "the second of six parts", gguf(lambda path: None, split=(1, 6)),
         Refused("one of 6 parts of a model[\\s\\S]*merge")),
    Case("1bit-MONSTER/1bit-MONSTER#1606", "a download that was cut among the values",
         gguf(lambda path: cut(path, 1000)), Refused("not a whole GGUF file \\(it ends early\\)")),
    Case("gittensor-ai-lab/sparkinfer#25", "a header alone, without the values",
         gguf(lambda path: path.write_bytes(path.read_bytes()[:2500])), Refused("not a whole GGUF file")),
)

CASES = WEIGHTS + CONFIGURATION + ADAPTERS + GGUF
