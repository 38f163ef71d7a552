"""Merging LoRA adapters into their base (Hu et al. 2021, W + scale * B A), tensor by tensor, without torch and without
holding a model in memory.

The sum is made in float32 and rounded once to the type that the base is stored in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_detox.errors import DetoxError
from llm_detox.generation.tensor_files import TensorFile, narrow, open_tensors, read_object, weight_files
from llm_detox.progress import track
from llm_detox.runs.artifacts import ModelFolder, TrainedFolder

_CONV1D = {"gpt2", "openai-gpt", "imagegpt"}  # these keep their weights transposed
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight")


def rewrite(source: TensorFile, target: Path, change: Callable[[str], NDArray[np.float32] | None]) -> int:
    """Write a copy in which some tensors are replaced; all others keep their bits.

    Args:
        source: the file to follow: names, types, shapes and order stay.
        target: the file to write.
        change: name -> new values in float32 (rounded to the tensor's own type), or None to keep it.

    Returns:
        how many tensors were replaced.
    """
    names = sorted(source.header, key=lambda name: source.header[name]["data_offsets"][0])
    # Readers before 4.45 refuse a file that does not say which framework wrote it.
    header = {"__metadata__": {**source.metadata, "format": source.metadata.get("format", "pt")}, **source.header}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    changed = 0
    with target.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            new = change(name)
            if new is None:
                file.write(source.raw(name))
                continue
            entry = source.header[name]
            if list(new.shape) != list(entry["shape"]):
                raise ValueError(f"{name}: shape {new.shape} instead of {entry['shape']}")
            file.write(narrow(new, entry["dtype"]).tobytes())
            changed += 1
    return changed


@dataclass(frozen=True)
class Update:
    """What one adapter adds to one weight: `scale * b @ a`, b of shape [out, r], a of shape [r, in]."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float

    def delta(self) -> NDArray[np.float32]:
        result: NDArray[np.float32] = (self.b @ self.a) * np.float32(self.scale)
        return result


@dataclass(frozen=True)
class AdapterConfig:
    """What a LoRA configuration says of the size of its updates.

    Attributes:
        alpha: an update counts alpha / rank times.
        alphas: other values for modules whose names match a pattern.
        rank_stabilised: alpha / sqrt(rank) instead (Kalajdzievski 2023).
        transposed: the base keeps its weights transposed.
    """

    alpha: float
    alphas: dict[str, float]
    rank_stabilised: bool
    transposed: bool

    def scale(self, module: str, rank: int) -> float:
        """How often the update of a module counts."""
        alpha = next((value for pattern, value in self.alphas.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)),
                     self.alpha)
        return float(alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)


def write_weights(base: Path, adapters: list[Path], target: Path) -> dict[str, int]:
    """Write the base's weight files, with the adapters merged, into the folder `target`.

    Args:
        base: a Hugging Face model folder with safetensors.
        adapters: PEFT adapter folders, in the order in which they are applied; may be empty.
        target: an existing folder.

    Returns:
        the numbers of `tensors`, of those `merged`, and of `parameters`.

    Raises:
        DetoxError: an adapter is of a kind that cannot be merged, or does not fit the base.
    """
    files = weight_files(base)
    model_type = read_object(ModelFolder(base).config).get("model_type", "")
    opened = [open_tensors(file) for file in files]
    names = {name for one in opened for name in one.header}
    updates: dict[str, list[Update]] = {}
    transposed = model_type in _CONV1D
    for adapter in adapters:
        transposed |= _read_adapter(adapter, names, updates)
    merged = parameters = 0
    for one in track(opened, "writing weights", len(opened), "files"):
        merged += rewrite(one, target / one.path.name, lambda name, one=one: (  # type: ignore[misc]
            _merged(one, name, updates.get(name), transposed)))
        parameters += sum(math.prod(entry["shape"]) for entry in one.header.values())
    index = ModelFolder(base).weights_index
    if index.exists():
        (target / index.name).write_bytes(index.read_bytes())
    return {"tensors": len(names), "merged": merged, "parameters": parameters}


def _merged(file: TensorFile, name: str, updates: list[Update] | None, transposed: bool) -> NDArray[np.float32] | None:
    if not updates:
        return None
    weight = file.float32(name)
    for update in updates:
        delta = update.delta()
        if transposed:
            delta = delta.T
        if delta.shape != weight.shape:
            raise DetoxError(f"the adapter does not fit the base: {name} has shape {list(weight.shape)}, "
                             f"the adapter adds {list(delta.shape)}", place=str(file.path),
                             remedy="use the base that the adapter was trained on")
        weight = weight + delta
    return weight


def _read_adapter(folder: Path, names: set[str], updates: dict[str, list[Update]]) -> bool:
    """Add an adapter's updates by weight name; returns whether it says that weights are kept transposed."""
    config = _read_config(folder)
    file = open_tensors(TrainedFolder(folder).adapter_weights)
    modules: dict[str, dict[str, str]] = {}
    for key in file.header:
        match = _KEY.fullmatch(key)
        if match is None:
            raise DetoxError(f"the adapter holds a tensor that cannot be merged: {key}", place=str(folder),
                             remedy="merge it with PEFT (`merge_and_unload`), save that, and convert the result")
        modules.setdefault(match["module"], {})[match["side"]] = key
    for module, sides in modules.items():
        if sides.keys() != {"A", "B"}:
            raise DetoxError(f"the adapter has half of its update of {module}", place=str(folder),
                             remedy="save the adapter again")
        a, b = file.float32(sides["A"]), file.float32(sides["B"])
        update = Update(a, b, config.scale(module, a.shape[0]))
        updates.setdefault(_weight_name(module, names, folder), []).append(update)
    return config.transposed


def _read_config(folder: Path) -> AdapterConfig:
    """The adapter's configuration.

    Raises:
        DetoxError: the adapter is of a kind that adds more than low-rank updates of weights.
    """
    config = read_object(TrainedFolder(folder).adapter_config)
    reasons = [name for name in ("use_dora", "modules_to_save", "layer_replication", "lora_bias", "target_parameters",
                                 "trainable_token_indices", "use_qalora") if config.get(name)]
    if config.get("peft_type") != "LORA":
        reasons.append(f"peft_type={config.get('peft_type')}")
    if config.get("bias", "none") != "none":
        reasons.append(f"bias={config['bias']}")
    # PiSSA, OLoRA, CorDA and LoftQ change the base as well.
    if not isinstance(config.get("init_lora_weights", True), bool) and \
            config["init_lora_weights"] not in ("gaussian", "orthogonal", "eva"):
        reasons.append(f"init_lora_weights={config['init_lora_weights']}")
    if reasons:
        raise DetoxError(f"an adapter of this kind cannot be merged here: {', '.join(reasons)}", place=str(folder),
                         remedy="merge it with PEFT (`merge_and_unload`), save that, and convert the result")
    return AdapterConfig(float(config["lora_alpha"]), config.get("alpha_pattern") or {},
                         rank_stabilised=bool(config.get("use_rslora")),
                         transposed=bool(config.get("fan_in_fan_out")))


def _weight_name(module: str, names: set[str], folder: Path) -> str:
    """The base's name for a module's weight; older checkpoints leave out the first part of it."""
    candidates = [f"{module}.weight", f"{module.partition('.')[2]}.weight"]
    for candidate in candidates:
        if candidate in names:
            return candidate
    why = "it shares its values with the embeddings" if module.endswith("lm_head") else "the base stores no such weight"
    raise DetoxError(f"the adapter changes {module}, but {why}", place=str(folder),
                     remedy="use the base that the adapter was trained on, and train with lora.target_modules that "
                            "leave this module out")
