"""The notebooks as they are stored, and what they share: sizes, folders, errors, pictures."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from llm_detox.errors import DetoxError, UsageError
from llm_detox.recipe.files import load_recipe
from llm_detox.scoring.load import load_scorer

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE = re.compile(r"(?<![\w.:/])/(home|root|work|tmp|usr|opt|var|mnt)/|[A-Z]:\\\\")
LARGEST = 100_000


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The notebooks' module, with an empty folder of runs."""
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    monkeypatch.setenv("LLM_DETOX_NOTEBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("LLM_DETOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.chdir(ROOT)
    import walkthrough

    return walkthrough


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def outputs(path: Path) -> list[dict[str, Any]]:
    return [output for cell in cells(path) for output in cell["outputs"]]


def texts(output: dict[str, Any]) -> Iterator[str]:
    for value in [output.get("text", ""), *output.get("data", {}).values()]:
        yield value if isinstance(value, str) else "".join(value)


def test_there_are_five_of_them() -> None:
    assert [path.name for path in NOTEBOOKS] == [
        "0-quickstart.ipynb", "1-sft.ipynb", "2-eval.ipynb", "3-save_convert_model.ipynb", "4-inference_request.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestStored:
    def test_every_cell_was_run_once_and_in_order(self, path: Path) -> None:
        assert [cell["execution_count"] for cell in cells(path)] == list(range(1, len(cells(path)) + 1))

    def test_it_is_a_valid_notebook(self, path: Path) -> None:
        nbformat = pytest.importorskip("nbformat", reason="the notebooks' format: `make install`")
        nbformat.validate(nbformat.read(path, as_version=4))

    def test_no_output_is_an_error(self, path: Path) -> None:
        assert outputs(path)
        assert not [output for output in outputs(path) if output["output_type"] == "error"]

    def test_the_outputs_belong_to_these_sources(self, path: Path) -> None:
        noted = json.loads(path.read_text("utf-8"))["metadata"]["llm_detox"]["sources"]
        sources = "\0".join("".join(cell["source"]) for cell in cells(path))
        assert noted == hashlib.sha256(sources.encode()).hexdigest()[:16], (
            "a cell was changed: `make notebooks` runs them and stores the outputs")

    def test_no_path_of_a_machine_is_shown(self, path: Path) -> None:
        for output in outputs(path):
            for text in texts(output):
                assert not MACHINE.search(text), text

    def test_outputs_are_small(self, path: Path) -> None:
        for output in outputs(path):
            assert sum(map(len, texts(output))) < LARGEST
            assert not set(output.get("data", {})) & {"image/png", "image/jpeg", "application/pdf"}


def test_what_offends_is_folded_away() -> None:
    scorer = load_scorer(load_recipe(ROOT / "recipes" / "smollm2-demo.yaml").scoring.judging)
    lines = sorted({re.sub(r"<[^>]*>", " ", line).strip() for path in NOTEBOOKS for output in outputs(path)
                    for text in texts(output)
                    for line in re.sub(r"<(details|style)[ >].*?</\1>", "", text, flags=re.DOTALL).splitlines()})
    scores = scorer.score([line for line in lines if line])
    assert not [line for line, score in zip(filter(None, lines), scores, strict=True) if (score or 0) >= 0.5]


def test_a_later_notebook_says_which_one_is_missing(shared: ModuleType) -> None:
    with pytest.raises(UsageError, match=r"run 1-sft\.ipynb first"):
        shared.go_on()
    walk = shared.begin("smollm2-demo", "small")
    assert shared.go_on().folder == walk.folder
    with pytest.raises(UsageError, match=r"run 1-sft\.ipynb to its end"):
        walk.needs("dpo", "1-sft.ipynb")
    with pytest.raises(UsageError, match=r"run 3-save_convert_model\.ipynb to its end"):
        walk.noted("published", "3-save_convert_model.ipynb")


def test_other_settings_begin_another_walk_through(shared: ModuleType) -> None:
    first = shared.begin("smollm2-demo", "small")
    other = shared.begin("smollm2-demo", "small", ["training.sft.learning_rate=1e-4"])
    assert first.folder != other.folder
    assert shared.begin("smollm2-demo", "small").folder == first.folder
    assert shared.go_on().folder == first.folder


def test_a_size_takes_less_data_and_a_setting_goes_before_it(shared: ModuleType) -> None:
    whole = load_recipe(ROOT / "recipes" / "smollm2-demo.yaml")
    assert shared.recipe_at("smollm2-demo", "full") == whole
    small = shared.recipe_at("smollm2-demo", "small", ["data.texts.count=200"])
    assert small.data.texts.count == 200
    assert small.evaluation.continuations < whole.evaluation.continuations
    assert (small.model, small.scoring, small.gate) == (whole.model, whole.scoring, whole.gate)
    assert shared.recipe_at("smollm2-quality", "small", ["data.texts.count=9"]).data.texts.count == 9


@pytest.mark.parametrize(("recipe", "size", "message"), [
    ("smollm2-demo", "huge", "no size 'huge'"), ("nothing", "full", "cannot be read"),
    ("llama2-7b-chat-safety", "full", "trains a judge")])
def test_a_choice_that_does_not_exist_is_refused(shared: ModuleType, recipe: str, size: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shared.recipe_at(recipe, size)


def test_half_an_endpoint_is_refused(shared: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import endpoints

    assert endpoints.given("LLM_DETOX_TRIED") is None
    monkeypatch.setenv("LLM_DETOX_TRIED_REST", "http://127.0.0.1:1")
    with pytest.raises(UsageError, match="one address is given without the other"):
        endpoints.given("LLM_DETOX_TRIED")


def test_a_notebook_shows_an_error_as_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_DETOX_DEBUG", raising=False)
    error = DetoxError("it is not there", place="runs", remedy="make it")
    assert error._render_traceback_() == ["error: runs: it is not there\n  remedy: make it"]


def test_a_picture_stands_alone(shared: ModuleType) -> None:
    pytest.importorskip("IPython", reason="the notebooks' kernel: `make install`")
    import showing
    from llm_detox.evaluation import charts
    from llm_detox.evaluation.report_content import ArmDifference

    row = ArmDifference(0.2, 0.1, 0.3, arm="dpo", against="base", metric="mean_toxicity", stratum="all", prompts=9,
                        effect=None, p=1.0, p_adjusted=1.0)
    shown = [charts.interval_bars({"base": row}), charts.survival({"base": [3, 1]}, 0.5),
             charts.timings({"sft": 2.0}),
             charts.forest([row], ["base", "dpo"]),
             charts.curves(["1", "2"], {"raw": [1.0, 2.0]}, below="step")]
    for chart in shown:
        picture = showing.picture(chart, "a <title>", ["base", "dpo"]).data
        root = ElementTree.fromstring(picture)  # noqa: S314 - our own
        assert root.get("width")
        style = "".join(root.itertext())
        for name in set(re.findall(r'class="([\w ]+)"', chart)) - {""}:
            assert any(f".{one}{{" in style for one in name.split() if one not in ("mark", "value")) or name == "value"


def test_folded_texts_are_escaped(shared: ModuleType) -> None:
    pytest.importorskip("IPython", reason="the notebooks' kernel: `make install`")
    import showing

    found = showing.side_by_side(["<script>"], {"base": [{"text": "<b>x</b>", "toxicity": 0.25}]}).data
    assert found.startswith("<details>")
    assert "&lt;script&gt;" in found
    assert "<b>" not in found
    assert "0.25" in found


def test_what_is_stored_names_no_place_of_this_machine_and_its_sources() -> None:
    pytest.importorskip("nbclient", reason="nbclient runs the notebooks: `make install`")
    import nbformat
    from nbformat import v4

    from notebooks.execute import NOTE, cleaned, sources_digest

    said = v4.new_output("stream", name="stdout", text=f"{ROOT}/runs/x and {Path.home()}/.cache/y\n")
    notebook = v4.new_notebook(cells=[v4.new_code_cell("x = 1", outputs=[said], execution_count=1,
                                                       metadata={"execution": {"started": "now"}})],
                               metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    found = cleaned(notebook, "small")
    assert found.cells[0].outputs[0].text == "./runs/x and ~/.cache/y\n"
    assert found.cells[0].metadata == {}
    nbformat.validate(found)
    assert found.metadata[NOTE] == {"size": "small", "sources": sources_digest(notebook)}
