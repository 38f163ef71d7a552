"""A corpus in, the same corpus without toxic text out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llm_detox.corpus.clean import PAGE, STATISTICS, CorpusSettings, clean_corpus
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.storage.s3 import Place, connect
from llm_detox.storage.seaweed import Seaweed
from tests.helpers import tiny_rewriters as tiny
from tests.unit.corpus.conftest import tiny_recipe

pytestmark = pytest.mark.usefixtures("in_this_process")
SMALL = CorpusSettings(piece=8)
TOXIC = "You are a stupid friend and my house is old."
CLEAN = "You are a good friend and my house is old."


def figures(output: Path) -> dict[str, int]:
    total: dict[str, int] = json.loads((output / STATISTICS).read_text("utf-8"))["total"]
    return total


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_clean_lines_stay_byte_for_byte_and_toxic_ones_keep_their_other_columns(recipe: Recipe, tmp_path: Path) -> None:
    clean = '{ "text":"' + CLEAN + '",  "n": 1.50, "caf\\u00e9": [1,{"a":null}]}\n'
    toxic = json.dumps({"id": 7, "text": TOXIC, "meta": {"deep": [1, 2]}}) + "\n"
    (tmp_path / "in.jsonl").write_text(clean + toxic, "utf-8")
    result = clean_corpus(recipe, str(tmp_path / "in.jsonl"), tmp_path / "out", SMALL)
    first, second = (tmp_path / "out/in.jsonl").read_text("utf-8").splitlines(keepends=True)
    assert first == clean
    record = json.loads(second)
    assert record.pop("text") != TOXIC
    assert record == {"id": 7, "meta": {"deep": [1, 2]}}
    assert (result.lines, result.kept, result.rewritten, result.share_toxic) == (2, 1, 1, 0.5)


def test_every_format_comes_out_as_it_went_in(recipe: Recipe, tmp_path: Path) -> None:
    rows = [(str(number), text) for number, (text, _) in enumerate(tiny.sentences(20, seed=5))]
    corpus = tmp_path / "in"
    (corpus / "deep").mkdir(parents=True)
    lines = "".join(json.dumps({"id": one, "doc": {"text": text}}) + "\n" for one, text in rows).encode()
    (corpus / "deep/a.jsonl.gz").write_bytes(gzip.compress(lines))
    result = clean_corpus(recipe, str(corpus), tmp_path / "jsonl", CorpusSettings("doc.text", piece=8))
    packed = gzip.decompress((tmp_path / "jsonl/deep/a.jsonl.gz").read_bytes()).decode()
    wanted = [(one["id"], one["doc"]["text"]) for one in map(json.loads, packed.splitlines())]
    assert 0 < result.rewritten < len(wanted) <= 20

    (corpus / "deep/a.jsonl.gz").unlink()
    (corpus / "b.csv").write_text("id,text\n" + "".join(f'{one},"{text}"\n' for one, text in rows), "utf-8")
    (corpus / "c.tsv").write_text("text\tid\n" + "".join(f"{text}\t{one}\n" for one, text in rows), "utf-8")
    (corpus / "d.txt").write_text("".join(f"{text}\n\n" for _, text in rows), "utf-8")
    schema = pyarrow.schema([pyarrow.field("id", pyarrow.string(), nullable=False), ("text", pyarrow.large_string()),
                             ("n", pyarrow.int8())], {"made by": "somebody"})
    table = pyarrow.table({"id": [one for one, _ in rows], "text": [text for _, text in rows], "n": [3] * 20}, schema)
    pyarrow.parquet.write_table(table, corpus / "e.parquet", compression="zstd")
    clean_corpus(recipe, str(corpus), tmp_path / "out", SMALL)
    out = tmp_path / "out"
    assert [tuple(line.split("\t"))[::-1] for line in (out / "c.tsv").read_text("utf-8").splitlines()] == [
        ("id", "text"), *wanted]
    assert (out / "d.txt").read_text("utf-8").splitlines() == [text for _, text in wanted]
    back = pyarrow.parquet.read_table(out / "e.parquet")
    assert [(row["id"], row["text"]) for row in back.to_pylist()] == wanted
    assert back.schema.equals(pyarrow.parquet.read_schema(corpus / "e.parquet"), check_metadata=True)
    assert pyarrow.parquet.read_metadata(out / "e.parquet").row_group(0).column(0).compression == "ZSTD"
    kept = dict(rows)
    csv_lines = (out / "b.csv").read_text("utf-8").splitlines()
    assert csv_lines[0] == "id,text"
    assert csv_lines[1:] == [f'{one},"{text}"' if kept[one] == text else f"{one},{text}" for one, text in wanted]


def test_what_has_no_score_no_text_or_no_rewrite_is_left_out_and_counted(place: Path, tmp_path: Path) -> None:
    lines = [{"text": CLEAN}, {"text": ""}, {"text": "long " * 5000}, {"text": None}, {"text": CLEAN}, {"text": TOXIC},
             {"text": CLEAN}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines) + "{broken\n", "utf-8")
    strict = tiny_recipe(place, accept_toxicity=0.0)
    result = clean_corpus(strict, str(tmp_path / "in.jsonl"), tmp_path / "out", SMALL)
    assert records(tmp_path / "out/in.jsonl") == [{"text": CLEAN}] * 3
    assert (result.lines, result.kept, result.dropped, result.unscored, result.unreadable) == (8, 3, 1, 2, 2)
    assert result.share_toxic == 0.25
    keeps = tiny_recipe(place, accept_toxicity=0.0, otherwise="keep")
    result = clean_corpus(keeps, str(tmp_path / "in.jsonl"), tmp_path / "kept", SMALL)
    assert (result.kept, result.dropped, figures(tmp_path / "kept")["toxic"]) == (4, 0, 1)


def test_what_is_in_another_language_stays_as_it_is_and_is_counted(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("py3langid", reason="languages are told apart by the package py3langid")
    foreign = [f"Das Wetter ist schön, sagt der stupid Idiot, und wir gehen {place} nach Hause." for place in range(3)]
    foreign += ["Ты stupid идиот и ничего не понимаешь, иди домой.", "तुम बेवकूफ हो और कुछ नहीं समझते, stupid।"]
    lines = [json.dumps({"text": text}) for text in [TOXIC, *foreign, CLEAN]]
    (tmp_path / "in.jsonl").write_text("".join(line + "\n" for line in lines), "utf-8")
    english = tiny_recipe(place, languages=["en"])
    result = clean_corpus(english, str(tmp_path / "in.jsonl"), tmp_path / "out", SMALL)
    assert (tmp_path / "out/in.jsonl").read_text("utf-8").splitlines()[1:] == lines[1:]
    assert (result.rewritten, result.kept, result.foreign, result.written) == (1, 1, 5, 7)
    written = json.loads((tmp_path / "out" / STATISTICS).read_text("utf-8"))["total"]
    assert written["languages"] == {"de": 3, "hi": 1, "ru": 1}
    assert "lines left as they were" in (tmp_path / "out" / PAGE).read_text("utf-8")
    every = clean_corpus(tiny_recipe(place, languages=[]), str(tmp_path / "in.jsonl"), tmp_path / "every", SMALL)
    assert every.foreign == 0


def test_a_piece_of_which_most_lines_cannot_be_read_ends_the_run(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"body": "a"}\n{"body": "b"}\n{"text": "c"}\n', "utf-8")
    with pytest.raises(DetoxError, match=r"(?s)text.*columns here: body"):
        clean_corpus(recipe, str(tmp_path / "in.jsonl"), tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def test_repeated_texts_are_left_out_over_pieces_and_files(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("a", "b"):
        lines = [{"text": CLEAN}, {"text": f"A new {name} page is here today."}, {"text": CLEAN.upper() + "!"}] * 6
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines), "utf-8")
    settings = CorpusSettings(deduplicate=True, piece=4)
    result = clean_corpus(recipe, f"{tmp_path}/*.jsonl", tmp_path / "out", settings)
    assert (result.lines, result.repeated, result.kept) == (36, 33, 3)
    assert [one["text"] for one in records(tmp_path / "out/a.jsonl")] == [CLEAN, "A new a page is here today."]
    assert [one["text"] for one in records(tmp_path / "out/b.jsonl")] == ["A new b page is here today."]


def test_the_statistics_count_by_file_and_attribute_and_show_no_text(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, text in (("a.jsonl", TOXIC), ("<b>.jsonl", CLEAN)):
        (tmp_path / "in" / name).write_text(json.dumps({"text": text}) + "\n", "utf-8")
    (tmp_path / "in/readme.md").write_text("none", "utf-8")
    clean_corpus(recipe, str(tmp_path / "in"), tmp_path / "out", SMALL)
    text = (tmp_path / "out" / STATISTICS).read_text("utf-8")
    statistics = json.loads(text)
    assert statistics["files"]["a.jsonl"]["attributes"] == {"toxicity": 1}
    assert statistics["files"]["<b>.jsonl"]["attributes"] == {"toxicity": 0}
    assert statistics["not_read"] == ["readme.md"]
    assert "stupid" not in text
    before, _, folded = (tmp_path / "out" / PAGE).read_text("utf-8").partition("<details>")
    assert "stupid" not in before
    assert "stupid" in folded
    assert "&lt;b&gt;.jsonl" in before
    assert "50.00 %" in before


def test_clean_lines_load_no_model(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": CLEAN}) + "\n", "utf-8")
    broken = recipe.model_copy(update={"model": recipe.model.model_copy(update={"source": "nowhere"})})
    assert clean_corpus(broken, str(tmp_path / "in.jsonl"), tmp_path / "out", SMALL).kept == 1


def test_a_corpus_in_the_store_is_cleaned_as_on_the_disk_and_what_changes_there_is_seen(
        recipe: Recipe, url: str, env: Seaweed, tmp_path: Path) -> None:
    place, client = Place.parse(f"{url}/corpus"), connect()
    lines = [json.dumps({"text": text}) + "\n" for text in (CLEAN, TOXIC)]
    for name, line in zip(("a.jsonl", "deep/b.jsonl"), lines, strict=True):
        client.put_object(Bucket=place.bucket, Key=(place / name).key, Body=line.encode())
    first = clean_corpus(recipe, f"{url}/corpus", tmp_path / "out", SMALL)
    assert (first.files, first.kept, first.rewritten) == (2, 1, 1)
    assert (tmp_path / "out/a.jsonl").read_text("utf-8") == lines[0]
    assert (tmp_path / "out/deep/b.jsonl").exists()
    client.put_object(Bucket=place.bucket, Key=(place / "a.jsonl").key, Body=lines[1].encode())
    assert clean_corpus(recipe, f"{url}/corpus", tmp_path / "again", SMALL).rewritten == 2


def test_an_output_that_exists_is_never_touched(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": CLEAN}) + "\n", "utf-8")
    (tmp_path / "out").mkdir()
    with pytest.raises(DetoxError, match="exists already"):
        clean_corpus(recipe, str(tmp_path / "in.jsonl"), tmp_path / "out", SMALL)
