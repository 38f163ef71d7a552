"""The model that is served: merged, and in one folder that Caikit, TGIS, vLLM and transformers all load.

    config.yml            Caikit's description of the model
    artifacts/            a Hugging Face folder with safetensors, down-levelled for old readers
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any, TypedDict

import yaml

from llm_detox.errors import DetoxError, UsageError
from llm_detox.export.merge import write_weights
from llm_detox.export.readers import (
    READERS,
    old_config,
    old_generation_config,
    old_tokenizer,
    old_tokenizer_config,
    unreadable,
)
from llm_detox.generation.tensor_files import read_object
from llm_detox.progress import say
from llm_detox.runs.artifacts import ModelFolder, ReportFolder, TrainedFolder
from llm_detox.runs.folders import digest_of, sha256_of, step_folder

ARTIFACTS = "artifacts"
_MODULE_ID = "f9181353-4ccf-4572-bd1e-f12bcda26792"
_MODULE_CLASS = "caikit_nlp.modules.text_generation.text_generation_local.TextGeneration"
_PROBES = ["Hello, world!", " two  blanks\n\nand\ttabs ", "naïve café 東京 🙂", "def f(x): return x != 1.5e-3",
           "I'm , we 've !"]


class Conversion(TypedDict):
    """What a conversion wrote: counts of tensors and parameters; reader -> "yes", or why it cannot read the model."""

    tensors: int
    merged: int
    parameters: int
    dtype: str | None
    model_type: str | None
    readers: dict[str, str]


def convert(*, model: str, output: Path, card: Path | None = None, oldest_reader: str | None = None) -> Conversion:
    """Merge adapters into their base and write the folder that is served.

    Args:
        model: a model source: adapter folder, Hugging Face folder, hub id, s3:// or package://.
        output: the folder to make: `config.yml` and `artifacts/`.
        card: a model card in the Hub's format, or the report folder that holds `model_card.md`.
        oldest_reader: a transformers release such as "4.40": refuse what it could not read. Without it the result
            says who can read the model and who cannot.

    Returns:
        `merged` (tensors), `tensors`, `parameters`, `dtype`, `model_type`, and `readers`: name -> "yes" or the reason.

    Raises:
        DetoxError: the source is incomplete (weights, tokenizer), an adapter cannot be merged, or the oldest reader
            asked for could not read the result.
    """
    base, adapters, tokenizer = _sources(model)
    card_file = _card_file(card)
    inputs = {"model": (adapters or [base])[-1], **({"card": card_file} if card_file else {})}
    with step_folder(output, "caikit-model", settings={"oldest_reader": oldest_reader}, inputs=inputs) as folder:
        artifacts = folder / ARTIFACTS
        artifacts.mkdir()
        written = ModelFolder(artifacts)
        config = old_config(read_object(ModelFolder(base).config))
        _write_json(written.config, config)
        if ModelFolder(base).generation_config.exists():
            settings = old_generation_config(read_object(ModelFolder(base).generation_config))
            _write_json(written.generation_config, settings)
        tokens = _write_tokenizer(tokenizer, artifacts)
        readers = _check_readers(config, read_object(written.tokenizer), oldest_reader, base)
        figures = write_weights(base, adapters, artifacts)
        _copy_papers(base, card_file, artifacts)
        _write_caikit(folder / "config.yml", config, tokens, artifacts)
        result = Conversion(
            tensors=figures["tensors"], merged=figures["merged"], parameters=figures["parameters"],
            dtype=config.get("torch_dtype"), model_type=config.get("model_type"), readers=readers)
        folder.result.update(result)
        for name, answer in readers.items():
            if answer != "yes":
                say(f"note: {name} cannot read this model: {answer}")
        return result


def _sources(model: str) -> tuple[Path, list[Path], Path]:
    """The base's folder, the adapters in the order in which they are applied, and where the tokenizer is."""
    from llm_detox.generation.models import model_folder, read_base_source  # torch loads only for a conversion

    folder = model_folder(model)
    adapters: list[Path] = []
    while TrainedFolder(folder).is_adapter:
        adapters.insert(0, folder)
        folder = model_folder(read_base_source(folder))
    with_tokenizer = [one for one in reversed(adapters) if ModelFolder(one).tokenizer.exists()]
    return folder, adapters, (with_tokenizer or [folder])[0]


def _card_file(card: Path | None) -> Path | None:
    if card is None:
        return None
    file = ReportFolder(card).model_card if card.is_dir() else card
    if not file.is_file():
        raise DetoxError("there is no model card here", place=str(file), remedy="pass the file, or the report's folder")
    return file


def _write_tokenizer(source: Path, artifacts: Path) -> dict[str, Any]:
    """Write the tokenizer's files down-levelled, and check that it still makes the same tokens; returns its config."""
    from llm_detox.generation.models import load_tokenizer, open_tokenizer

    tokenizer: Any = load_tokenizer(source)
    if not tokenizer.is_fast:
        raise DetoxError("the tokenizer has no tokenizer.json form", place=str(source),
                         remedy="use a model whose tokenizer the `tokenizers` library can express")
    tokenizer.save_pretrained(artifacts)
    written = ModelFolder(artifacts)
    templates = _take_templates(artifacts, read_object(written.tokenizer_config).get("chat_template"))
    config = old_tokenizer_config(
        {key: value for key, value in read_object(written.tokenizer_config).items()
         if key not in ("chat_template", "padding_side")},
        templates, ["input_ids", "attention_mask"], bool(tokenizer.clean_up_tokenization_spaces))
    config["padding_side"] = "left"  # for generation
    _write_json(written.tokenizer_config, config)
    _write_json(written.tokenizer, old_tokenizer(read_object(written.tokenizer)), indent=None)
    again: Any = open_tokenizer(artifacts)
    for text in _PROBES:
        ids = tokenizer(text)["input_ids"]
        if again(text)["input_ids"] != ids or again.decode(ids) != tokenizer.decode(ids):
            raise DetoxError(f"the tokenizer changes when written for old readers (text {text!r})", place=str(source),
                             remedy="report it with the model's name: the export does not know this tokenizer")
    return config


def _take_templates(artifacts: Path, in_config: Any) -> dict[str, str]:
    """The chat templates by name; their files are removed, because old readers look into tokenizer_config.json."""
    templates = {"default": in_config} if isinstance(in_config, str) else {}
    if isinstance(in_config, list):
        templates = {one["name"]: one["template"] for one in in_config}
    if (artifacts / "chat_template.jinja").exists():
        templates["default"] = (artifacts / "chat_template.jinja").read_text("utf-8")
        (artifacts / "chat_template.jinja").unlink()
    if (artifacts / "additional_chat_templates").is_dir():
        for file in sorted((artifacts / "additional_chat_templates").glob("*.jinja")):
            templates[file.stem] = file.read_text("utf-8")
        shutil.rmtree(artifacts / "additional_chat_templates")
    return templates


def _check_readers(config: dict[str, Any], tokenizer: dict[str, Any], oldest: str | None, base: Path) -> dict[str, str]:
    """Reader -> "yes" or why not; the oldest requested one must be able to read the model."""
    if oldest is not None:
        major, _, rest = oldest.partition(".")
        minor = rest.partition(".")[0] or "0"
        if not (major.isdigit() and minor.isdigit()):
            raise UsageError(f"{oldest!r} is not a release of transformers", remedy="write it as 4.40")
        if reasons := unreadable(config, tokenizer, (int(major), int(minor))):
            raise DetoxError(f"transformers {oldest} cannot read this model: {'; '.join(reasons)}", place=str(base),
                             remedy="serve it with a newer reader, and leave out the oldest reader")
    return {f"{name} (transformers {major}.{minor})": "; ".join(unreadable(config, tokenizer, (major, minor))) or "yes"
            for name, (major, minor) in READERS.items()}


def _copy_papers(base: Path, card: Path | None, artifacts: Path) -> None:
    for pattern in ("LICENSE*", "NOTICE*"):
        for file in base.glob(pattern):
            shutil.copyfile(file, artifacts / file.name)
    if card is not None:
        shutil.copyfile(card, artifacts / "README.md")


def _write_caikit(path: Path, config: dict[str, Any], tokens: dict[str, Any], artifacts: Path) -> None:
    # The id follows from the content, so that the same model makes the same file.
    content = digest_of([sha256_of(file) for file in sorted(artifacts.iterdir()) if file.is_file()])
    dtype = str(config.get("torch_dtype") or "float32")
    path.write_text(yaml.safe_dump({
        "module_id": _MODULE_ID, "module_class": _MODULE_CLASS, "name": "Text Generation", "version": "0.1.0",
        "artifact_path": ARTIFACTS, "eos_token": _text_of(tokens.get("eos_token")),
        "torch_dtype": dtype, "trained_torch_dtype": dtype, "training_logs": [],
        "tracking_id": str(uuid.uuid5(uuid.NAMESPACE_OID, content)),
    }, sort_keys=False, allow_unicode=True), "utf-8")


def _text_of(token: Any) -> str | None:
    return str(token["content"]) if isinstance(token, dict) else token if isinstance(token, str) else None


def _write_json(path: Path, value: object, indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False), "utf-8")
