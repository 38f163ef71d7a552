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
import yaml

from llm_detox.client import TextGenerationClient
from llm_detox.evaluation.report import write_report
from llm_detox.guard.terminal_chat import chat
from llm_detox.progress import safe_output, say, visible, visible_json
from tests.conftest import REPOSITORY
from tests.helpers.answering import caikit, http_server
from tests.helpers.tiny import save_tiny_llama
from tests.unit.evaluation.conftest import ByLength, save_clean, save_prompts, small_recipe, use

DEMO = REPOSITORY / "recipes" / "smollm2-demo.yaml"
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


def _safe(code: str, folder: Path) -> str:
    """What a program prints, on both streams, whose code runs as a command of ours does."""
    (folder / "evil.py").write_text(
        "import typer\nfrom llm_detox.cli import run_app\napp = typer.Typer(add_completion=False, "
        "pretty_exceptions_enable=False)\n@app.command()\ndef run(name: str = ''):\n"
        + "".join(f"    {line}\n" for line in code.splitlines()) + "run_app(app)\n", "utf-8")
    done = subprocess.run([sys.executable, str(folder / "evil.py"), "--name", "\x1b[2J"], capture_output=True,
                          check=False, timeout=60, env=dict(os.environ, PYTHONIOENCODING="utf-8"))
    assert not RAW.search((done.stdout + done.stderr).decode())
    return (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(("code", "shown"), [
    ("print('a\\x1b[2Jb')", "a\\x1b[2Jb\n"),
    ("print(name)", "\\x1b[2J\n"),
    ("import sys; sys.stderr.writelines(['a\\x07', 'b\\r\\n'])", "a\\x07b\\r\n"),
    ("import logging; logging.warning('tensor %s', 'a\\x1b]0;t\\x07')", "WARNING:root:tensor a\\x1b]0;t\\x07\n"),
    ("import logging; logging.warning('\\x1b[1mbold\\x1b[0m')", "WARNING:root:bold\n"),
    ("import warnings; warnings.warn('a\\x9bb')", "UserWarning: a\\x9bb\n"),
    ("import typer; typer.echo('a\\u202eb')", "a\\u202eb\n"),
    ("raise ValueError('a\\x1b[2J')", "ValueError: a\\x1b[2J\n"),
    ("from llm_detox.errors import DetoxError; raise DetoxError('a', place='b\\x1b[2J')", "error: b\\x1b[2J: a\n"),
], ids=lambda value: value[:30].encode("unicode_escape").decode())
def test_whatever_a_command_prints_logs_or_raises_does_not_work_the_terminal(
    tmp_path: Path, code: str, shown: str
) -> None:
    assert shown in _safe(code, tmp_path)


def test_the_command_lines_own_words_about_arguments_do_not_work_the_terminal() -> None:
    for arguments in (["report\x1b[2J"], ["recipe", "validate", "a", "b\x1b[2J"]):
        done = _run(*arguments)
        assert done.returncode == 2
        assert "\\x1b[2J" in done.stderr
        assert not RAW.search(done.stdout + done.stderr)


def test_a_recipe_with_direction_characters_is_shown_so_that_it_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = DEMO.read_text("utf-8").replace("\ndescription: ", "\n# ", 1)
    path.write_text(text.replace("name: ", 'description: "a\u202eb"\nname: ', 1), "utf-8")
    for more, read in (([], yaml.safe_load), (["--json"], json.loads)):
        done = _run("recipe", "show", str(path), *more)
        assert done.returncode == 0, done.stderr
        assert not RAW.search(done.stdout)
        assert read(done.stdout)["description"] == "a\u202eb"


def test_the_streams_are_as_before_behind_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with safe_output(), safe_output():
        assert sys.stdout.fileno
        print("a\x07")
        print("b\x07", file=sys.stderr)
        assert sys.stdout.behind is before[0]  # type: ignore[attr-defined]
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("a\\x07\n", "b\\x07\n")


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
