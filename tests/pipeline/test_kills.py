"""The campaign of killed pipelines in its small form; `make campaign` runs it whole."""

from __future__ import annotations

import pytest

from benchmarks.campaigns.killed_pipeline import run


@pytest.mark.heavy
def test_a_pipeline_that_is_killed_with_9_ends_as_if_nothing_had_happened() -> None:
    result = run(count=3, seed=2, steps=("sft", "publish", "deploy"))
    assert result.problems == []
    assert result.at.total() == 3
    assert result.ends == 1
