"""The files of the comparison, and the names of its arms and judges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_detox.runs.artifacts import BASE

# What SFT learns from; `base` learns nothing.
TEXTS = ("raw", "filtered", "repeated", "rewritten", "people")
SFT_ARMS = (BASE, *TEXTS)
# What DPO starts from; `untrained` is an adapter that changes nothing.
UNTRAINED = "untrained"
DPO_STARTS = {"raw-dpo": "raw", "rewritten-dpo": "rewritten", "dpo": UNTRAINED}
JUDGES = ("bilstm", "perspective", "lexical")
READ = {"polite": "nats a token on held-out polite sentences",
        "dropped": "nats a token on polite versions of what filtering drops"}


@dataclass(frozen=True)
class Bench:
    """The output folder of the comparison, and the files in it."""

    root: Path

    @property
    def prompts(self) -> Path:
        """Those that all arms continue."""
        return self.root / "prompts.jsonl"

    def texts(self, name: str) -> Path:
        """The texts of an arm, or those that all arms read."""
        return self.root / f"{name}.jsonl"

    def run(self, arm: str, seed: int) -> Path:
        """What one training and its measuring leave."""
        return self.root / f"{arm}-{seed}"

    def adapter(self, arm: str, seed: int) -> Path:
        """The adapter folder of an arm."""
        return self.run(arm, seed) / ("dpo" if arm in DPO_STARTS else "sft")
