"""Requests that are made from descriptions of the API: the orchestrator's, in our words, and the server's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.detecting import CONTENTS, serving

schemathesis = pytest.importorskip("schemathesis")
API = Path(__file__).parent / "detector_api.yaml"
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


def requests(description: Any, mode: str) -> st.SearchStrategy[Any]:
    """Cases of the one operation; `mode` is `POSITIVE` or `NEGATIVE`."""
    from schemathesis.generation import GenerationMode

    strategy: st.SearchStrategy[Any] = description[CONTENTS]["POST"].as_strategy(
        generation_mode=getattr(GenerationMode, mode))
    return strategy


def test_what_the_orchestrator_may_send_is_answered_as_it_reads_answers(url: str) -> None:
    statuses = set()

    @FEW
    @given(requests(schemathesis.openapi.from_path(API), "POSITIVE"), st.booleans(), st.booleans())
    def check(case: Any, known: bool, plain: bool) -> None:
        if known:
            case.headers["detector-id"] = "toxicity"
        if plain:
            case.body.pop("detector_params", None)
        answer = case.call(base_url=url)
        case.validate_response(answer)
        statuses.add(answer.status_code)
        if answer.status_code == 200:
            contents = case.body["contents"]
            assert len(answer.json()) == len(contents)
            assert all(content[one["start"]:one["end"]] == one["text"]
                       for content, found in zip(contents, answer.json(), strict=True) for one in found)

    check()
    assert statuses >= {200, 404}


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_the_servers_own_description_holds(url: str, mode: str) -> None:
    @FEW
    @given(requests(schemathesis.openapi.from_url(f"{url}/openapi.json"), mode))
    def check(case: Any) -> None:
        case.validate_response(case.call(base_url=url))

    check()


def test_both_descriptions_have_the_operation_and_its_errors(url: str) -> None:
    own = schemathesis.openapi.from_url(f"{url}/openapi.json").raw_schema["paths"][CONTENTS]["post"]["responses"]
    others = schemathesis.openapi.from_path(API).raw_schema["paths"][CONTENTS]["post"]["responses"]
    assert set(others) <= set(own)
