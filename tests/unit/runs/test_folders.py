"""Step folders: complete or absent, resumed only for the same work."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from llm_detox.runs import folders
from llm_detox.runs.folders import check_files, input_digest, read_manifest, sha256_of, staging_of, step_folder


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


def finished(output: Path, lines: int, expected: int) -> None:
    with step_folder(output, "rewritten", settings={}, inputs={}, resumable=True) as folder:
        folder.expect("records.jsonl", expected)
        (folder / "records.jsonl").write_text("{}\n" * lines, "utf-8")


def test_a_second_run_of_one_output_is_refused_and_the_first_ends_as_if_alone(tmp_path: Path) -> None:
    with step_folder(tmp_path / "out", "rewritten", settings={}, inputs={}, resumable=True) as folder:
        (folder / "records.jsonl").write_text("{}\n", "utf-8")
        with pytest.raises(DetoxError, match=r"process \d+ .* has been writing this since"):
            finished(tmp_path / "out", 1, 1)
    assert (tmp_path / "out" / "records.jsonl").read_text("utf-8") == "{}\n"
    check_files(tmp_path / "out")


@pytest.mark.parametrize("lines", [2240, 1119, 0])
def test_a_folder_with_another_number_of_records_is_not_sealed(tmp_path: Path, lines: int) -> None:
    with pytest.raises(DetoxError, match=f"{lines} records where 1120 were to be written") as caught:
        finished(tmp_path / "out", lines, 1120)
    assert str(staging_of(tmp_path / "out")) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["changed", "added to", "gone"])
def test_an_input_that_is_no_longer_what_the_step_wrote_is_refused(tmp_path: Path, damage: str) -> None:
    finished(tmp_path / "out", 3, 3)
    records = tmp_path / "out" / "records.jsonl"
    if damage == "gone":
        records.unlink()
    else:
        records.write_text("{}\n" * 3 + "{}\n" if damage == "added to" else "[]\n" * 3, "utf-8")
    inputs = [tmp_path / "out"] if damage == "gone" else [tmp_path / "out", records]
    for path in inputs:
        with (
            pytest.raises(DetoxError, match=r"not what the step wrote|that the step wrote is missing") as caught,
            step_folder(tmp_path / "next", "adapter", settings={}, inputs={"texts": path}),
        ):
            pass
        assert str(records) in str(caught.value)
        assert not (tmp_path / "next").exists()


def test_a_file_beside_the_manifest_of_another_program_is_an_input_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"files": ["texts.jsonl"]}', "utf-8")
    (tmp_path / "texts.jsonl").write_text("{}\n", "utf-8")
    assert input_digest(tmp_path / "texts.jsonl") == sha256_of(tmp_path / "texts.jsonl")


@pytest.mark.parametrize("text", ["[]", "null", '{"result": 3}', "[" * 100_000, "{", '{"result": {}, "files": []}',
                                  '{"result": {}, "files": {"a": 1}}'])
def test_a_damaged_manifest_is_one_clear_error(tmp_path: Path, text: str) -> None:
    finished(tmp_path / "out", 1, 1)
    (tmp_path / "out" / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(DetoxError, match=r"manifest\.json"):
        input_digest(tmp_path / "out")


def test_work_in_progress_does_not_follow_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    staging_of(tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DetoxError, match="no folder of this user") as caught:
        finished(tmp_path / "out", 1, 1)
    assert str(staging_of(tmp_path / "out")) in str(caught.value)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_work_in_progress_of_another_user_is_not_continued(tmp_path: Path) -> None:
    staging_of(tmp_path / "out").mkdir()
    os.chown(staging_of(tmp_path / "out"), 12345, 12345)
    with pytest.raises(DetoxError, match="no folder of this user"):
        finished(tmp_path / "out", 1, 1)
