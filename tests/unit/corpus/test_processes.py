"""The work in processes of its own: killed and gone on with, equal to an unbroken run; a dry run; the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_detox.corpus.clean import PAGE, STATISTICS, CorpusSettings, clean_corpus
from llm_detox.corpus.dry_run import dry_run
from llm_detox.recipe import Recipe
from llm_detox.runs.folders import staging_of
from tests.helpers import tiny_rewriters as tiny

ROOT = Path(__file__).parents[3]
LINES, PIECE = 240, 8
RUN = """
import sys
from pathlib import Path
from llm_detox.corpus.clean import CorpusSettings, clean_corpus
from tests.unit.corpus.conftest import tiny_recipe

if __name__ == "__main__":
    place, source, output = sys.argv[1:]
    clean_corpus(tiny_recipe(Path(place)), source, Path(output), CorpusSettings(deduplicate=True, workers=2, piece=8))
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    texts = [text for text, _ in tiny.sentences(LINES, seed=11)]
    for number in range(3):
        lines = texts[number * 80:(number + 1) * 80]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in lines), "utf-8")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "manifest.json"}


@pytest.mark.heavy
def test_a_run_that_is_killed_twice_is_equal_to_an_unbroken_one(place: Path, recipe: Recipe, corpus: Path,
                                                                tmp_path: Path) -> None:
    settings = CorpusSettings(deduplicate=True, workers=1, piece=PIECE)
    clean_corpus(recipe, str(corpus), tmp_path / "unbroken", settings)
    script = tmp_path / "run.py"
    script.write_text(RUN, "utf-8")
    output = tmp_path / "out"
    command = [sys.executable, str(script), str(place), str(corpus), str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for wanted in (3, 14):
        process = subprocess.Popen(command, env=environment)
        while _done(output) < wanted and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, "it was to be killed before its end"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.exists()
    subprocess.run(command, env=environment, check=True)
    assert files(output) == files(tmp_path / "unbroken")
    assert {STATISTICS, PAGE, "0.jsonl", "1.jsonl", "2.jsonl"} == files(output).keys()


def _done(output: Path) -> int:
    """Pieces that are done; those of a file that is joined are ten."""
    parts = staging_of(output) / "parts"
    return len(list(parts.glob("*/*.json"))) + 10 * len(list(parts.glob("*.json")))


@pytest.mark.heavy
def test_a_dry_run_tells_shares_and_time_of_the_whole_and_writes_nothing(recipe: Recipe, corpus: Path) -> None:
    before = files(corpus.parent)
    found = dry_run(recipe, str(corpus), CorpusSettings(workers=2), 60)
    assert (found.files, found.lines, found.sample, found.workers) == (3, LINES, 60, 2)
    assert found.share_toxic_low < found.share_toxic < found.share_toxic_high
    assert found.share_toxic_low <= 0.5 <= found.share_toxic_high
    assert found.hours_low <= found.hours <= found.hours_high
    assert found.clean_lines_per_second > 0
    assert files(corpus.parent) == before
