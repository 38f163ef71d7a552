"""A run that is killed or fails continues as if nothing had happened; what is too small for it is said clearly."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.training import dpo as dpo_step
from llm_detox.training import sft as sft_step
from llm_detox.training.pairs import Pair
from llm_detox.training.progress_callback import EVENTS
from llm_detox.training.rewriters import train_experts, train_paraphraser
from llm_detox.training.run import Checkpoints
from tests.conftest import REPOSITORY
from tests.helpers import tiny_rewriters
from tests.helpers.rewriters import recipe as rewriters_recipe
from tests.helpers.sources import write_lines
from tests.helpers.training import losses, small_recipe, texts_file, weights

WORDS = ["the", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "far", "away", "from", "you"]
TEXTS = [" ".join(WORDS[: 2 + number]) for number in range(13)]
PAIRS = [Pair(" ".join(WORDS[:2 + number % 3]), f" {WORDS[number]}", " stupid " + " ".join(WORDS[:number]), 0.5,
              "sampled") for number in range(13)]
STEPS_AN_EPOCH = 7


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: Path) -> Path:
    """A recipe that saves after every step, in four epochs of seven steps, with its data and an SFT adapter."""
    recipe = small_recipe(
        tmp_path / "data", tiny_llama, checkpoint_minutes=0, tensorboard=True,
        lora={"r": 4, "alpha": 8, "dropout": 0.2},
        sft={"batch_size": 2, "max_length": 32, "learning_rate": 1e-3, "epochs": 4},
        dpo={"batch_size": 2, "max_length": 48, "learning_rate": 1e-3, "epochs": 4, "anchor_weight": 0.5,
             "anchor_samples": 10})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(), "utf-8")
    write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    write_lines(tmp_path / "clean.jsonl", [{"text": " ".join(WORDS[number:])} for number in range(5)])
    write_lines(tmp_path / "some.jsonl", [{"prompt": "you are a"}])
    return tmp_path


@pytest.fixture(params=["causal", "bart"])
def rewriters(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The same for rewriters, with a causal or a seq2seq base."""
    tiny_rewriters.causal_folder(tmp_path / "causal")
    words = tiny_rewriters.bart_tokenizer()
    tiny_rewriters.bart(0, words).save_pretrained(tmp_path / "bart")
    words.save_pretrained(tmp_path / "bart")
    recipe = rewriters_recipe(
        tmp_path / request.param, training={"checkpoint_minutes": 0},
        rephraser_training={"learning_rate": 5e-3, "epochs": 4, "batch_size": 2, "lora": {"r": 4, "dropout": 0.2}})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(), "utf-8")
    sentences = tiny_rewriters.sentences(2 * (2 * STEPS_AN_EPOCH - 1))
    write_lines(tmp_path / "texts.jsonl", [{"text": text, "toxic": toxic} for text, toxic in sentences])
    write_lines(tmp_path / "pairs.jsonl", [
        {"toxic": text, "neutral": f"{text.split()[0]} good friend"} for text, toxic in sentences if toxic])
    return tmp_path


def train(kind: str, folder: Path, output: str) -> None:
    """Train in this process; the pairs of DPO are given, since making them is another test's matter."""
    recipe = Recipe.model_validate_json((folder / "recipe.json").read_text("utf-8"))
    if kind == "paraphraser":
        train_paraphraser(recipe, pairs=folder / "pairs.jsonl", output=folder / output)
        return
    if kind == "experts":
        train_experts(recipe, texts=folder / "texts.jsonl", output=folder / output)
        return
    if kind == "sft":
        sft_step.train_sft(recipe, texts=folder / "texts.jsonl", clean=None, output=folder / output)
        return
    dpo_step.make_pairs = lambda *_, **__: PAIRS
    dpo_step.train_dpo(recipe, adapter=folder / "adapter", records=folder / "some.jsonl",
                              prompts=folder / "some.jsonl", clean=folder / "clean.jsonl", output=folder / output)


def train_and_kill(kind: str, folder: Path, output: str, after_steps: int, part: str = ".") -> int:
    """Train in a process of its own and end it by SIGKILL; returns how many steps of the part it had done."""
    code = f"from pathlib import Path; from tests.unit.training.test_resume import train; " \
           f"train({kind!r}, Path({str(folder)!r}), {output!r})"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.PIPE)
    metrics = folder / f".{output}.part" / part / "metrics.jsonl"
    try:
        while child.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < after_steps):
            time.sleep(0.01)
    finally:
        child.kill()
        _, messages = child.communicate()
    assert child.returncode == -signal.SIGKILL, messages.decode()
    return metrics.read_bytes().count(b"\n")


def curve(folder: Path) -> list[tuple[int, float, float, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [(row["step"], row["loss"], row["learning_rate"], row["tokens"]) for row in rows]


def events(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a scalar, as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(one.step, one.value) for one in EventAccumulator(str(folder / EVENTS)).Reload().Scalars(name)]


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_killed_run_continues_to_the_same_losses_and_weights_as_an_unbroken_one(
        kind: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo_step, "make_pairs", dpo_step.make_pairs)  # put back what `train` changes
    if kind == "dpo":
        train("sft", folder, "adapter")
    train(kind, folder, "unbroken")
    done = train_and_kill(kind, folder, "broken", after_steps=STEPS_AN_EPOCH + 2)
    assert STEPS_AN_EPOCH < done < 4 * STEPS_AN_EPOCH
    torn = folder / ".broken.part" / "work" / "checkpoint-999"
    torn.mkdir(exist_ok=True)
    (torn / "optimizer.pt").write_bytes(b"half of it")
    capsys.readouterr()

    train(kind, folder, "broken")
    messages = capsys.readouterr().err
    assert any(f"training continues after step {step}\n" in messages for step in (done - 1, done)), messages
    assert curve(folder / "broken") == curve(folder / "unbroken")
    for run in ("unbroken", "broken"):
        assert [loss for _, loss in events(folder / run, "loss")] == pytest.approx(losses(folder / run))
        assert [step for step, _ in events(folder / run, "tokens_per_second")] == [
            row[0] for row in curve(folder / run)]
    whole, resumed = weights(folder / "unbroken"), weights(folder / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {path.name for path in (folder / "broken").iterdir()} == {
        path.name for path in (folder / "unbroken").iterdir()}


@pytest.mark.heavy
@pytest.mark.parametrize(("rewriters", "kind"), [
    ("causal", "paraphraser"), ("bart", "experts"), ("causal", "experts"), ("bart", "paraphraser")],
    indirect=["rewriters"])
def test_a_killed_training_of_a_rewriter_ends_with_the_bytes_of_an_unbroken_one(
        kind: str, rewriters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The experts are killed in the second one: the first is finished then, and is not trained again."""
    part = "anti_expert" if kind == "experts" else "."
    train(kind, rewriters, "unbroken")
    done = train_and_kill(kind, rewriters, "broken", STEPS_AN_EPOCH + 2, part)
    assert STEPS_AN_EPOCH < done < 4 * STEPS_AN_EPOCH
    capsys.readouterr()
    train(kind, rewriters, "broken")
    messages = capsys.readouterr().err
    assert messages.count("training continues after step") == 1
    assert any(f"training continues after step {step}\n" in messages for step in (done - 1, done)), messages
    assert not any(line.startswith("expert:") for line in messages.splitlines())
    files = [{path.relative_to(rewriters / run): path.read_bytes() for path in (rewriters / run).rglob("*")
              if path.is_file()} for run in ("unbroken", "broken")]
    assert files[0].keys() == files[1].keys()
    models = [name for name in files[0] if name.suffix == ".safetensors"]
    assert len(models) == (2 if kind == "experts" else 1)
    assert [files[1][name] for name in models] == [files[0][name] for name in models]
    assert curve(rewriters / "broken" / part) == curve(rewriters / "unbroken" / part)


@contextmanager
def files_of_any_size_again() -> Iterator[None]:
    """Undo what a test tells the kernel: to let no file grow over a size, which fails a write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.heavy
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.pt"])
def test_a_full_disk_leaves_the_last_whole_checkpoint_and_the_next_run_goes_on_there(
        folder: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Checkpoints.on_step_end

    def fill_the_disk(self: Any, args: Any, state: Any, control: Any, **options: Any) -> None:
        saved(self, args, state, control, **options)
        if state.global_step == 4:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            written = (self.last() / file).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (written - 1, hard))

    monkeypatch.setattr(Checkpoints, "on_step_end", fill_the_disk)
    with files_of_any_size_again(), pytest.raises(DetoxError, match="disk is full") as caught:
        train("sft", folder, "adapter")
    assert "continues after step 3" in (caught.value.remedy or "")
    work = folder / ".adapter.part" / "work"
    assert [path.name for path in work.glob("*-*")] == ["step-3"]
    assert not (folder / "adapter").exists()
    monkeypatch.undo()
    train("sft", folder, "adapter")
    train("sft", folder, "other")
    assert curve(folder / "adapter") == curve(folder / "other")


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path) -> Recipe:
    return small_recipe(tmp_path / "data", tiny_llama)


def test_memory_that_runs_out_is_said_with_what_to_change(
        tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sft_step.make_trainer

    def hungry(*arguments: Any, **options: Any) -> Any:
        trainer: Any = made(*arguments, **options)
        trainer.compute_loss = lambda *_, **__: torch.empty(2**50)
        return trainer

    monkeypatch.setattr(sft_step, "make_trainer", hungry)
    with pytest.raises(DetoxError, match="memory is full") as caught:
        sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    assert "batch_size" in (caught.value.remedy or "")
    assert not (tmp_path / "sft").exists()


def test_texts_of_which_nothing_is_left_stop_the_run(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama)
    short = recipe.training.sft.model_copy(update={"max_length": 1})  # a recipe refuses it itself
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"sft": short})})
    with pytest.raises(DetoxError, match="no row of two tokens") as caught:
        sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    assert "max_length" in (caught.value.remedy or "")


def test_a_batch_without_a_token_to_learn_from_stops_the_run(
        tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sft_step.make_trainer

    def all_masked(*arguments: Any, **options: Any) -> Any:
        trainer = made(*arguments, **options)
        collate = trainer.data_collator
        trainer.data_collator = lambda rows: (batch := collate(rows)) | {"labels": batch["labels"].fill_(-100)}
        return trainer

    monkeypatch.setattr(sft_step, "make_trainer", all_masked)
    with pytest.raises(DetoxError, match="no token to learn from") as caught:
        sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    assert "max_length" in (caught.value.remedy or "")


def test_no_checkpoint_is_made_of_weights_that_are_no_numbers(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, checkpoint_minutes=0, sft={
        "batch_size": 2, "max_length": 32, "learning_rate": 1e30, "epochs": 4, "warmup_ratio": 0.0})
    with pytest.raises(DetoxError, match=r"is (nan|inf) at step"):
        sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    for kept in (tmp_path / ".sft.part" / "work").glob("step-*"):
        assert all(value.isfinite().all() for value in weights(kept).values())
    assert losses(tmp_path / ".sft.part")
