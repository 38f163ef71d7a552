"""A server compares its model with what was published before it takes requests; a changed byte ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_detox.serve.local_stack import caikit_python
from llm_detox.storage.layout import INDEX, INNER_INDEX, Index, part_size, sum_folder
from serving.caikit import checksums
from tests.serving.running import REPOSITORY

PROGRAM = REPOSITORY / "serving/caikit/checksums.py"
WEIGHTS = "artifacts/model.safetensors"


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A published version as the storage initializer leaves it; its name is its digest."""
    folder = tmp_path / "version"
    (folder / "artifacts" / "sub").mkdir(parents=True)
    for name in ("config.yml", WEIGHTS, "artifacts/config.json", "artifacts/sub/ü.json"):
        (folder / name).write_bytes(name.encode() * 100)
    index = Index.of(sum_folder(folder, part_size(0)))
    for name in (INDEX, INNER_INDEX):
        (folder / name).write_text(index.text(), "utf-8")
    return folder.rename(tmp_path / index.digest)


def test_what_was_published_passes_whole_and_as_the_folder_inside(version: Path) -> None:
    files, size = checksums.compare(version, version.name)
    assert (files, size) == (4, sum(len(name.encode()) * 100 for name in (
        "config.yml", WEIGHTS, "artifacts/config.json", "artifacts/sub/ü.json")))
    assert checksums.compare(version / "artifacts", version.name)[0] == 3


@pytest.mark.parametrize("inside", [False, True], ids=["the version", "its artifacts"])
@pytest.mark.parametrize(("change", "message"), [
    ("a byte", "is not the one that was published"), ("missing", "missing"), ("one more", "was not published"),
    ("longer", "is not the one that was published")])
def test_a_difference_is_named(version: Path, inside: bool, change: str, message: str) -> None:
    path = version / WEIGHTS
    data = path.read_bytes()
    if change == "one more":
        path = version / "artifacts" / "generation_config.json"
        path.write_text("{}", "utf-8")
    elif change == "missing":
        path.unlink()
    else:
        path.write_bytes(data + b"x" if change == "longer" else data[:-1] + b"x")
    with pytest.raises(checksums.NotAsPublished, match=message) as caught:
        checksums.compare(version / "artifacts" if inside else version)
    assert path.name in str(caught.value)
    assert "remedy: " in str(caught.value)


def test_a_list_that_was_changed_with_the_files_is_not_the_versions(version: Path) -> None:
    (version / WEIGHTS).write_bytes(b"other")
    index = Index.of(sum_folder(version, part_size(0)))
    (version / INDEX).write_text(index.text(), "utf-8")
    assert checksums.compare(version)[0] == 4
    with pytest.raises(checksums.NotAsPublished, match=version.name):
        checksums.compare(version, version.name)


@pytest.mark.parametrize("name", ["artifacts/sub/checksums.json", "artifacts/link", "artifacts/folder"])
def test_what_hides_behind_a_name_or_a_link_was_not_published(version: Path, tmp_path: Path, name: str) -> None:
    if name.endswith(".json"):
        (version / name).write_text("{}", "utf-8")
    elif name.endswith("folder"):
        (tmp_path / "elsewhere").mkdir()
        (version / name).symlink_to(tmp_path / "elsewhere")
    else:
        (version / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(checksums.NotAsPublished, match="was not published with the model") as caught:
        checksums.compare(version)
    assert str(version / name) in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "no json", "[]", '{"files": 3}', '{"files": {"a": 3}}', "[" * 100_000,
                                  '{"files": {"\\ud800": {"sha256": "0"}}}'])
def test_without_a_list_nothing_is_served(version: Path, text: str | None) -> None:
    (version / INDEX).unlink()
    if text is not None:
        (version / INDEX).write_text(text, "utf-8")
    with pytest.raises(checksums.NotAsPublished, match=INDEX):
        checksums.compare(version)


def test_kubernetes_is_told_why(version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr(checksums, "TERMINATION_LOG", log)
    (version / WEIGHTS).unlink()
    with pytest.raises(SystemExit) as caught:
        checksums.require(version)
    assert caught.value.code == 1
    assert log.read_text("utf-8").startswith(f"{version / WEIGHTS}: the file is missing")


@pytest.mark.parametrize("folder", [".", "artifacts"])
def test_a_server_of_others_starts_on_what_was_published_only(version: Path, folder: str) -> None:
    """The command of the vLLM runtime: first the comparison, then the server in the same process."""
    command = [sys.executable, str(PROGRAM), str(version / folder), sys.executable, "-c", "import sys; print(sys.argv)",
               "--model=x"]
    environment = {**os.environ, "LLM_DETOX_VERSION": version.name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "['-c', '--model=x']"), done.stderr
    (version / WEIGHTS).write_bytes(b"other")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert WEIGHTS in done.stderr
    assert "Traceback" not in done.stderr


def test_caikit_does_not_start_on_a_changed_model(version: Path) -> None:
    (version / WEIGHTS).write_bytes(b"other")
    given = {**os.environ, "CAIKIT_MODEL_DIR": str(version), "CAIKIT_MODEL_ID": "m", "CAIKIT_CHECKSUMS": "required",
             "CAIKIT_VERSION": version.name}
    done = subprocess.run([caikit_python(), str(REPOSITORY / "serving/caikit/runtime.py")], env=given,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"{version / WEIGHTS}: the file is not the one that was published" in done.stderr
    assert "Traceback" not in done.stderr
