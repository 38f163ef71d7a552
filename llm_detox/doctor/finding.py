"""What a check of the doctor saw, and all of them together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What one check saw: `ok`, `unknown` (this login may not look), `missing` (a run would fail)."""

    check: str
    state: Literal["ok", "unknown", "missing"]
    text: str
    remedy: str | None = None

    def line(self) -> str:
        """For people."""
        mark = {"ok": "ok     ", "unknown": "unknown", "missing": "MISSING"}[self.state]
        return f"{mark}  {self.check}: {self.text}" + (f"\n         remedy: {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Examination:
    """All findings, and whether a run can begin: nothing is missing."""

    ready: bool
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Examination:
        """Make all checks."""
        made = tuple(findings)
        return cls(not any(one.state == "missing" for one in made), made)
