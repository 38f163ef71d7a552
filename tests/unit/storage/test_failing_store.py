"""The campaign of the failing store in its small form; `make campaign` runs it whole."""

from __future__ import annotations

import pytest

from benchmarks.campaigns import failing_store
from benchmarks.campaigns.failing_store import CHANGED, FAULTS, FETCH, PUBLISH, run
from llm_detox.errors import DetoxError
from llm_detox.storage.seaweed import find_weed


@pytest.fixture(autouse=True)
def _has_a_store() -> None:
    try:
        find_weed()
    except DetoxError as error:
        pytest.skip(str(error))


@pytest.mark.heavy
def test_publish_and_fetch_end_right_or_with_one_message_whatever_fails() -> None:
    tally = run(each=1, seed=3)
    assert tally.problems == []
    for action in (PUBLISH, FETCH):
        assert all(tally.cases[fault, action] == 3 for fault in FAULTS)
        assert tally.right["500 InternalError", action] >= 2, "what passes is outlasted"
        assert tally.right["slow", action] == 3
        assert tally.right["clock is wrong", action] == tally.right["credentials have expired", action] == 0
    assert tally.cases[CHANGED, FETCH] == 1


@pytest.mark.heavy
def test_the_campaign_tells_a_call_that_gives_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing_store, "FAULTS", {"slow": FAULTS["slow"]})
    monkeypatch.setattr(failing_store, "TIMES", (1,))
    monkeypatch.setattr(failing_store, "contents", lambda folder: {"name": str(folder).encode()})
    assert [problem.rpartition(": ")[2] for problem in run(each=1, seed=3).problems if "slow" in problem] == [
        "the store has something else behind its pointer", "published again, it is something else",
        "something else was fetched"]
