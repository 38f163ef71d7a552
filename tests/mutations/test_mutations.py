"""Each change of the table is noticed by a test; `make mutations` prints which."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SHARED
from tests.mutations.conftest import NOTICED
from tests.mutations.table import MUTATIONS, Mutation

pytestmark = pytest.mark.mutations
_QUICK = ("not heavy and not slow and not gpu and not cluster and not soak and not notebooks and not browser "
          "and not mutations")
_FAILED = re.compile(r"^FAILED (\S+?)(?: - .*)?$", re.MULTILINE)


@dataclass
class Copy:
    """A copy of the checkout in which one file at a time is changed; each test process has its own."""

    folder: Path

    def run(self, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "LLM_DETOX_SHARED": str(SHARED)}
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-rf", "-p", "no:cacheprovider", "-m", _QUICK, *tests],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    for name in (".venv", ".venv-caikit", ".torch"):
        (folder / name).symlink_to(REPOSITORY / name)
    return Copy(folder)


@pytest.mark.parametrize("tests", sorted({one.tests for one in MUTATIONS}), ids=" ".join)
def test_nothing_is_noticed_where_nothing_is_changed(copy: Copy, tests: tuple[str, ...]) -> None:
    done = copy.run(tests)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_change_that_breaks_a_cluster_is_noticed(
        copy: Copy, mutation: Mutation, record_property: Callable[[str, object], None]) -> None:
    path = copy.folder / mutation.file
    text = path.read_text("utf-8")
    assert mutation.old in text, "the table is older than the file"
    path.write_text(text.replace(mutation.old, mutation.new), "utf-8")
    try:
        done = copy.run(mutation.tests)
    finally:
        path.write_text(text, "utf-8")
    assert done.returncode == 1, done.stdout[-2000:]
    record_property(NOTICED, (mutation.name, _FAILED.findall(done.stdout)[0]))
