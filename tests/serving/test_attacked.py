"""The campaign against the served stack in its small form; `make campaign` runs it whole."""

from __future__ import annotations

import pytest

from benchmarks.campaigns.attacks import ATTACKS, Target
from benchmarks.campaigns.served_stack import LONGEST_SECONDS, NAME, Attacked, Stack, run, suffer
from llm_detox import processes
from llm_detox.errors import DetoxError
from llm_detox.serve.local_stack import caikit_python


@pytest.fixture(autouse=True)
def _has_caikit() -> None:
    try:
        caikit_python()
    except DetoxError as error:
        pytest.skip(str(error))


@pytest.mark.heavy
def test_no_attack_ends_the_servers_or_keeps_others_waiting() -> None:
    result = run(seconds=1.5, seed=3)
    assert result.problems == []
    assert {row.name for row in result.rows if row.done and row.answers} == set(ATTACKS)


class Broken(Stack):
    """Servers that are slow, wrong and then gone."""

    def __init__(self) -> None:
        self.target = Target(*processes.free_ports(2), NAME)

    def ask(self, protocol: str) -> tuple[str, float]:
        return "something else", LONGEST_SECONDS + 1

    def memory(self) -> tuple[float, float]:
        return 0.0, 0.0

    def faults(self) -> list[str]:
        return ["engine has ended"]


def test_the_campaign_tells_servers_that_are_slow_wrong_or_gone() -> None:
    result = Attacked()
    suffer(Broken(), "deep JSON", 0.2, 1, "the text", result)
    assert {"deep JSON: engine has ended", f"deep JSON: an ordinary client waited for {LONGEST_SECONDS + 1:.1f} s",
            "deep JSON: an ordinary client over grpc got 'something else'"} <= set(result.problems)
