"""Inputs from public bug reports: each is read rightly, or refused with its place and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from tests.conftest import REPOSITORY
from tests.public_inputs.case import Case, Refused
from tests.public_inputs.page import DOORS, page

CASES = [pytest.param(case, id=f"{door}: {case.source}") for door, cases in DOORS.items() for case in cases]


@pytest.mark.parametrize("case", CASES)
def test_an_input_of_a_public_report_is_read_rightly_or_refused(case: Case, tmp_path: Path) -> None:
    if isinstance(case.outcome, Refused):
        with pytest.raises(DetoxError, match=case.outcome.message) as caught:
            case.read(tmp_path)
        assert caught.value.place
        assert caught.value.remedy
    else:
        assert case.read(tmp_path) == case.outcome


def test_no_report_counts_twice() -> None:
    sources = [case.source for cases in DOORS.values() for case in cases]
    assert len(sources) == len(set(sources))


def test_the_page_of_the_docs_lists_them_all() -> None:
    assert (REPOSITORY / "docs" / "public-inputs.md").read_text("utf-8") == page()
