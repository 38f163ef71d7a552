"""At the end of `make mutations`: the table of what noticed each change, whichever process made it."""

from __future__ import annotations

import pytest

NOTICED = "noticed"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = [value for report in terminalreporter.stats.get("passed", [])
            for name, value in report.user_properties if name == NOTICED]
    if rows:
        terminalreporter.write_line("\n| change | noticed by |\n|---|---|")
        for change, test in rows:
            terminalreporter.write_line(f"| {change} | `{test}` |")
