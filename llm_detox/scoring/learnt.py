"""Which texts a scorer has learnt from, as hashes: two scorers' rows are compared by text, not by their data's names.

Comments travel from corpus to corpus: those of Jigsaw's challenges stand in Civil Comments, in lists of offensive text
and in benchmarks. A judge that has learnt the rows of the scorer that trains and accepts repeats its mistakes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from llm_detox.data.records import clean_text, same_text_key
from llm_detox.data.sources import fetch
from llm_detox.errors import DetoxError
from llm_detox.recipe.scorers import LABELLED_TEXT, ScorerSection
from llm_detox.runs.cache import cache_dir, made_once
from llm_detox.runs.folders import sha256_of
from llm_detox.scoring.ngram import read_labelled

LEARNT_FILE = "learnt.safetensors"  # in the folder of `train-scorer`
Marks = NDArray[np.uint64]
"""Hashes of texts, ascending, each once."""


def marks(texts: Iterable[str]) -> Marks:
    """Hashes of the texts [distinct]; equal for texts that differ only in case, punctuation or spacing."""
    keys = {same_text_key(clean_text(text)) for text in texts}
    digests = b"".join(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest() for key in keys if key)
    return np.unique(np.frombuffer(digests, dtype="<u8").astype(np.uint64))


def write_marks(learnt: Marks, path: Path) -> None:
    """Keep them in a file."""
    save_file({"texts": learnt}, path)
    path.chmod(0o644)  # safetensors writes for the owner alone


def learnt_by(section: ScorerSection) -> Marks | None:
    """The texts that a scorer has learnt from; None where it does not say.

    Raises:
        DetoxError: its source cannot be had, or its list of texts is damaged.
    """
    if section.members:
        found = [learnt_by(member) for member in section.members]
        known = [one for one in found if one is not None]
        return np.unique(np.concatenate(known)) if len(known) == len(found) else None
    if section.kind == "ngram":
        path = fetch(section.source or LABELLED_TEXT, kind="dataset")
        if path.is_file() and path.suffix != ".safetensors":
            return _of_labelled(path)
    elif section.kind == "attributes" and section.source:
        path = fetch(section.source, kind="model")
    else:
        return None
    listed = path / LEARNT_FILE if path.is_dir() else path.with_name(LEARNT_FILE)
    return _read(listed) if listed.exists() else None


def share_in_common(ours: Marks | None, theirs: Marks | None) -> float | None:
    """The share of our texts that are theirs, too; None where one of the two is not known."""
    if ours is None or theirs is None or not len(ours):
        return None
    return float(np.isin(ours, theirs, assume_unique=True).mean())


def _of_labelled(path: Path) -> Marks:
    kept = cache_dir("scorers") / f"learnt-{sha256_of(path)[:16]}.safetensors"
    return _read(made_once(kept, lambda target: write_marks(marks(read_labelled(path)[0]), target)))


def _read(path: Path) -> Marks:
    try:
        return np.unique(load_file(path)["texts"].astype(np.uint64))
    except (SafetensorError, KeyError, ValueError) as error:
        raise DetoxError(f"not a list of learnt texts ({error})", place=str(path),
                         remedy="fetch the scorer again, or remove the file: then it is not known what it has learnt"
                         ) from None
