"""What a check of the doctor saw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal


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


def summary(findings: Iterable[Finding]) -> dict[str, Any]:
    """As plain values: `ready`, and the findings."""
    found = list(findings)
    return {"ready": not any(one.state == "missing" for one in found), "findings": [asdict(one) for one in found]}
