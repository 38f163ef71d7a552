"""Each right of each Role taken away: something fails, and says which right it lacks.

    python -m benchmarks.campaigns.least_rights

The tests of `tests/cluster/test_rights.py` against a real API server: a deployment lives its whole life, and a training
on several nodes, under the shipped Roles, and then without one right after the other. Needs what `make test-cluster`
needs. Nothing is drawn by chance. The exit code is 1 where a right is not missed, or not named.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.campaigns.ending import ended

_TESTS = Path(__file__).parents[2] / "tests" / "cluster" / "test_rights.py"
_RIGHT = re.compile(r"(?P<test>\w+)\[(?P<right>[^\]]+)\]$")


@dataclass
class Rights:
    """What the tests said: (Role, right) -> the error without it; the tests that passed without one; and problems."""

    missed: dict[tuple[str, str], str] = field(default_factory=dict)
    passed: int = 0
    problems: list[str] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a test's outcome; pytest calls this."""
        if report.failed or report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)[-300:]
            self.problems.append(f"{report.nodeid}, {report.when}: {report.outcome}: {why}")
        elif report.when == "call":
            self.passed += 1
            if found := _RIGHT.search(report.nodeid):
                role = "training on nodes" if "train" in found["test"] else "deploying"
                self.missed[role, found["right"]] = dict(report.user_properties).get("said", "")


def run(*options: str) -> Rights:
    """The whole campaign; `options` are pytest's."""
    result = Rights()
    pytest.main(["-p", "no:cacheprovider", "-n", "0", *options, str(_TESTS)], plugins=[result])
    if not result.passed and not result.problems:
        result.problems.append("no test ran")
    return result


def table(result: Rights) -> str:
    """What is said without each right, as a Markdown table."""
    rows = [f"| {role} | {right} | {said.splitlines()[0] if said else ''} |"
            for (role, right), said in result.missed.items()]
    return "\n".join(["| Role for | without the right to | it is said |", "|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.parse_args()
    result = run()
    print(table(result))
    return ended(result.problems, f"least rights: {len(result.missed)} rights taken away, each missed and named")


if __name__ == "__main__":
    sys.exit(main())
