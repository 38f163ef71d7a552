"""Pages that say what is: generated ones are current, links lead somewhere, figures stand where they were measured."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from llm_detox.recipe.reference import reference
from tests.docs.commands import ROOT, pages

DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]*))?\)")


def links(page: Path) -> list[tuple[str, str]]:
    """Path and anchor of the page's links, those in code left out."""
    return LINK.findall(re.sub(r"`[^`\n]+`", "", page.read_text("utf-8")))


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture", DOCS / "architecture.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_reference_is_that_of_the_schema() -> None:
    assert (DOCS / "configuration.md").read_text("utf-8") == reference(), "make docs"


def test_every_key_has_a_type_and_a_meaning_in_whole_sentences() -> None:
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert not [row[0] for row in rows if len(row) != 4 or not row[1]]
    assert not [row[0] for row in rows if not re.fullmatch(r"[A-Z`\[].*\w.* .*\.", row[-1])]


def test_the_reference_says_which_values_a_key_takes() -> None:
    text = reference()
    for row in ("| `toxic_share` | number from 0 to 1 | `0.5` |", "| `count` | integer at least 1 | `1000` |",
                "| `max_chars` | integer at least 1 or `mean` | `240` |",
                "| `weights` | list of numbers | `[-0.5, 0.5]` |", "| `rest_port` | integer from 0 to 65535 | `0` |",
                "| `model` | [section](#model) | *required* |", "| `rollout` | `replace` or `canary` | `\"replace\"` |",
                "`causal`, `delete`, `tmarco`, `marco`, `paraphrase`, `instruct` or `plugin:NAME`"):
        assert row in text


def test_the_architecture_is_that_of_the_code(architecture: ModuleType) -> None:
    assert (DOCS / "architecture.svg").read_text("utf-8") == architecture.draw(), "make docs"


def test_the_picture_knows_who_imports_whom_and_which_step_waits_for_which(architecture: ModuleType) -> None:
    assert "components" in architecture.imports()["pipelines"]
    assert "pipelines" not in architecture.imports()["components"]
    waits, gated = architecture.steps()
    assert "resolve-recipe" in waits["data"]
    assert gated == {"convert", "publish", "deploy", "smoke"}


def test_arrows_that_follow_from_others_are_left_out_and_circles_are_one(architecture: ModuleType) -> None:
    assert architecture.reduced({"a": {"b", "c"}, "b": {"c"}, "c": {"d"}, "d": {"c"}}) == {
        "a": {"b"}, "b": {"c + d"}, "c + d": set()}


@pytest.mark.parametrize("page", [*pages(), ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}, anchor


def test_the_readme_leads_to_every_page() -> None:
    named = {path for path, _ in links(ROOT / "README.md")}
    wanted = {str(page.relative_to(ROOT)) for page in pages()} | {"CHANGELOG.md"}
    assert not wanted - named - {"README.md"}


def test_measured_figures_stand_beside_none_of_others() -> None:
    """Published ones are of other models, prompts and scorers."""
    paragraphs = (DOCS / "measured.md").read_text("utf-8").split("\n\n")
    cited = [one for one in paragraphs if "et al." in one or "ublished figure" in one]
    assert not [one for one in cited if re.search(r"\d %|\s\.\d", one)]


def test_figures_of_the_recipes_page_are_measured() -> None:
    text = (DOCS / "recipes.md").read_text("utf-8")
    table = text.partition("## Measured")[2].partition("## What their sources report")[0]
    measured = (DOCS / "measured.md").read_text("utf-8")
    figures = re.findall(r"\.\d+ \[\.\d+, \.\d+\]|\b\d+\.\d+\b", table)
    assert len(figures) >= 10
    assert not [one for one in figures if one not in measured]


def test_recipes_are_all_on_their_page() -> None:
    text = (DOCS / "recipes.md").read_text("utf-8")
    assert not [path.name for path in (ROOT / "recipes").glob("*.yaml") if f"recipes/{path.name}" not in text]


def test_licences_name_every_package_and_hub_id_of_recipes_and_requirements() -> None:
    text = (DOCS / "licences.md").read_text("utf-8")
    packages = re.findall(r"^([a-z][\w-]*)==", (ROOT / "requirements/demo.txt").read_text("utf-8"), re.M)
    named = re.compile(r"(?:source|base|fluency_model): ([A-Za-z][\w.-]*/[\w.-]+)")
    sources = {name for path in (ROOT / "recipes").glob("*.yaml") for name in named.findall(path.read_text("utf-8"))}
    missing = [name for name in sorted(sources) if name not in text and not name.startswith("meta-llama/Llama-2-")]
    assert not missing
    assert not [name for name in packages if re.sub(r"-part\d$", "", name) not in text]


def test_environment_variables_that_the_code_reads_are_listed() -> None:
    text = (DOCS / "troubleshooting.md").read_text("utf-8")
    found = {name for top in ("llm_detox", "pipelines", "serving") for path in (ROOT / top).rglob("*.py")
             for name in re.findall(r"\bLLM_DETOX_[A-Z_]+\b|\bPERSPECTIVE_API_KEY\b", path.read_text("utf-8"))}
    assert found
    assert not {name for name in found if f"`{name}`" not in text}
