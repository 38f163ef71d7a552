"""The model folder that is served: its tokenizer and the ids that begin and end a text, the same for every back end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from llm_detox.generation.models import load_tokenizer, model_folder, open_config
from llm_detox.generation.tokens import Vocabulary


class Source:
    """A model folder, or a Caikit folder that holds one in `artifacts`.

    Args:
        name: a source, see `llm_detox.data.sources`.
        keep_special: whether special tokens show up in texts.

    Raises:
        DetoxError: the folder, its configuration or its tokenizer is missing.
    """

    def __init__(self, name: str, *, keep_special: bool = False) -> None:
        inner = Path(name) / "artifacts"
        self.folder = model_folder(str(inner if (inner / "config.json").exists() else name))
        self.tokenizer = load_tokenizer(self.folder)
        self.vocabulary = Vocabulary.of(self.tokenizer, keep_special=keep_special)
        self.vocabulary.backend.no_truncation()
        self.vocabulary.backend.no_padding()
        self.eos = _eos(self.folder, self.tokenizer)
        self.bos = next((i for i in (self.tokenizer.bos_token_id, *sorted(self.eos)) if i is not None), 0)


def _eos(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The ids that end a sequence, as `generate` reads them."""
    try:
        config = GenerationConfig.from_pretrained(folder)
    except OSError:  # no generation_config.json: what the model's own configuration says
        config = GenerationConfig.from_model_config(open_config(folder))
    ids = config.eos_token_id
    if ids is None:
        ids = tokenizer.eos_token_id
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])
