"""Experts for a causal model: LoRA adapters on the one base in memory, and the words that they disagree about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from llm_detox.errors import DetoxError
from llm_detox.generation.models import model_folder
from llm_detox.rephrase.causal import Reader
from llm_detox.rephrase.engine import CausalEngine


class AdapterReader:
    """The base with one of its adapters switched on while it reads."""

    def __init__(self, engine: CausalEngine, adapted: PeftModel, name: str) -> None:
        self._engine = engine
        self._adapted: Any = adapted
        self._name = name

    def next_log_probs(self, prefixes: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `CausalEngine.next_log_probs`."""
        self._adapted.base_model.enable_adapter_layers()
        self._adapted.set_adapter(self._name)
        try:
            return self._engine.next_log_probs(prefixes, places)
        finally:
            self._adapted.base_model.disable_adapter_layers()


def adapter_readers(engine: CausalEngine, sources: Mapping[str, str]) -> dict[str, AdapterReader]:
    """Put adapters on the engine's model, switched off, and give a reader for each.

    Args:
        sources: name -> adapter folder (hub id, folder, `s3://`).

    Raises:
        DetoxError: an adapter does not fit the model.
    """
    adapted: PeftModel | None = None
    for name, source in sources.items():
        folder = str(model_folder(source))
        try:
            if adapted is None:
                adapted = PeftModel.from_pretrained(engine.model, folder, adapter_name=name)
            else:
                adapted.load_adapter(folder, adapter_name=name)
        except (ValueError, RuntimeError) as error:
            raise DetoxError(f"the adapter does not fit the model ({error})", place=source,
                             remedy="train it on the recipe's model: `llm-detox train-experts`") from error
    if adapted is None:
        return {}
    adapted.eval()
    network: Any = adapted
    network.base_model.disable_adapter_layers()
    return {name: AdapterReader(engine, adapted, name) for name in sources}


class DisagreementScorer:
    """Toxicity by two causal experts: how much likelier the anti-expert finds a text, for maskings without a scorer.

    A word's share is log p_anti(w | left) - log p_expert(w | left), summed over its tokens; the score of a text is
    the sigmoid of its largest share minus `threshold`, so 0.5 lies where the strongest word reaches the threshold.
    """

    def __init__(self, engine: CausalEngine, expert: Reader, anti: Reader, *, threshold: float = 2.0) -> None:
        self._engine = engine
        self._expert, self._anti = expert, anti
        self._threshold = threshold

    def word_attributions(self, texts: Sequence[str]) -> list[list[tuple[str, float]]]:
        """For each text its whitespace words with their shares, in nats."""
        rows = [self._words(text) for text in texts]
        prefixes = [[*self._engine.ids(""), *(i for word in row for i in word)] for row in rows]
        places = [list(range(len(ids) - 1)) for ids in prefixes]
        shares = []
        for expert, anti, ids in zip(self._expert.next_log_probs(prefixes, places),
                                     self._anti.next_log_probs(prefixes, places), prefixes, strict=True):
            following = torch.tensor(ids[1:], device=expert.device).unsqueeze(-1)
            shares.append((anti - expert).gather(-1, following).squeeze(-1).cpu())
        found = []
        for text, row, share in zip(texts, rows, shares, strict=True):
            sums = [float(part.sum()) for part in share.split([len(word) for word in row])]
            found.append(list(zip(text.split(), sums, strict=True)))
        return found

    def score(self, texts: Sequence[str]) -> list[float | None]:
        """In (0, 1) for each text; None for one without words."""
        found: list[float | None] = []
        for row in self.word_attributions(texts):
            largest = torch.tensor(max((share for _, share in row), default=0.0) - self._threshold)
            found.append(float(torch.sigmoid(largest)) if row else None)
        return found

    def _words(self, text: str) -> list[list[int]]:
        return [self._engine.tokenizer((" " if number else "") + word, add_special_tokens=False)["input_ids"]
                for number, word in enumerate(text.split())]
