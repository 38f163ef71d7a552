"""The campaign of damaged files in its small form; `make campaign` runs it whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.campaigns.fuzz import Format, formats, mutated, run


def test_no_damaged_file_ends_in_a_traceback(tmp_path: Path) -> None:
    outcomes = run(formats(tmp_path), cases=1200, seed=1, folder=tmp_path)
    assert [fault for one in outcomes.values() for fault in one.faults] == []
    unnoticed = {name for name, one in outcomes.items() if not one.refused}
    assert unnoticed <= {"verdict of a judge"}, "which reads whatever a judge writes; else damage tests nothing"


def test_what_is_damaged_was_good_before(tmp_path: Path) -> None:
    for one in formats(tmp_path):
        for good in one.good:
            path = tmp_path / one.file
            path.write_bytes(good)
            one.read(path)


def test_a_traceback_is_a_fault_with_its_case(tmp_path: Path) -> None:
    def read(path: Path) -> object:
        raise KeyError("x")

    outcome = run([Format("x", "x.txt", [b"abc"], read)], cases=2, seed=4, folder=tmp_path)["x"]
    assert [case for case, _ in outcome.faults] == ["4/x/0", "4/x/1"]


@pytest.mark.parametrize("good", [b"", b"abc", b'{"a": [1, {"b": null}]}\n{"c": 2}\n'])
def test_a_case_is_made_of_its_seed_alone(good: bytes) -> None:
    cases = [mutated(good, random.Random(f"{number}")) for number in range(50)]
    assert cases == [mutated(good, random.Random(f"{number}")) for number in range(50)]
    assert len(set(cases)) > 20
