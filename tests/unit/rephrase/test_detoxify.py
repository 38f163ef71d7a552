"""The step: gate, audit trail, resuming after a kill, shards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_detox.errors import DetoxError, UsageError
from llm_detox.recipe import Recipe
from llm_detox.recipe.rephrase import DetoxifySection
from llm_detox.rephrase import detoxify as step
from llm_detox.runs.folders import read_shard
from tests.helpers import tiny_rewriters as tiny

RECORDS = 90


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    yield from tiny.one_thread()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rephrase")
    tiny.causal_folder(folder / "model")
    tiny.labelled_csv(folder / "labelled.csv")
    tiny.write_texts(folder / "texts.jsonl", RECORDS)
    return folder


@pytest.fixture(autouse=True)
def own_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DETOX_CACHE", str(place / "cache"))
    monkeypatch.setattr(step, "CHUNK", 8)


def recipe(place: Path, **detoxify: object) -> Recipe:
    source = str(place / "labelled.csv")
    table = {"source": source}
    return Recipe.model_validate({
        "name": "tiny", "model": {"source": str(place / "model")},
        "data": {"texts": table, "prompts": {"sources": [source]}, "clean": {"sources": [source]}},
        "scoring": {"training": {"kind": "ngram", "source": source}, "judging": {"kind": "bilstm"}},
        "detoxify": {"similarity_model": None, "accept_similarity": 0, "accept_fluency": 100, **detoxify},
    })


@pytest.fixture(scope="module")
def unbroken(place: Path) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_DETOX_CACHE", str(place / "cache"))
        patch.setattr(step, "CHUNK", 8)
        step.detoxify(recipe(place), texts=place / "texts.jsonl", output=place / "unbroken")
    return (place / "unbroken" / "records.jsonl").read_bytes()


def test_text_in_another_language_is_kept_unscored_with_the_reason(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("py3langid", reason="languages are told apart by the package py3langid")
    texts = ["You are a stupid friend and my house is old.", "Du bist ein stupid Idiot und verstehst gar nichts davon."]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    step.detoxify(recipe(place, languages=["en"]), texts=tmp_path / "in.jsonl", output=tmp_path / "out")
    english, german = read((tmp_path / "out" / "records.jsonl").read_bytes())
    assert english["action"] == "rewritten"
    assert (german["action"], german["text"], german["reason"]) == ("kept", texts[1], "in another language (de)")
    assert german["scores"] == {"toxicity_before": None}


def read(data: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in data.decode().splitlines()]


def test_every_input_has_one_line_in_input_order(unbroken: bytes) -> None:
    assert [record["id"] for record in read(unbroken)] == [f"r{i}" for i in range(RECORDS)]


def test_clean_text_stays_as_it_is_and_rewrites_are_within_the_bounds(unbroken: bytes) -> None:
    records = read(unbroken)
    assert {"kept", "rewritten"} <= {str(record["action"]) for record in records}
    for record in records:
        scores = record["scores"]
        assert isinstance(scores, dict)
        assert (record["action"] == "kept") == (scores["toxicity_before"] < DetoxifySection().toxic_threshold)
        if record["action"] == "kept":
            assert record["text"] == record["original"]
        elif record["action"] == "rewritten":
            assert record["text"] != record["original"]
            assert scores["toxicity_after"] < 0.3
            assert scores["perplexity_after"] <= 100 * scores["perplexity_before"]


def test_clean_input_loads_no_model(place: Path, tmp_path: Path) -> None:
    texts = tmp_path / "clean.jsonl"
    texts.write_text('{"text": "You are a good friend and my house is here today."}\n', "utf-8")
    broken = recipe(place).model_copy(update={"model": recipe(place).model.model_copy(update={"source": "nowhere"})})
    result = step.detoxify(broken, texts=texts, output=tmp_path / "out")
    assert result.kept == 1


def test_no_accepted_rewrite_drops_or_keeps_as_the_recipe_says(place: Path, tmp_path: Path) -> None:
    texts = tmp_path / "toxic.jsonl"
    texts.write_text('{"text": "You are a stupid idiot and a filthy moron."}\n', "utf-8")
    for otherwise, action in (("drop", "dropped"), ("keep", "kept")):
        strict = recipe(place, otherwise=otherwise, accept_toxicity=0.0)
        step.detoxify(strict, texts=texts, output=tmp_path / otherwise)
        [record] = read((tmp_path / otherwise / "records.jsonl").read_bytes())
        assert record["action"] == action
        assert record["text"] == ("" if action == "dropped" else record["original"])
        assert [attempt["method"] for attempt in record["tried"]] == ["causal", "delete"]  # type: ignore[index,attr-defined]


def test_the_same_mistake_in_every_text_is_named_with_its_place(place: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("", "utf-8")
    with pytest.raises(DetoxError, match="no records"):
        step.detoxify(recipe(place), texts=texts, output=tmp_path / "out")
    texts.write_text('{"text": "fine"}\n{"text": 7}\n', "utf-8")
    with pytest.raises(DetoxError, match="record 2"):
        step.detoxify(recipe(place), texts=texts, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_request_keeps_its_answer_with_and_without_a_label(place: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "hello", "messages": turns}) + "\n", "utf-8")
    step.detoxify(recipe(place), texts=texts, output=tmp_path / "out")
    [record] = read((tmp_path / "out" / "records.jsonl").read_bytes())
    assert record["messages"] == turns
    texts.write_text('{"text": "fine", "toxic": false, "completion": "an answer to nothing"}\n', "utf-8")
    assert step.read_records(texts) == [{"id": step.record_id("fine"), "text": "fine"}]


@pytest.mark.parametrize("asked_first", [True, False])
def test_requests_among_texts_are_refused_with_their_number(tmp_path: Path, asked_first: bool) -> None:
    lines = ['{"text": "hi", "prompt": "hi", "completion": " good day"}', '{"text": "fine", "toxic": true}']
    texts = tmp_path / "mixed.jsonl"
    texts.write_text("\n".join(lines if asked_first else lines[::-1]), "utf-8")
    with pytest.raises(DetoxError, match="in one file") as caught:
        step.read_records(texts)
    assert "record 2" in str(caught.value)


def test_a_shard_that_does_not_exist_is_refused() -> None:
    assert read_shard("2/8") == (2, 8)
    for wrong in ("4/4", "1", "a/b", "-1/2", ""):
        with pytest.raises(UsageError, match="is not a shard"):
            read_shard(wrong)


def test_shards_put_together_equal_the_whole(place: Path, tmp_path: Path, unbroken: bytes) -> None:
    parts = []
    for index in range(4):
        step.detoxify(recipe(place), texts=place / "texts.jsonl", output=tmp_path / str(index), shard=(index, 4))
        parts.append((tmp_path / str(index) / "records.jsonl").read_bytes())
    assert b"".join(parts) == unbroken
    assert sum(1 for part in parts if part) == 4


def test_what_filtering_would_leave_is_written_beside_the_rewrites(place: Path, tmp_path: Path,
                                                                   unbroken: bytes) -> None:
    kept = [record for record in read(unbroken) if record["action"] == "kept"]
    assert 0 < len(kept) < RECORDS
    assert read((place / "unbroken" / "kept.jsonl").read_bytes()) == kept
    parts = [tmp_path / str(index) for index in range(2)]
    for index, part in enumerate(parts):
        step.detoxify(recipe(place), texts=place / "texts.jsonl", output=part, shard=(index, 2))
    step.join_shards(parts, texts=place / "texts.jsonl", output=tmp_path / "joined")
    assert read((tmp_path / "joined" / "kept.jsonl").read_bytes()) == kept


def test_shards_are_joined_in_any_order_and_only_when_all_are_there(
    place: Path, tmp_path: Path, unbroken: bytes
) -> None:
    for index in range(3):
        step.detoxify(recipe(place), texts=place / "texts.jsonl", output=tmp_path / str(index), shard=(index, 3))
    parts = [tmp_path / name for name in ("2", "0", "1")]
    joined = step.join_shards(parts, texts=place / "texts.jsonl", output=tmp_path / "joined")
    assert (tmp_path / "joined" / "records.jsonl").read_bytes() == unbroken
    assert joined.records == unbroken.count(b"\n")
    for wrong in (parts[:2], [*parts, parts[0]]):
        with pytest.raises(DetoxError, match="not the shards"):
            step.join_shards(wrong, texts=place / "texts.jsonl", output=tmp_path / "wrong")
    (tmp_path / "other.jsonl").write_text('{"text": "Another input."}\n', "utf-8")
    lines = (place / "texts.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "turned.jsonl").write_text("\n".join(reversed(lines)) + "\n", "utf-8")
    for other in ("other.jsonl", "turned.jsonl"):
        with pytest.raises(DetoxError, match="of other texts"):
            step.join_shards(parts, texts=tmp_path / other, output=tmp_path / "wrong")
    step.detoxify(recipe(place, otherwise="keep"), texts=place / "texts.jsonl", output=tmp_path / "3", shard=(2, 3))
    with pytest.raises(DetoxError, match="different recipes"):
        step.join_shards([*parts[1:], tmp_path / "3"], texts=place / "texts.jsonl", output=tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_cut_at_any_byte_the_run_goes_on_to_the_same_file(place: Path, tmp_path: Path, unbroken: bytes) -> None:
    rng = random.Random(5)
    for trial, cut in enumerate([0, 1, len(unbroken) - 1, len(unbroken), *rng.sample(range(len(unbroken)), 4)]):
        output = tmp_path / f"cut{trial}"
        interrupt_at_start(place, output)
        (tmp_path / f".cut{trial}.part" / "records.jsonl").write_bytes(unbroken[:cut])
        step.detoxify(recipe(place), texts=place / "texts.jsonl", output=output)
        assert (output / "records.jsonl").read_bytes() == unbroken, f"cut at byte {cut}"


def interrupt_at_start(place: Path, output: Path) -> None:
    """Leave the staging folder of a run that was killed at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "outcomes", _killed)
        with pytest.raises(KeyboardInterrupt):
            step.detoxify(recipe(place), texts=place / "texts.jsonl", output=output)


def _killed(*_: object) -> object:
    raise KeyboardInterrupt


CHILD = """
import sys
from pathlib import Path
from llm_detox.recipe import Recipe
import torch
from llm_detox.rephrase import detoxify as step
torch.set_num_threads(1)
step.CHUNK = 8
step.detoxify(Recipe.model_validate_json(sys.argv[1]), texts=Path(sys.argv[2]), output=Path(sys.argv[3]))
"""


@pytest.mark.heavy
def test_killed_at_random_points_the_run_resumes_to_the_same_file(
    place: Path, tmp_path: Path, unbroken: bytes, repository: Path
) -> None:
    output, part = tmp_path / "killed", tmp_path / ".killed.part" / "records.jsonl"
    command = [sys.executable, "-c", CHILD, recipe(place).model_dump_json(), str(place / "texts.jsonl"), str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])}
    rng = random.Random(11)
    kills, before = 0, 0
    while not output.exists():
        child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        if kills < 2:
            while child.poll() is None and not (part.exists() and part.stat().st_size > before):
                time.sleep(0.001)
            time.sleep(rng.random() * 0.05)
            child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
        assert kills < 8, "the run never came to its end"
        before = part.stat().st_size if part.exists() else 0
    assert kills > 1
    assert (output / "records.jsonl").read_bytes() == unbroken
