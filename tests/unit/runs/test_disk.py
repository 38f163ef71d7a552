"""A disk that is full or cannot be written: one message with place and remedy, and nothing half written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file
from transformers import AutoTokenizer

from benchmarks.campaigns import full_disk
from llm_detox.cli import run_app
from llm_detox.errors import DetoxError, clear_disk_errors, disk_error, without_logins
from llm_detox.export.converting import convert
from llm_detox.recipe.files import load_recipe
from llm_detox.rehearsal.run import rehearsal_of
from llm_detox.runs.cache import cache_dir, made_once
from llm_detox.runs.folders import step_folder
from llm_detox.runs.pipeline_step import ERROR_FILE_VARIABLE, StepError, pipeline_step
from llm_detox.storage.seaweed import Seaweed, find_weed
from pipelines.local import run_locally
from tests.conftest import REPOSITORY
from tests.helpers.disks import disk, make_read_only

Write = Callable[[Path], object]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for little."""
    with disk(tmp_path / "disk", 64) as folder:
        yield folder


def by_python(path: Path) -> None:
    path.write_text("x" * 200_000, "utf-8")


def by_safetensors(path: Path) -> None:
    save_file({"weights": torch.zeros(100_000)}, path)


def by_torch(path: Path) -> None:
    torch.save({"weights": torch.zeros(100_000)}, path)


def by_tokenizers(path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({str(number): number for number in range(20_000)}, unk_token="0")).save(str(path))


def by_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE scores (text TEXT)")
        database.executemany("INSERT INTO scores VALUES (?)", [("x" * 1000,) for _ in range(200)])


WRITERS = [by_python, by_safetensors, by_torch, by_tokenizers, by_sqlite]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_named_whoever_writes_and_gets_its_room_back(write: Write, small: Path) -> None:
    with (
        pytest.raises(DetoxError, match="the disk is full") as caught,
        step_folder(small / "out", "adapter", settings={}, inputs={}) as folder,
    ):
        write(folder / "file")
    assert str(small / "out") in str(caught.value)
    assert caught.value.remedy
    assert list(small.iterdir()) == []
    with pytest.raises(DetoxError, match="the disk is full"):
        made_once(small / "cached", write)
    assert list(small.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS)
def test_a_disk_that_cannot_be_written_is_named_whoever_writes(write: Write, small: Path) -> None:
    make_read_only(small)
    refused = pytest.raises(DetoxError, match=r"cannot be written: (Read-only file system|Permission denied)")
    with refused as caught, clear_disk_errors(small / "file", "choose another one"):
        write(small / "file")
    assert str(small / "file") in str(caught.value)


def test_other_errors_stay_what_they_are() -> None:
    for error in (ValueError("x"), KeyError("x"), ConnectionRefusedError(111, "refused"), RuntimeError("CUDA"),
                  DetoxError("clear already")):
        assert disk_error(error, "here", "none") is None
        with pytest.raises(type(error)), clear_disk_errors("here", "none"):
            raise error


@pytest.mark.parametrize("kibibytes", [4, 16, 40, 120])
def test_a_conversion_on_a_full_disk_leaves_nothing(kibibytes: int, tmp_path: Path, tiny_llama: Path) -> None:
    with disk(tmp_path / "disk", kibibytes) as small:
        with pytest.raises(DetoxError, match="the disk is full"):
            convert(model=str(tiny_llama), output=small / "out")
        assert list(small.iterdir()) == []


def test_a_step_on_a_full_disk_leaves_its_message_and_no_traceback(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(ERROR_FILE_VARIABLE, str(tmp_path / "error.json"))
    recipe = load_recipe(REPOSITORY / "recipes" / "smollm2-demo.yaml").model_dump_json()
    with pytest.raises(SystemExit) as ended, pipeline_step("sft", recipe):
        by_safetensors(small / "file")
    assert ended.value.code == 1
    assert "error in sft: " in capsys.readouterr().err
    left = StepError.read((tmp_path / "error.json").read_text("utf-8"))
    assert left is not None
    assert left.message == "the disk is full"
    monkeypatch.setenv(ERROR_FILE_VARIABLE, str(small / "note" / "error.json"))  # which cannot be written either
    with pytest.raises(SystemExit), pipeline_step("sft", recipe):
        by_safetensors(small / "file")


def test_a_command_on_a_full_disk_ends_with_one_message(small: Path, capsys: pytest.CaptureFixture[str],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(lambda: by_tokenizers(small / "tokenizer.json"))
    monkeypatch.setattr("sys.argv", ["llm-detox"])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: the disk: the disk is full\n  remedy: free some space")


def places(tmp_path: Path, kind: str) -> Iterator[Path]:
    """A folder that cannot be written, or a file where a folder belongs."""
    if kind == "a file":
        (tmp_path / "file").write_text("mine", "utf-8")
        yield tmp_path / "file"
        assert (tmp_path / "file").read_text("utf-8") == "mine"
    else:
        with disk(tmp_path / "disk", 64) as folder:
            make_read_only(folder)
            yield folder


@pytest.fixture(params=["read-only", "a file"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    yield from places(tmp_path, request.param)


def start_store(path: Path) -> None:
    find_weed()
    Seaweed.start(path)


def run_pipeline_in(path: Path) -> None:
    recipe = load_recipe(REPOSITORY / "recipes" / "smollm2-demo.yaml")
    run_locally(recipe, runs=path, keep_serving=False, fresh=False)


def run_step(path: Path) -> None:
    with step_folder(path, "data", settings={}, inputs={}):
        pass


@pytest.mark.parametrize("use", [start_store, run_pipeline_in, run_step])
@pytest.mark.parametrize("below", ["new", "new/deep"])
def test_a_place_that_cannot_be_written_is_one_message(use: Write, below: str, unwritable: Path) -> None:
    with pytest.raises(DetoxError, match="cannot be written: ") as caught:
        use(unwritable / below)
    assert str(unwritable) in str(caught.value)
    assert "choose another" in str(caught.value.remedy)


@pytest.mark.heavy
def test_every_step_on_a_disk_that_fills_up_ends_with_one_message_and_continues(small: Path) -> None:
    recipe = rehearsal_of(load_recipe(REPOSITORY / "recipes" / "smollm2-demo.yaml"))
    chosen = ["data", "detoxify", "sft", "dpo", "evaluate", "report", "convert"]
    result = full_disk.run(recipe, chosen=chosen, sizes=1, seed=3)
    assert result.problems == []
    assert [name for name, *_ in result.rows] == chosen


def test_the_campaign_of_full_disks_tells_a_step_that_leaves_its_half_or_a_traceback(small: Path) -> None:
    def careless(output: Path) -> None:
        output.mkdir()
        (output / "half").write_text("x" * 300_000, "utf-8")

    result = full_disk.Disks()
    (small / "disk").mkdir()
    full_disk.refuse("careless", careless, small / "disk", result)
    assert len(result.problems) == 1
    with pytest.raises(FileExistsError):
        full_disk.fill("careless", careless, small, small / "disk", 40, result)
    assert any("left ['out']" in problem for problem in result.problems)
    assert any("ended with OSError(28" in problem for problem in result.problems)


def test_a_cache_that_cannot_be_written_is_one_message(unwritable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DETOX_CACHE", str(unwritable / "cache"))
    with pytest.raises(DetoxError, match="cannot be written: ") as caught:
        cache_dir("models")
    assert "LLM_DETOX_CACHE" in str(caught.value.remedy)


def test_a_tokenizer_that_is_saved_on_a_full_disk_is_named(small: Path, tiny_llama: Path) -> None:
    (small / "filling").write_bytes(b"x" * 60_000)
    with pytest.raises(DetoxError, match="the disk is full"), clear_disk_errors(small, "none"):
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(small)


@pytest.mark.parametrize(("text", "shown"), [
    ("https://user:secret@host:9000/x", "https://***@host:9000/x"),
    ("openai+http://:secret@host and grpc://user@host", "openai+http://***@host and grpc://***@host"),
    ("http://user:p@ss@host", "http://***@host"),
    ("s3://bucket/a@b, mail@example.org", "s3://bucket/a@b, mail@example.org"),
])
def test_the_password_of_a_url_is_never_part_of_an_error(text: str, shown: str) -> None:
    assert without_logins(text) == shown
    error = DetoxError(text, place=text, remedy=text)
    assert (error.message, error.place, error.remedy) == (shown, shown, shown)
    assert "secret" not in str(error)
