"""What the commands and the engine give is what they gave when `expected/` was recorded.

On the machine that recorded (`expected/machine.json`: processor, its instructions, torch) the outputs are the same
byte for byte, weights by their SHA-256. Elsewhere floats may differ by a relative 1e-4 and digests of weights and of
rendered pages are not compared; texts, counts and order still are: of models this small, two tokens whose chances
differ by rounding alone would have to meet for a sampled text to change.

Left out everywhere are times, rates, memory and versions, by the lists in `store`.
A change that is meant is recorded by `python -m tests.golden.capture --write`, and its diff belongs to the review.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.capture import EXPECTED, MACHINE, SECTIONS, recorded_here
from tests.golden.compare import differences
from tests.golden.store import REPOSITORY

# A busy machine may take some minutes.
_LIMIT_SECONDS = 1500
_PREFIX = "test_golden_"
pytestmark = [pytest.mark.heavy, pytest.mark.timeout(_LIMIT_SECONDS + 60)]


@pytest.fixture(scope="module")
def captured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of the sections whose tests are to run, from a process of its own."""
    folder = tmp_path_factory.mktemp("golden")
    chosen = {item.name.removeprefix(_PREFIX) for item in request.session.items if item.module is request.module}
    command = [sys.executable, "-m", "tests.golden.capture", str(folder), *(s for s in SECTIONS if s in chosen)]
    ended = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=_LIMIT_SECONDS)
    assert (folder / MACHINE).exists(), ended.stderr[-5000:]
    return folder


def assert_as_recorded(section: str, captured: Path) -> None:
    error = captured / section / "error.txt"
    if error.exists():
        pytest.fail(error.read_text("utf-8"), pytrace=False)
    if problems := differences(EXPECTED / section, captured / section, exactly=recorded_here(captured)):
        pytest.fail("\n\n".join(problems), pytrace=False)


def test_golden_rehearsal(captured: Path) -> None:
    assert_as_recorded("rehearsal", captured)


def test_golden_conversations(captured: Path) -> None:
    assert_as_recorded("conversations", captured)


def test_golden_detoxify(captured: Path) -> None:
    assert_as_recorded("detoxify", captured)


def test_golden_rephrasers(captured: Path) -> None:
    assert_as_recorded("rephrasers", captured)


def test_golden_evaluation(captured: Path) -> None:
    assert_as_recorded("evaluation", captured)


def test_golden_training(captured: Path) -> None:
    assert_as_recorded("training", captured)


def test_golden_serving(captured: Path) -> None:
    assert_as_recorded("serving", captured)


def test_golden_recipe_and_data(captured: Path) -> None:
    assert_as_recorded("recipe_and_data", captured)
