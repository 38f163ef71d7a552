"""Damaged files of every format that the library reads: each is read, or refused with a message; none is a traceback.

    python -m benchmarks.campaigns.fuzz [--cases 100000] [--seed 11] [--formats recipe,jsonl]

Each case changes a good file at one to four places: bytes turned, cut out, doubled or put in, among them what parsers
stumble over, and in JSON also values of another kind. A case is made of the seed, the format and its number alone, and
is named by them where it fails. The exit code is 1 where one does, or takes more than ten seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.campaigns.ending import ended
from llm_detox.errors import DetoxError

LONGEST_SECONDS = 10.0
_RECIPES = Path(__file__).parents[2] / "recipes"
_NASTY = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b'"', b"'", b"\r", b"\n\n", b"\t", b",,",
    b"[" * 3000, b'{"a":' * 500, b"9" * 5000, b"1e999", b"-1", b"NaN", b"-Infinity", b"null", b"true", b"{}", b"[]",
    b"&a [*a, *a]", b"*b", b"!!python/object/apply:os.system [id]", b"\x1b[2J", "\u202e".encode(), b"<script>",
    b"../../etc/passwd", b"2026-13-99", b"0x1F", b"x" * 70_000, b"%s{}", b": ", b"- ", b"#", b"\x1f\x8b", b"PAR1")
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**80, 1e308, float("nan"), "", "\x00", "\ud800", "x" * 500, [], {}, [[]], {"": None},
    [None], "../..", 0.5, "1")
_WORDS = ("the", "fine", "day", "is", "what", "you", "are", "and", "we", "walk", "along", "a", "river", "with")


@dataclass(frozen=True)
class Format:
    """A format with good files of it.

    Attributes:
        name: for people, and part of each case's seed.
        file: the file's name.
        good: contents of good files.
        read: the library's own reader.
        share: of the cases, against the other formats: slow readers get fewer.
    """

    name: str
    file: str
    good: Sequence[bytes]
    read: Callable[[Path], object]
    share: float = 1.0


@dataclass
class Outcome:
    """What became of a format's cases; `faults` are (case, what happened)."""

    cases: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: list[tuple[str, str]] = field(default_factory=list)


def all_of(read: Callable[[Path], Iterable[object]]) -> Callable[[Path], object]:
    """The reader, read to its end."""
    return lambda path: list(read(path))


def formats(scratch: Path) -> list[Format]:
    """Every format; what libraries write is made in `scratch`."""
    return [*_tables(scratch), *_records(), *_settings(), *_of_steps(), *_of_models(scratch)]


def _tables(scratch: Path) -> list[Format]:
    import pyarrow
    import pyarrow.parquet

    from llm_detox.data.sources import read_table
    from llm_detox.scoring.ngram import read_labelled

    lines = _lines({"id": str(number), "text": _text(number), "label": number % 2} for number in range(6))
    csv = b"text,is_offensive\n" + b"".join(f'"{_text(number)}, yes",{number % 2}\n'.encode() for number in range(30))
    tsv = b"text\tlabel\n" + b"".join(f"{_text(number)}\t{number % 2}\n".encode() for number in range(30))
    parquet = scratch / "good.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [_text(1), _text(2)], "label": [0, 1]}), parquet)
    read = all_of(read_table)
    return [
        Format("jsonl", "table.jsonl", [lines], read, 4),
        Format("jsonl.gz", "table.jsonl.gz", [gzip.compress(lines)], read),
        Format("csv", "table.csv", [csv], read, 2), Format("tsv", "table.tsv", [tsv], read, 2),
        Format("txt", "table.txt", [_text(3).encode()], read),
        Format("parquet", "table.parquet", [parquet.read_bytes()], read),
        Format("labelled text", "labelled.csv", [csv], read_labelled)]


def _records() -> list[Format]:
    from llm_detox.data.chats import read_chat_table
    from llm_detox.data.records import read_generations, read_texts
    from llm_detox.recipe.judge import ChatTable
    from llm_detox.rephrase.paraphrase_pairs import read_pairs
    from llm_detox.training.rewriters import read_classes

    texts = _lines({"id": number, "text": _text(number), "toxic": bool(number % 2)} for number in range(6))
    generations = _lines({"id": str(number), "prompt": {"text": _text(number), "toxicity": 0.5},
                          "generations": [{"text": _text(number + 1), "toxicity": 0.1}]} for number in range(3))
    chats = _lines([{"messages": [{"role": "user", "content": _text(1)}, {"role": "assistant", "content": _text(2)}]},
                    {"messages": f"\n\nHuman: {_text(3)}\n\nAssistant: {_text(4)}"}])
    pairs = b"toxic\tneutral1\tneutral2\n" + f"{_text(5)}\t{_text(6)}\t{_text(7)}\n".encode()
    return [
        Format("texts", "texts.jsonl", [texts], read_texts, 2),
        Format("texts of two classes", "classes.jsonl", [texts], read_classes, 2),
        Format("generations", "generations.jsonl", [generations], all_of(read_generations), 2),
        Format("conversations", "chats.jsonl", [chats], lambda path: list(
            read_chat_table(ChatTable(source=str(path), column="messages"))), 2),
        Format("pairs", "pairs.tsv", [pairs], read_pairs)]


def _settings() -> list[Format]:
    from llm_detox.judge.judge import PACKAGED, load_constitution, read_verdict
    from llm_detox.recipe.files import load_recipe, resolve_recipe

    recipes = [path.read_bytes() for path in sorted(_RECIPES.glob("*.yaml"))]
    small = [json.dumps(load_recipe(path).model_dump(mode="json", exclude_defaults=True)).encode()
             for path in sorted(_RECIPES.glob("*.yaml"))[:4]]
    verdict = b"Evaluation: It is rude.\nCategory: insult\nChatbot is: bad."
    return [
        Format("recipe", "recipe.yaml", recipes, load_recipe, 0.5),
        Format("recipe as a parameter", "recipe.json", small, lambda path: resolve_recipe(
            path.read_bytes().decode("utf-8", "replace")), 1),
        Format("constitution", "constitution.yaml", [PACKAGED.read_bytes()],
               lambda path: load_constitution(str(path)), 0.5),
        Format("verdict of a judge", "verdict.txt", [verdict], lambda path: read_verdict(
            path.read_bytes().decode("utf-8", "replace"), ["insult"]), 2)]


def _of_steps() -> list[Format]:
    from llm_detox.runs.folders import read_manifest
    from llm_detox.serve.deployment import read_state
    from llm_detox.storage.layout import Index

    manifest = {"schema": 1, "kind": "sft", "code_version": "1", "settings_digest": "a" * 64, "inputs": {"a": "b"},
                "files": {"model.safetensors": "c" * 64}, "counts": {"records": 2}, "result": {"loss": 0.5}}
    process = {"name": "engine", "pid": 1, "started": 1.5, "log": "engine.log"}
    state = {"name": "m", "urls": {"rest": "http://127.0.0.1:1"}, "address": "s3://b/k", "digest": "d", "model": "m",
             "started": "now", "processes": [process]}
    index = {"schema": 1, "files": {"config.yml": {"sha256": "a" * 64, "bytes": 3}, "artifacts/a": {
        "sha256": "b" * 64, "bytes": 10}}}
    return [
        Format("manifest", "manifest.json", [_json(manifest)], lambda path: read_manifest(path.parent), 2),
        Format("deployment", "deployment.json", [_json(state)], read_state, 2),
        Format("checksums", "checksums.json", [_json(index)], lambda path: Index.checked(
            _value_of(path), str(path)).digest, 2)]


def _of_models(scratch: Path) -> list[Format]:
    import numpy as np
    from gguf import GGUFWriter
    from safetensors.numpy import save_file

    from llm_detox.generation.gguf_files import check_gguf
    from llm_detox.scoring.attributes import load_attribute_scorer
    from llm_detox.scoring.bilstm import read_word_index
    from llm_detox.scoring.ngram import load_ngram_scorer

    weights = scratch / "good.safetensors"
    save_file({"weights": np.zeros(16, dtype=np.float16), "calibration": np.array([0.0, 1.0, 0.0])}, weights,
              metadata={"figures": "{}"})
    gguf = scratch / "good.gguf"
    writer = GGUFWriter(gguf, "llama")
    writer.add_block_count(1)
    writer.add_tensor("output.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    words = pickle.dumps(SimpleNamespace(word_index={"day": 1, "fine": 2}, num_words=20))
    attributes = scratch / "attributes.safetensors"
    save_file({"kept": np.zeros(1, np.int32), "weights": np.zeros((1, 1), np.float16), "idf": np.ones(1, np.float32),
               "base": np.zeros(8, np.float16), "dense_weights": np.zeros((6, 1)), "evidence_scale": np.ones((2, 5)),
               "calibration": np.ones((2, 1))}, attributes,
              metadata={"format": "llm-detox-attributes-2", "attributes": '["toxicity"]'})
    return [
        Format("scorer's weights", "weights.safetensors", [weights.read_bytes()],
               lambda path: load_ngram_scorer(str(path))),
        Format("attribute scorer", "scorer.safetensors", [attributes.read_bytes()], load_attribute_scorer),
        Format("word index", "tokenizer.pickle", [words], lambda path: read_word_index(path, 20)),
        Format("GGUF", "model.gguf", [gguf.read_bytes()], check_gguf)]


def mutated(good: bytes, rng: random.Random) -> bytes:
    """The content, changed at one to four places."""
    data = _with_other_value(good, rng) if rng.random() < 0.4 else good
    for _ in range(rng.randint(0 if data is not good else 1, 4)):
        data = _changed(data, rng)
    return data


def _changed(data: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(data))
    end = min(len(data), start + rng.choice((1, 4, 30, 300)))
    way = rng.randrange(6)
    if way == 0:
        return data[:start]
    if way == 1:
        return data[:start] + data[end:]
    if way == 2:
        return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]
    if way == 3:
        return data[:start] + bytes(rng.randrange(256) for _ in range(end - start)) + data[end:]
    return data[:start] + rng.choice(_NASTY) + data[start if way == 4 else end:]


def _with_other_value(data: bytes, rng: random.Random) -> bytes:
    """JSON, or a line of JSON, with one of its values replaced, dropped or put under another key; else the content."""
    lines = data.split(b"\n") if data.startswith(b"{") and b"\n{" in data else [data]
    number = rng.randrange(len(lines))
    try:
        value = json.loads(lines[number])
    except ValueError:
        return data
    places = list(_places(value))
    if not places:
        return data
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(_VALUES)
    lines[number] = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def _places(value: Any) -> Iterable[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(pairs):
        yield value, key
        yield from _places(part)


def run(chosen: Sequence[Format], *, cases: int, seed: int, folder: Path) -> dict[str, Outcome]:
    """Read that many damaged files, shared out over the formats."""
    whole = sum(one.share for one in chosen)
    return {one.name: _run_format(one, round(cases * one.share / whole), seed, folder) for one in chosen}


def _run_format(one: Format, cases: int, seed: int, folder: Path) -> Outcome:
    outcome, path = Outcome(), folder / one.name.replace(" ", "-") / one.file
    path.parent.mkdir(exist_ok=True)
    started = time.perf_counter()
    for number in range(cases):
        case = f"{seed}/{one.name}/{number}"
        rng = random.Random(case)
        path.write_bytes(mutated(rng.choice(one.good), rng))
        began = time.perf_counter()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                one.read(path)
        except DetoxError:
            outcome.refused += 1
        except Exception as error:  # what this looks for
            outcome.faults.append((case, f"{type(error).__name__}: {str(error)[:200]}"))
        if (took := time.perf_counter() - began) > LONGEST_SECONDS:
            outcome.faults.append((case, f"took {took:.0f} s"))
    outcome.cases, outcome.seconds = cases, time.perf_counter() - started
    return outcome


def _text(number: int) -> str:
    rng = random.Random(number)
    return " ".join(rng.choice(_WORDS) for _ in range(8))


def _lines(records: Iterable[object]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _value_of(path: Path) -> object:
    """What the store's own reader takes for JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DetoxError("no JSON", place=str(path)) from error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--formats", default="", help="names with commas between; all without")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        known = {one.name: one for one in formats(Path(scratch))}
        chosen = [known[name] for name in options.formats.split(",")] if options.formats else list(known.values())
        outcomes = run(chosen, cases=options.cases, seed=options.seed, folder=Path(scratch))
    print("| format | cases | refused | seconds | faults |\n|---|---|---|---|---|")
    for name, one in outcomes.items():
        print(f"| {name} | {one.cases} | {one.refused} | {one.seconds:.0f} | {len(one.faults)} |")
    faults = [fault for one in outcomes.values() for fault in one.faults]
    cases = sum(one.cases for one in outcomes.values())
    return ended([f"{case}: {what}" for case, what in faults],
                 f"fuzz: {cases} cases of {len(outcomes)} formats, seed {options.seed}")


if __name__ == "__main__":
    sys.exit(main())
