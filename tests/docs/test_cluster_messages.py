"""The messages that docs/openshift-ai.md explains are those that the code, or somebody else who is named, gives."""

from __future__ import annotations

import re
from functools import lru_cache

import pytest

from tests.docs.commands import ROOT

PAGE = ROOT / "docs" / "openshift-ai.md"
# Kubernetes', KServe's and kustomize's words; the recordings and tests/manifests/test_composing.py have them.
OF_OTHERS = {"Insufficient nvidia.com/gpu", "ModelLoadFailed", "OOMKilled", "nothing selected by InferenceService",
             'violates PodSecurity "restricted"'}


def messages() -> list[str]:
    """The quoted messages of the table, in pieces: what differs from case to case is left out as `...`."""
    table = PAGE.read_text("utf-8").partition("## When it does not start")[2].partition("\n## ")[0]
    quoted = [text for row in re.findall(r"^\| (.*?) \|", table, re.M) for text in re.findall(r"`([^`]+)`", row)]
    pieces = [piece.strip(" :") for text in quoted for piece in re.split(r"\.\.\.|: ", text)]
    return [piece for piece in pieces if len(piece) > 5 and piece not in OF_OTHERS and piece != "outcome"]


@lru_cache
def sources() -> str:
    """All texts of the code on one line each, with what is filled in as a word of any kind."""
    code = " ".join(path.read_text("utf-8") for folder in ("llm_detox", "serving", "pipelines")
                    for path in sorted((ROOT / folder).rglob("*.py")))
    return re.sub(r"\s+", " ", code)


def pattern(message: str) -> str:
    """Words that may be filled in: verbs, kinds and numbers."""
    return re.sub(r"patch|inferenceservices|\b3\b", r"(\\{[^}]*\\}|\\w+)", re.escape(message))


@pytest.mark.parametrize("message", messages())
def test_a_message_that_is_explained_is_given(message: str) -> None:
    assert re.search(pattern(message), sources()), "nobody says this any more"


def test_a_message_that_nobody_gives_is_noticed() -> None:
    assert len(messages()) > 10
    assert not re.search(pattern("the KServe controller has not seen the change yet"), sources())
