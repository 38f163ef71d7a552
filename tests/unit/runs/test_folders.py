"""Step folders: complete or absent, resumed only for the same work."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from llm_detox.runs import folders
from llm_detox.runs.folders import input_digest, read_manifest, sha256_of, step_folder


def test_a_finished_folder_says_what_it_is_and_holds_checksums(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("x", "utf-8")
    with step_folder(tmp_path / "out", "data", settings={"a": 1}, inputs={"source": source}) as folder:
        (folder / "sub").mkdir()
        (folder / "sub/file.txt").write_text("hello", "utf-8")
        folder.result["answer"] = 42
    manifest = read_manifest(tmp_path / "out")
    assert manifest["kind"] == "data"
    assert manifest["result"] == {"answer": 42}
    assert manifest["files"]["sub/file.txt"]["sha256"] == sha256_of(tmp_path / "out/sub/file.txt")
    assert manifest["inputs"] == {"source": sha256_of(source)}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_result_with_named_fields_is_written_in_their_order(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Inner:
        low: float

    @dataclass(frozen=True)
    class Result:
        second: str
        first: Inner

    with step_folder(tmp_path / "out", "data", settings={}, inputs={}) as folder:
        folder.finish(Result("b", Inner(0.5)))
    assert json.dumps(read_manifest(tmp_path / "out")["result"]) == '{"second": "b", "first": {"low": 0.5}}'


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, failure: BaseException) -> None:
    with (
        pytest.raises(type(failure)),
        step_folder(tmp_path / "out", "data", settings={}, inputs={}) as folder,
    ):
        (folder / "half.txt").write_text("half", "utf-8")
        raise failure
    assert list(tmp_path.iterdir()) == []


def interrupted(output: Path, settings: dict[str, int]) -> str:
    """Run a resumable step that fails; returns what it found of an earlier run."""
    with (
        pytest.raises(KeyboardInterrupt),
        step_folder(output, "generate", settings=settings, inputs={}, resumable=True) as folder,
    ):
        found = (folder / "done.txt").read_text("utf-8") if (folder / "done.txt").exists() else ""
        (folder / "done.txt").write_text(found + "x", "utf-8")
        raise KeyboardInterrupt
    return found


def test_an_interrupted_step_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert interrupted(output, {"seed": 1}) == ""
    assert interrupted(output, {"seed": 1}) == "x"
    assert not output.exists()
    assert interrupted(output, {"seed": 2}) == ""


def test_a_kill_while_checksums_are_made_loses_nothing_that_the_next_run_needs(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> bool:
        with step_folder(tmp_path / "out", "adapter", settings={}, inputs={}, resumable=True) as folder:
            work, part = folder.work_file("work"), folder.work_file("answers.part.jsonl")
            found = (work / "step-3").exists() and part.exists()
            work.mkdir(exist_ok=True)
            for path in (work / "step-3", part, folder / "adapter.txt"):
                path.write_text("x", "utf-8")
        return found

    def killed(_: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "sha256_of", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert run()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter.txt", "manifest.json"}
    assert list(read_manifest(tmp_path / "out")["files"]) == ["adapter.txt"]


def test_an_existing_output_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(DetoxError, match="exists already"),
        step_folder(tmp_path / "out", "data", settings={}, inputs={}),
    ):
        pass


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(DetoxError, match="disk is full"),
        step_folder(tmp_path / "out", "data", settings={}, inputs={}),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with (
        pytest.raises(DetoxError, match="cannot be written"),
        step_folder(tmp_path / "file" / "out", "data", settings={}, inputs={}),
    ):
        pass


def test_an_unfinished_folder_is_not_taken_for_an_input(tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="not the finished output"):
        read_manifest(tmp_path)


def test_an_input_is_known_by_its_content(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f.json").write_text(json.dumps(text), "utf-8")
    assert input_digest(tmp_path / "a") == input_digest(tmp_path / "b") != input_digest(tmp_path / "c")
