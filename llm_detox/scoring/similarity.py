"""How close two texts are in meaning: cosine of mean-pooled sentence embeddings (Reimers and Gurevych 2019)."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel

from llm_detox.data.sources import fetch
from llm_detox.errors import DetoxError
from llm_detox.generation.batching import budget_batches
from llm_detox.generation.models import compute_dtype, model_folder, open_tokenizer, open_weights, positions
from llm_detox.recipe.scorers import SENTENCE_ENCODER
from llm_detox.runs.cache import cache_dir, made_once
from llm_detox.runs.folders import sha256_of

_DEFAULT_MAX_TOKENS = 256
# Of an archive: weights are hardly compressible, texts by a factor of about ten.
_MOST_FILES, _MOST_BYTES, _LARGEST_RATIO, _FREE_BYTES = 1000, 8 * 2**30, 50, 2**20


class SentenceSimilarity:
    """Embeddings of one sentence-transformers style encoder, compared by cosine.

    Args:
        source: hub id, folder, `s3://` or `package://`; a zip file is unpacked into the cache once.
        batch_tokens: padded tokens in one batch.

    Raises:
        DetoxError: the source is missing, or is no encoder folder with safetensors and a tokenizer.
    """

    def __init__(self, source: str = SENTENCE_ENCODER, *, batch_tokens: int = 8192) -> None:
        folder = _encoder_folder(source)
        self.name = source
        self.batch_tokens = batch_tokens
        self._tokenizer = open_tokenizer(folder)
        self._model = open_weights(AutoModel, folder, optional="pooler", dtype=compute_dtype())  # it is not read
        self.max_tokens = min(_max_tokens(folder), positions(self._model.config) or _DEFAULT_MAX_TOKENS)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of the texts, float32 of shape [texts, dimension] on the CPU; equal texts are read once."""
        unique = sorted(set(texts))
        ids: list[list[int]] = (
            self._tokenizer(unique, truncation=True, max_length=self.max_tokens)["input_ids"] if unique else [])
        width = int(self._model.config.hidden_size)
        rows: dict[str, Tensor] = {}
        for batch in budget_batches([len(row) for row in ids], self.batch_tokens):
            for i, row in zip(batch, self._pool([ids[i] for i in batch]), strict=True):
                rows[unique[i]] = row
        return torch.stack([rows[text] for text in texts]) if texts else torch.zeros(0, width)

    def word_pieces(self) -> tuple[str, Tensor]:
        """The tokenizer as JSON, and the encoder's input vectors [vocabulary, dimension] of its word pieces."""
        return self._tokenizer.backend_tokenizer.to_str(), self._model.get_input_embeddings().weight.detach().cpu()  # type: ignore[operator]

    def cosine(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
        """Cosine of each text of `a` to its partner in `b`, in [-1, 1].

        Raises:
            ValueError: the two lists differ in length.
        """
        if len(a) != len(b):
            raise ValueError(f"{len(a)} texts cannot be paired with {len(b)}")
        rows = self.embed([*a, *b])
        products = (rows[: len(a)] * rows[len(a):]).sum(-1).clamp(-1, 1)
        return [float(value) for value in products]

    def _pool(self, ids: list[list[int]]) -> Tensor:
        batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self._model.device)
        mask = batch["attention_mask"].unsqueeze(-1)
        hidden = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mean = (hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=-1).cpu()


def _max_tokens(folder: Path) -> int:
    settings = folder / "sentence_bert_config.json"
    if settings.exists():
        return int(json.loads(settings.read_text("utf-8")).get("max_seq_length") or _DEFAULT_MAX_TOKENS)
    return _DEFAULT_MAX_TOKENS


def _encoder_folder(source: str) -> Path:
    path = fetch(source, kind="model")
    packed = path.is_file() and zipfile.is_zipfile(path)
    return model_folder(str(_unpacked(path)) if packed else source)


def _unpacked(archive: Path) -> Path:
    def unpack(folder: Path) -> None:
        try:
            with zipfile.ZipFile(archive) as file:
                _check_archive(file, archive)
                file.extractall(folder)  # absolute paths and ".." are dropped by zipfile
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last of encrypted ones
            raise DetoxError(f"the zip file cannot be unpacked ({error})", place=str(archive),
                             remedy="fetch it again, or give the folder itself") from None

    return made_once(cache_dir("similarity") / f"{archive.stem}-{sha256_of(archive)[:12]}", unpack)


def _check_archive(file: zipfile.ZipFile, archive: Path) -> None:
    """Refuse an archive that unpacks to much more than a model is. No file gives more bytes than it states here.

    Raises:
        DetoxError: it has too many files or bytes, or too many for its own size.
    """
    entries = file.infolist()
    unpacked, packed = sum(entry.file_size for entry in entries), archive.stat().st_size
    if len(entries) > _MOST_FILES or unpacked > _MOST_BYTES or unpacked > max(_LARGEST_RATIO * packed, _FREE_BYTES):
        raise DetoxError(f"the zip file unpacks to {len(entries)} files with {unpacked / 2**20:.0f} MiB, and has "
                         f"{packed / 2**20:.1f} MiB itself", place=str(archive),
                         remedy=f"a sentence encoder has at most {_MOST_FILES} files with {_MOST_BYTES // 2**30} GiB, "
                                f"and is packed to no less than 1/{_LARGEST_RATIO}; unpack others yourself")
