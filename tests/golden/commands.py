"""Runs `llm-detox` as its users do: by its words, inside this process, where the libraries are loaded once."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from llm_detox.cli import main
from tests.golden.store import Store

# A tokenizer's files are the model's own; adapters of one kind have one configuration.
TOKENIZER = ("tokenizer_config.json", "chat_template.jinja", "base.json")
ADAPTER = ("adapter_config.json",)


@dataclass(frozen=True)
class Outcome:
    """What a command left on its two outputs, and its exit code."""

    code: int
    stdout: str
    stderr: str


def outcome_of(words: Sequence[str]) -> Outcome:
    """Run a command, whatever its exit code."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["llm-detox", *words]), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def run(*words: str, code: int = 0) -> str:
    """Run a command that must end with this exit code; returns its stdout.

    Raises:
        AssertionError: it ended with another one.
    """
    outcome = outcome_of(words)
    assert outcome.code == code, f"{' '.join(words)} ended with {outcome.code}:\n{outcome.stderr}"
    return outcome.stdout


def run_step(store: Store, name: str, command: str, *words: str, code: int = 0, left_out: Collection[str] = (),
             hashed: Collection[str] = ()) -> None:
    """Run a step of the small recipe with `--json`, and store its folder.

    Args:
        store: of the section.
        name: of the folder that the step writes, and in the store.
        command, words: what is run.
        code: the exit code that it must end with.
        left_out, hashed: see `Store.step`.

    Raises:
        AssertionError: it ended with another code, or what it printed is not the result in its manifest.
    """
    lines = run(command, "--recipe", "small.yaml", *words, "--output", name, "--json", code=code).splitlines()
    printed = json.loads(lines[0])  # the second one is an error, where there is one
    manifest = json.loads((Path(name) / "manifest.json").read_text("utf-8"))
    assert printed == {**manifest["result"], "output": name}, f"{name}: {printed}"
    store.step(name, Path(name), left_out=left_out, hashed=hashed)


def overrides(section: str, settings: Sequence[str]) -> list[str]:
    """The words that override keys of a recipe's section."""
    return [word for setting in settings for word in ("--set", f"{section}.{setting}")]
