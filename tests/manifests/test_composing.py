"""Overlays of a user: every component works wherever it stands in the list, and says so where it cannot work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.manifests.kustomize import COMPONENTS, OVERLAYS, copied, documented, refusal, with_components
from tests.manifests.objects import containers

# The others bring objects of their own, and do no harm in another overlay.
CHANGES_SOMETHING = ("autoscaling", "autoscaling-openshift-ai", "canary", "engine", "expose", "grpc", "protect",
                     "vllm-model")
MISPLACED = [(base, component) for base in OVERLAYS[:4] for component in CHANGES_SOMETHING
             if component not in documented()[base]
             and (base, component) != ("overlays/kserve", "grpc")]  # it changes the runtime, but brings a Route


def test_every_component_is_documented_with_its_place() -> None:
    placed = {name for names in documented().values() for name in names}
    assert placed | {"networkpolicy"} == set(COMPONENTS)
    assert set(documented()) <= {*OVERLAYS, "connection"}


@pytest.mark.parametrize(("base", "component"), MISPLACED, ids=[" ".join(one) for one in MISPLACED])
def test_a_component_that_would_change_nothing_stops_with_a_message(
        base: str, component: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, base, [component])
    assert f"manifests/components/{component}" in message
    assert "manifests/requires/" in message
    assert re.search(r"nothing selected by|is missing for replacement source", message), message


def test_an_authority_elsewhere_than_in_the_connection_stops_with_a_message(tmp_path: Path) -> None:
    message = refusal(tmp_path / "mine", "overlays/kserve", ["custom-ca"], copied(tmp_path))
    assert "components/custom-ca" in message
    assert "requires/connection" in message


@pytest.mark.parametrize("base", sorted(documented().keys() - {"connection"}))
def test_a_component_brings_the_settings_wherever_it_stands(base: str, tmp_path: Path) -> None:
    """The vLLM runtime landed in the namespace `default` where it came after the settings."""
    for component in documented()[base]:
        for thing in with_components(tmp_path / component, base, [component]):
            where = f"{component}: {thing['kind']} {thing['metadata']['name']}"
            if not thing["kind"].startswith("Cluster"):
                assert thing["metadata"].get("namespace") == "llm-detox", where
            assert all(subject.get("namespace") for subject in thing.get("subjects", ())), where
            assert "NAMESPACE" not in str(thing), where
            for container in containers(thing):
                assert re.search(r"[:@]", container["image"]), f"{where}: {container['image']}"


@pytest.mark.parametrize("base", sorted(documented().keys() - {"connection"}))
def test_the_order_of_the_components_makes_no_difference(base: str, tmp_path: Path) -> None:
    names = [name for name in documented()[base] if name != "canary"]
    one = with_components(tmp_path / "one", base, names)
    other = with_components(tmp_path / "other", base, reversed(names))
    assert sorted(map(str, one)) == sorted(map(str, other))
