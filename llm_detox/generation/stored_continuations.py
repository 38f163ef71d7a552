"""Continuations that were drawn before: by a run of ours, by its shards, or elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llm_detox.data.records import numbered_id, record_id
from llm_detox.errors import DetoxError
from llm_detox.generation.generators import Progress, Texts
from llm_detox.recipe.evaluation import SamplingSection


class StoredContinuations:
    """Continuations from files in RealToxicityPrompts' record format; records without an id are known by their prompt.

    Raises:
        DetoxError: a prompt has no record in the files, or its record has fewer continuations than asked for.
    """

    def __init__(self, files: Sequence[Path], name: str) -> None:
        self.name = name
        self._places: dict[str, tuple[Path, int]] = {}
        seen: dict[str, int] = {}
        for path in files:
            for identity, offset in record_offsets(path, seen):
                self._places.setdefault(identity, (path, offset))

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: SamplingSection, seed: int,
                      keys: Sequence[str], on_progress: Progress = None) -> Iterator[tuple[int, Texts]]:
        with ExitStack() as opened:
            files = {path: opened.enter_context(path.open("rb"))
                     for path in dict.fromkeys(path for path, _ in self._places.values())}
            for index, key in enumerate(keys):
                if key not in self._places:
                    raise DetoxError(f"the stored continuations lack the prompt {key!r}", place=self.name,
                                     remedy="pass the generations.jsonl of every shard")
                path, offset = self._places[key]
                files[path].seek(offset)
                stored = json.loads(files[path].readline())["generations"]
                if len(stored) < k:
                    raise DetoxError(f"{len(stored)} continuations of prompt {key!r}, {k} are needed", place=str(path),
                                     remedy="sample them again, or lower evaluation.continuations")
                yield index, [generation.get("text") for generation in stored[:k]]
                if on_progress:
                    on_progress(k)


def record_offsets(path: Path, seen: dict[str, int] | None = None) -> Iterator[tuple[str, int]]:
    """Id and byte offset of each record of a JSON lines file.

    Args:
        seen: how often the id of a prompt came so far, for records that bring none.

    Raises:
        DetoxError: a line is not a record with `generations` and an id or a prompt.
    """
    seen = {} if seen is None else seen
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record: dict[str, Any] = json.loads(line)
                _ = record["generations"][0]["text"]
                identity = str(record["id"]) if "id" in record else numbered_id(_prompt_id(record), seen)
            except (ValueError, KeyError, IndexError, TypeError):
                raise DetoxError("not a record with generations, and an id or a prompt", place=f"{path}, line {number}",
                                 remedy="pass the generations.jsonl that `llm-detox evaluate` wrote, or records like "
                                        '{"prompt": {"text": "..."}, "generations": [{"text": "..."}]}') from None
            yield identity, position
            position += len(line)


def _prompt_id(record: dict[str, Any]) -> str:
    prompt = record["prompt"]
    return record_id(prompt if isinstance(prompt, str) else prompt["text"])
