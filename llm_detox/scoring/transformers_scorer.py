"""Any Hugging Face sequence classifier as a toxicity scorer (detoxify, roberta-hate-speech, s-nlp, ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from llm_detox.errors import DetoxError
from llm_detox.generation.models import (
    compute_dtype,
    device,
    model_folder,
    open_config,
    open_tokenizer,
    open_weights,
)
from llm_detox.runs.folders import input_digest
from llm_detox.scoring.base import Attribute, Scores, ToxicityScorer

# What classifiers call the attributes of RealToxicityPrompts.
_NAMES: dict[str, Attribute] = {
    "toxicity": "toxicity", "toxic": "toxicity", "hate": "toxicity", "hateful": "toxicity", "offensive": "toxicity",
    "severe_toxicity": "severe_toxicity", "severe_toxic": "severe_toxicity", "obscene": "profanity",
    "profanity": "profanity", "threat": "threat", "insult": "insult", "identity_attack": "identity_attack",
    "identity_hate": "identity_attack", "sexual_explicit": "sexually_explicit",
    "sexually_explicit": "sexually_explicit", "flirtation": "flirtation",
}
_NEGATIVES = {"nothate", "non_toxic", "neutral", "not_offensive", "non_offensive", "nontoxic", "clean", "safe",
              "normal"}


class TransformersScorer(ToxicityScorer):
    """Sigmoid over the labels of a multi-label head, softmax where the labels exclude each other."""

    def __init__(self, source: str, *, attribute: str = "toxicity", batch_size: int = 64) -> None:
        folder = model_folder(source)
        config: Any = open_config(folder)
        labels = {int(number): str(name).lower().replace("-", "_").replace(" ", "_")
                  for number, name in config.id2label.items()}
        self.columns = label_columns(labels, source)
        self.exclusive = len(labels) > 1 and (
            config.problem_type == "single_label_classification"
            or (config.problem_type is None and (len(labels) == 2 or bool(_NEGATIVES & set(labels.values())))))
        fingerprint = f"transformers-{input_digest(folder)[:16]}"
        super().__init__(source, fingerprint, tuple(self.columns), attribute, batch_size,
                         version=getattr(config, "_commit_hash", None) or "local", device=device().type)
        self.tokenizer = open_tokenizer(folder)
        self.model = open_weights(AutoModelForSequenceClassification, folder, dtype=compute_dtype())
        limit = getattr(config, "max_position_embeddings", 512) or 512
        self.max_tokens = min(self.tokenizer.model_max_length, limit - 2)  # RoBERTa numbers positions from 2

    @torch.inference_mode()
    def score_batch(self, texts: Sequence[str]) -> list[Scores | None]:
        encoded = self.tokenizer(list(texts))["input_ids"]
        fitting = [index for index, tokens in enumerate(encoded) if len(tokens) <= self.max_tokens]
        results: list[Scores | None] = [None] * len(texts)
        if not fitting:
            return results
        inputs = self.tokenizer([texts[index] for index in fitting], padding=True, return_tensors="pt").to(device())
        logits = self.model(**inputs).logits.float()
        chances = (logits.softmax(-1) if self.exclusive else logits.sigmoid()).tolist()
        for index, row in zip(fitting, chances, strict=True):
            results[index] = {name: max(row[column] for column in columns) for name, columns in self.columns.items()}
        return results


def label_columns(labels: Mapping[int, str], place: str) -> dict[str, list[int]]:
    """Attribute -> columns of the head that stand for it.

    Raises:
        DetoxError: no label is known; two unnamed labels count as (clean, toxic).
    """
    columns: dict[str, list[int]] = {}
    for number, label in labels.items():
        if label in _NAMES:
            columns.setdefault(_NAMES[label], []).append(number)
    if not columns and set(labels.values()) == {"label_0", "label_1"}:
        columns = {"toxicity": [1]}
    if not columns and len(labels) == 1:
        columns = {"toxicity": [0]}
    if not columns:
        raise DetoxError(f"none of the classifier's labels is known: {', '.join(labels.values())}", place=place,
                         remedy="use a toxicity classifier, or name its labels in config.json (id2label)")
    return columns


def load_transformers_scorer(source: str | None, *, attribute: str = "toxicity") -> TransformersScorer:
    """See `TransformersScorer`.

    Raises:
        DetoxError: no source is named.
    """
    if source is None:
        raise DetoxError("the scorer kind `transformers` needs a source", place="scoring",
                         remedy="name a sequence classifier, such as s-nlp/roberta_toxicity_classifier")
    return TransformersScorer(source, attribute=attribute)
