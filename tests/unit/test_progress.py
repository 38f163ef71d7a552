"""What others wrote cannot work the terminal, nor a page: its control and direction characters are written out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_detox.client import TextGenerationClient
from llm_detox.evaluation.report import write_report
from llm_detox.guard.terminal_chat import chat
from llm_detox.progress import say, visible, visible_json
from tests.helpers.answering import caikit, http_server
from tests.helpers.tiny import save_tiny_llama
from tests.unit.evaluation.conftest import ByLength, save_clean, save_prompts, small_recipe, use

EVIL = ["A\x1b[2J\x1b]0;title\x07B", "\x9b2JC\u202eD\n", "\x1b]52;c;", "eA==\x07\ttab\r\x7f\u2066E"]
SHOWN = ("A\\x1b[2J\\x1b]0;title\\x07B\\x9b2JC\\u202eD\n\\x1b]52;c;eA==\\x07\ttab\\r\\x7f\\u2066E")
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def url() -> Iterator[str]:
    with http_server(caikit(EVIL)) as address:
        yield address


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"from llm_detox.cli import main; import sys; sys.argv = ['llm-detox', *{list(arguments)!r}]; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60,
                          env=dict(os.environ, PYTHONIOENCODING="utf-8"))
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_every_control_and_direction_character_is_written_out() -> None:
    for number in (*range(0x3000), *range(0xD800, 0xE000), 0xFEFF):
        character = chr(number)
        unsafe = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or RAW.match(character)
        if unsafe and character not in "\n\t":
            assert visible(character).isascii(), hex(number)
            assert visible(character).isprintable(), hex(number)
        else:
            assert visible(character) == character, hex(number)
    assert visible("naïve ☕ 日本語 שלום 👩\u200d👩") == "naïve ☕ 日本語 שלום 👩\u200d👩"


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_an_answer_does_not_work_the_terminal(url: str, more: list[str]) -> None:
    done = _run("ask", "--url", url, "--model", "x", *more, "Hello")
    assert done.returncode == 0, done.stderr
    assert done.stdout == SHOWN + "\n"


def test_an_answer_as_json_is_exact_and_safe(url: str) -> None:
    done = _run("ask", "--url", url, "--model", "x", "--json", "Hello")
    assert json.loads(done.stdout)["text"] == "".join(EVIL)
    assert not RAW.search(done.stdout.rstrip("\n"))
    assert visible_json({"a": "é☕\x7f"}) == '{"a": "é☕\\u007f"}'


def test_a_conversation_does_not_work_the_terminal(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with TextGenerationClient(url, "x") as client:
        given = iter(["Hello"])
        chat(client, {}, read=lambda _: next(given, None) or _end(), interactive=False)
    assert capfd.readouterr().out == SHOWN + "\n"


def _end() -> str:
    raise EOFError


def test_errors_and_progress_do_not_work_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "evil\x1b[2J.yaml"
    recipe.write_text('name: x\n"key\\e[2J\\u202e": 1\n', "utf-8")
    done = _run("recipe", "validate", str(recipe))
    assert done.returncode == 2
    assert "key\\x1b[2J\\u202e" in done.stderr
    assert "evil\\x1b[2J" in done.stderr
    assert not RAW.search(done.stderr)
    say("withheld: \x1b[2J")
    assert capsys.readouterr().err == "withheld: \\x1b[2J\n"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Of arms and a recipe with names that nobody should have."""
    root = tmp_path_factory.mktemp("evil")
    recipe = small_recipe(root, tiny_llama)
    recipe = recipe.model_copy(update={"description": "a | b <script>alert(1)</script>\x1b[2J\u202e\nsecond"})
    prompts, clean, arm = save_prompts(root), save_clean(root), "x|<img src=q>\x9b\u202e"
    with pytest.MonkeyPatch.context() as patch:
        use(patch, ByLength())
        for number, name in enumerate(("base", arm)):
            model = save_tiny_llama(root / f"model {number}", seed=number)
            evaluate_arm(recipe, str(model), name, prompts, clean, root / f"arm {number}")
    write_report(recipe, evaluations={"base": root / "arm 0", arm: root / "arm 1"}, records=None, steps={},
                 output=root / "report")
    return root / "report"


def evaluate_arm(recipe: object, model: str, name: str, prompts: Path, clean: Path, output: Path) -> None:
    from llm_detox.evaluation.evaluate import evaluate

    evaluate(recipe, model=model, arm=name, prompts=prompts, clean=clean, output=output)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["report.html", "report.md", "model_card.md"])
def test_names_and_descriptions_do_not_work_a_page(report: Path, name: str) -> None:
    text = (report / name).read_text("utf-8")
    assert not RAW.search(text)
    assert "<script>alert" not in text
    assert "<img src=q>" not in text.split("---\n")[-1]
    if name.endswith(".md"):
        rows = [line for line in text.splitlines() if line.startswith("| x")]
        assert rows
        assert all(row.startswith("| x\\|&lt;img src=q&gt;\\x9b\\u202e |") for row in rows)
    else:
        assert "x|&lt;img src=q&gt;\\x9b\\u202e" in text
