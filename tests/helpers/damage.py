"""Files that are not what their names say, as downloads leave them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

LFS_POINTER = (b"version https://git-lfs.github.com/spec/v1\n"
               b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 1048576\n")
WEB_PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Access is restricted</body></html>\n"


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; None takes one out."""
    value = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({key: one for key, one in value.items() if one is not None}), "utf-8")


def cut(path: Path, left_out: int = 100) -> None:
    path.write_bytes(path.read_bytes()[:-left_out])


def with_code(folder: Path) -> Path:
    """Make the model one that asks for code of its own, which says when it is run."""
    edit_json(folder / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (folder / "own.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('was_run').touch()\n", "utf-8")
    return folder


def split_weights(folder: Path, shards: int = 3) -> list[Path]:
    """Write the model's one weight file as several with an index."""
    from safetensors.torch import load_file, save_file

    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    names, files, weight_map = sorted(tensors), [], {}
    for number in range(shards):
        path = folder / f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number::shards]
        save_file({name: tensors[name] for name in mine}, path, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(mine, path.name))
        files.append(path)
    whole.unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return files


def without_tensors(path: Path, part: str) -> None:
    """Take the tensors with this in their names out of a weight file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if part not in name}, path, metadata={"format": "pt"})


def save_gguf(path: Path, *, layers: int = 2, described: int = 2, split: tuple[int, int] | None = None) -> Path:
    """Write a tiny Llama as GGUF.

    Args:
        layers: how many are in the file.
        described: how many the header says that the model has.
        split: (number, count) of the part that the file says it is.
    """
    import gguf
    import numpy as np

    width, heads, vocabulary = 32, 2, 60
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(described)
    writer.add_feed_forward_length(64)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<s>", "</s>", *[chr(0x21 + number) for number in range(vocabulary - 3)], "AB"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (vocabulary - 2)])
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if split:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
    generator = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, generator.normal(size=shape).astype(np.float32))

    add("token_embd.weight", vocabulary, width)
    add("output_norm.weight", width)
    add("output.weight", vocabulary, width)
    for layer in range(layers):
        for name, shape in (("attn_norm", (width,)), ("ffn_norm", (width,)), ("attn_q", (width, width)),
                            ("attn_k", (width, width)), ("attn_v", (width, width)), ("attn_output", (width, width)),
                            ("ffn_gate", (64, width)), ("ffn_up", (64, width)), ("ffn_down", (width, 64))):
            add(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
