"""What `--help` says of the commands."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from llm_detox.cli import app


@pytest.mark.parametrize("group", [[], ["recipe"], ["models"], ["export"], ["bench"]], ids=" ".join)
def test_each_command_is_told_in_a_whole_sentence_on_a_narrow_terminal(group: list[str]) -> None:
    shown = CliRunner().invoke(app, [*group, "--help"], terminal_width=80)
    commands = shown.output.partition("Commands:")[2]
    assert commands
    assert all(line.endswith(".") and not line.endswith("..") for line in commands.splitlines() if line.strip())
