"""`deploy.kserve.auth` and `expose` are written as people write switches."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from llm_detox.recipe.deploy import KserveSection


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("keep", "keep"), ('"on"', "on"),
                                                ("true", "on"), ("no", "off")])
def test_bare_words_that_yaml_takes_for_booleans_are_switches(written: str, meant: str) -> None:
    section = KserveSection.model_validate(yaml.safe_load(f"{{auth: {written}, expose: {written}}}"))
    assert (section.auth, section.expose) == (meant, meant)


@pytest.mark.parametrize("written", ["1", "maybe", "null"])
def test_other_values_are_refused(written: str) -> None:
    with pytest.raises(ValidationError):
        KserveSection.model_validate({"auth": yaml.safe_load(written)})
