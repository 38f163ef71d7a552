"""Bad input on the command line: one clear message, the remedy, no traceback, nothing half written."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from llm_detox.cli import main
from tests.helpers.pipelines import small_recipe
from tests.helpers.sources import make_sources

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path) -> Path:
    return small_recipe(tmp_path / "sources", tiny_llama)


def llm_detox(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has imported what each would import anew."""
    command = ["llm-detox", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended, redirect_stdout(out),
          redirect_stderr(err)):
        patch.setattr("sys.argv", command)
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        main()
    return subprocess.CompletedProcess(command, ended.value.code, out.getvalue(), err.getvalue())


def assert_refused(done: subprocess.CompletedProcess[str], *parts: str, code: int = 1) -> None:
    """One message with these parts and a remedy, the exit code, and no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    for part in (*parts, "remedy: "):
        assert part in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def assert_nothing_written(output: Path) -> None:
    assert not output.exists()
    assert not (output.parent / f".{output.name}.part").exists()


def test_an_empty_data_set(tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "sources/comments.csv").write_text("is_offensive,text\n", "utf-8")
    done = llm_detox("data", "--recipe", recipe, "--output", tmp_path / "out")
    assert_refused(done, "comments.csv", "none of 0 records can be used")
    assert_nothing_written(tmp_path / "out")


def test_a_missing_column(tmp_path: Path, recipe: Path) -> None:
    done = llm_detox("data", "--recipe", recipe, "--output", tmp_path / "out", "--set", "data.texts.text_column=body")
    assert_refused(done, "'body' is missing", "columns here: is_offensive, text")
    assert_nothing_written(tmp_path / "out")


@pytest.mark.parametrize(
    ("bad", "message"), [(b'{"text": "a"', "not valid JSON"), (b'{"text": "caf\xe9"}', "not UTF-8")])
@pytest.mark.parametrize("step", ["detoxify", "sft"])
def test_a_bad_line_7(tmp_path: Path, recipe: Path, step: str, bad: bytes, message: str) -> None:
    lines = [json.dumps({"text": f"some text {number}"}).encode() for number in range(9)]
    lines[6] = bad
    (tmp_path / "texts.jsonl").write_bytes(b"\n".join(lines))
    done = llm_detox(step, "--recipe", recipe, "--input", tmp_path / "texts.jsonl", "--output", tmp_path / "out")
    assert_refused(done, "texts.jsonl, line 7", message)
    assert_nothing_written(tmp_path / "out")


def test_a_recipe_with_a_wrong_type(tmp_path: Path, recipe: Path) -> None:
    done = llm_detox("data", "--recipe", recipe, "--output", tmp_path / "out", "--set", "data.texts.count=many")
    assert_refused(done, "data.texts.count", "'many'", code=2)
    assert_nothing_written(tmp_path / "out")


@pytest.mark.parametrize("step", ["evaluate", "convert"])
def test_a_model_folder_without_a_tokenizer(tmp_path: Path, recipe: Path, tiny_llama: Path, step: str) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "So what"}\n', "utf-8")
    evaluation = ["--recipe", recipe, "--prompts", tmp_path / "prompts.jsonl"] if step == "evaluate" else []
    done = llm_detox(step, "--model", tmp_path / "model", "--output", tmp_path / "out", *evaluation)
    assert_refused(done, str(tmp_path / "model"), "tokenizer")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    done = llm_detox("data", "--recipe", recipe, "--output", tmp_path / "file" / "out")
    assert_refused(done, "cannot be written", str(tmp_path / "file"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk],
                             capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small disk here; tests/unit/runs/test_folders.py plays the error")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(tmp_path: Path, small_disk: Path, tiny_llama: Path) -> None:
    make_sources(tmp_path / "sources", comments=600)
    recipe = small_recipe(tmp_path / "sources", tiny_llama)
    make_sources(tmp_path / "sources", comments=600)
    done = llm_detox("data", "--recipe", recipe, "--output", small_disk / "out", "--set", "data.texts.count=600")
    assert_refused(done, "the disk is full", str(small_disk / "out"))
    assert list(small_disk.iterdir()) == []


def test_a_port_in_use(tiny_llama: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = llm_detox("serve", tiny_llama, "--rest-port", str(port), "--grpc-port", "0")
    assert_refused(done, str(port), "Address already in use")


def test_an_s3_key_that_is_refused(tmp_path: Path) -> None:
    from llm_detox.storage.seaweed import seaweed

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.yml").write_text("a: 1\n", "utf-8")
    with seaweed(tmp_path / "store", buckets=["models"]) as store:
        env = {**store.env(), "AWS_SECRET_ACCESS_KEY": "a-wrong-secret"}
        done = llm_detox("publish", tmp_path / "model", "s3://models/x", env=env)
    assert_refused(done, "models")
    assert "a-wrong-secret" not in done.stderr + done.stdout
    assert store.access_key not in done.stdout


def test_the_traceback_shows_with_debug_only(tmp_path: Path, recipe: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm_detox.cli", "--debug", "data", "--recipe", recipe, "--output", tmp_path / "out",
         "--set", "name=X Y"], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_json_output_of_an_error_is_one_object_on_stdout(tmp_path: Path, recipe: Path) -> None:
    done = llm_detox("data", "--recipe", recipe, "--output", tmp_path / "out", "--set", "seed=x", "--json")
    assert done.returncode == 2
    assert set(json.loads(done.stdout)) == {"error", "place", "remedy"}
