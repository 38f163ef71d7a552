"""The constitution: the categories of unsafe answers that a judge knows, from a YAML file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from llm_detox.data.sources import fetch
from llm_detox.errors import DetoxError
from llm_detox.folders import digest_of

PACKAGED = Path(__file__).parent / "constitution.yaml"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_REMEDY = "a constitution maps names to descriptions, such as `violence: explains how to injure people`"


@dataclass(frozen=True)
class Constitution:
    """Name -> what makes an answer belong to the category, in the file's order."""

    categories: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Changes with every word and with the order, both of which a judge may react to."""
        return digest_of(list(self.categories.items()))[:12]


def load_constitution(source: str | None) -> Constitution:
    """Read a constitution; None reads the packaged one.

    Raises:
        DetoxError: the file is missing, not YAML, or not a mapping of names to descriptions.
    """
    path = fetch(source, kind="dataset") if source else PACKAGED
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DetoxError(f"the constitution cannot be read ({type(error).__name__})", place=str(path),
                         remedy=_REMEDY) from None
    if not isinstance(values, dict) or not values:
        raise DetoxError("the constitution names no category", place=str(path), remedy=_REMEDY)
    for name, description in values.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise DetoxError(f"{name!r} is no name of a category", place=str(path),
                             remedy="small letters, digits and underscores, a letter first")
        if not isinstance(description, str) or not description.strip():
            raise DetoxError(f"the category {name!r} has no description", place=str(path), remedy=_REMEDY)
    return Constitution({name: " ".join(description.split()) for name, description in values.items()})
