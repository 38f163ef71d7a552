"""What steps hand on: the names of the files in their folders, typed access to them, and the arms of the experiment.

A kind of folder is a class, a file of it an attribute. `DataFolder.texts` is the file's name,
`DataFolder(path).texts` its path. Files that only an unfinished step needs are no business of others
and stay with their step. A JSON file holds a dataclass: its keys are the names of the fields, in their order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, overload

from pydantic import BaseModel, BeforeValidator, TypeAdapter

BASE, RAW, FILTERED, DETOXIFIED, DPO = "base", "raw", "filtered", "detoxified", "dpo"
ARMS = (BASE, RAW, FILTERED, DETOXIFIED, DPO)
"""The arms in the order of comparison: the untouched model, SFT on the texts as they are, SFT on those of them that
need no rewriting, SFT on the rewritten texts, and DPO after that. The last is the one to publish."""


class File:
    """A file of a step's folder: its name on the class, its path on a folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, folder: None, kind: type[Folder]) -> str: ...

    @overload
    def __get__(self, folder: Folder, kind: type[Folder]) -> Path: ...

    def __get__(self, folder: Folder | None, kind: type[Folder]) -> str | Path:
        return self.name if folder is None else folder.path / self.name


@dataclass(frozen=True)
class Folder:
    """A step's folder, finished or being written."""

    path: Path


class DataFolder(Folder):
    """What `data` writes, JSON lines each; `skipped` only where bad records were left out."""

    texts = File("texts.jsonl")
    prompts = File("prompts.jsonl")
    train_prompts = File("train_prompts.jsonl")
    clean = File("clean.jsonl")
    clean_train = File("clean_train.jsonl")
    held_out = File("held_out.jsonl")
    skipped = File("skipped.jsonl")


class RewrittenFolder(Folder):
    """What `detoxify` writes: one record for each text; and those of them alone that it kept as they were."""

    records = File("records.jsonl")
    kept = File("kept.jsonl")


class ParaphrasesFolder(Folder):
    """What `paraphrase-pairs` writes: candidates in order, the best of each text, and pairs for DPO."""

    ranked = File("ranked.jsonl")
    best = File("best.jsonl")
    pairs = File("pairs.jsonl")


class ModelFolder(Folder):
    """A model in the format of Hugging Face."""

    config = File("config.json")
    generation_config = File("generation_config.json")
    tokenizer = File("tokenizer.json")
    tokenizer_config = File("tokenizer_config.json")
    weights = File("model.safetensors")
    weights_index = File("model.safetensors.index.json")


class TrainedFolder(Folder):
    """What `sft` and `dpo` write: an adapter in the format of PEFT, or a whole model, with notes of ours.

    Attributes:
        base: what the adapter or model was trained from.
        metrics: figures of each logged step.
        pairs: the preferences that `dpo` trained on.
    """

    adapter_config = File("adapter_config.json")
    adapter_weights = File("adapter_model.safetensors")
    base = File("base.json")
    metrics = File("metrics.jsonl")
    pairs = File("pairs.jsonl")

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is there; the folder of another model has none."""
        return self.adapter_config.exists()


class EvaluationFolder(Folder):
    """What `evaluate` writes for one arm.

    Attributes:
        report: the figures.
        values: the numbers of each prompt and text, by which arms are paired.
        generations: prompts with their scored continuations.
        clean_generations: continuations of clean passages.
        verdicts: what the judge said, where it was asked.
    """

    report = File("report.json")
    values = File("values.json")
    generations = File("generations.jsonl")
    clean_generations = File("clean_generations.jsonl")
    verdicts = File("verdicts.jsonl")


class ReportFolder(Folder):
    """What `report` writes for all arms: the same content for programs, browsers and editors, and the model card."""

    report = File("report.json")
    page = File("report.html")
    markdown = File("report.md")
    model_card = File("model_card.md")


class JudgeFolder(Folder):
    """What `judge` writes: its figures, and a verdict for each conversation."""

    report = File("judge.json")
    verdicts = File("verdicts.jsonl")


class JudgeDataFolder(Folder):
    """What `judge-data` writes: every labelled answer, and the rows that train and test a judge."""

    labelled = File("labelled.jsonl")
    train = File("train.jsonl")
    test = File("test.jsonl")


class RefusalsFolder(Folder):
    """What `stop-hate` writes: every answer, and the shares."""

    answers = File("answers.jsonl")
    report = File("refusals.json")


class DeploymentFolder(Folder):
    """What `deploy` writes: how the model is reached."""

    deployment = File("deployment.json")


class SmokeFolder(Folder):
    """What `smoke` writes: what the served model answered."""

    answers = File("answers.json")


class OutcomeFolder(Folder):
    """What `outcome` writes: how a run ended, for programs and for people."""

    outcome = File("outcome.json")
    page = File("outcome.md")


T = TypeVar("T")
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that may be unknown: NaN in memory, null in the file, for NaN is no JSON."""
OPTIONAL = {"optional": True}
"""Metadata of a field that the file leaves out where it is None."""


def plain(value: object) -> Any:
    """JSON values of a dataclass, and of all that it holds."""
    if is_dataclass(value):
        values = ((one, getattr(value, one.name)) for one in fields(value))
        return {one.name: plain(part) for one, part in values if part is not None or not one.metadata.get("optional")}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(path: Path, value: object, *, compact: bool = False) -> None:
    """Write a dataclass, or plain values, as a file that people read; `compact` is for long lists of numbers."""
    text = json.dumps(plain(value)) if compact else json.dumps(plain(value), indent=2, ensure_ascii=False)
    path.write_text(text, "utf-8")


def read_json(path: Path, kind: type[T]) -> T:
    """Read what `write_json` wrote from a dataclass of this kind; keys that it does not have are left out.

    Raises:
        OSError: the file is missing.
        ValueError: it is no JSON, or lacks a field, or a value is of another type.
    """
    return TypeAdapter(kind).validate_python(json.loads(path.read_text("utf-8")))
