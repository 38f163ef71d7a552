"""Is everything there that a run needs? Each check says what it saw and, where something is missing, what helps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from llm_detox.recipe import Recipe


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


def examine(recipe: Recipe) -> list[Finding]:
    """All checks for the recipe's target, and for its store in a cluster (a local run brings its own)."""
    if recipe.deploy.target == "local":
        from llm_detox.doctor.machine import examine_machine

        return list(examine_machine(recipe))
    from llm_detox.doctor.cluster import examine_cluster
    from llm_detox.doctor.store import examine_store

    return [*examine_cluster(recipe.deploy, training_nodes=recipe.training.job.nodes),
            *examine_store(recipe.publish.url)]


def summary(findings: Iterable[Finding]) -> dict[str, Any]:
    """As plain values: `ready`, and the findings."""
    found = list(findings)
    return {"ready": not any(one.state == "missing" for one in found), "findings": [asdict(one) for one in found]}
