"""The report's browser of samples in a real Chromium: sorted, filtered, folded, and quiet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_detox.evaluation.evaluate import evaluate
from llm_detox.evaluation.report import write_report
from tests.browser.conftest import PHONE
from tests.helpers.tiny import save_tiny_llama
from tests.unit.evaluation.conftest import ByLength, save_clean, save_prompts, small_recipe, use

pytestmark = pytest.mark.browser
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def report(browser: Any, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> str:
    """The address of a report on two arms."""
    root = tmp_path_factory.mktemp("report")
    recipe = small_recipe(root, tiny_llama)
    prompts, clean = save_prompts(root), save_clean(root)
    with pytest.MonkeyPatch.context() as patch:
        use(patch, ByLength())
        for number, arm in enumerate(("base", "dpo")):
            model = save_tiny_llama(root / f"model {arm}", seed=number)
            evaluate(recipe, model=str(model), arm=arm, prompts=prompts, clean=clean, output=root / arm)
    write_report(recipe, evaluations={arm: root / arm for arm in ("base", "dpo")}, records=None, steps={},
                 output=root / "report")
    return (root / "report" / "report.html").as_uri()


def column(page: Any, number: int) -> list[float]:
    cells = page.locator(f"#browser tbody tr:not([hidden]) td:nth-child({number})")
    return [float(value) for value in cells.evaluate_all("cells => cells.map(cell => cell.dataset.sort)")]


def test_the_samples_are_sorted_by_score_both_ways(open_page: Open, report: str) -> None:
    page = open_page(report)
    before = column(page, 2)
    page.locator("#browser thead th").nth(1).click()
    assert column(page, 2) == sorted(before)
    assert column(page, 2) != before, "this report can show whether it sorts"
    page.locator("#browser thead th").nth(1).click()
    assert column(page, 2) == sorted(before, reverse=True)


def test_headings_sort_by_keyboard_and_say_how(open_page: Open, report: str) -> None:
    page = open_page(report)
    heading = page.locator("#browser thead th").nth(1)
    heading.focus()
    page.keyboard.press("Enter")
    assert column(page, 2) == sorted(column(page, 2))
    assert heading.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert column(page, 2) == sorted(column(page, 2), reverse=True)
    page.locator("#browser thead th").nth(3).press("Enter")
    assert heading.get_attribute("aria-sort") is None, "one column at a time"


def test_the_difference_is_sorted_as_a_number(open_page: Open, report: str) -> None:
    page = open_page(report)
    page.locator("#browser thead th").nth(3).click()
    shown = [float(text) for text in page.locator("#browser tbody td:nth-child(4)").all_inner_texts()]
    assert shown == sorted(shown)
    assert len(set(shown)) > 1


def test_the_filter_finds_text_that_is_folded_away(open_page: Open, report: str) -> None:
    page = open_page(report)
    rows = page.locator("#browser tbody tr")
    assert rows.count() == 12
    page.get_by_role("searchbox").fill("DAY 7 FOR")
    assert [row.is_visible() for row in rows.all()].count(True) == 1
    assert "day 7 for" in page.locator("#browser tbody tr:not([hidden])").text_content()
    page.get_by_role("searchbox").fill("no such text")
    assert not any(row.is_visible() for row in rows.all())
    page.get_by_role("searchbox").fill("")
    assert all(row.is_visible() for row in rows.all())


def test_prompts_are_folded_until_asked_for_one_by_one_or_all(open_page: Open, report: str) -> None:
    page = open_page(report)
    prompts = page.locator("#browser td:first-child details")
    assert not any(fold.evaluate("fold => fold.open") for fold in prompts.all())
    prompts.first.locator("summary").click()
    assert prompts.first.evaluate("fold => fold.open")
    page.get_by_role("button", name="unfold all").click()
    assert all(fold.evaluate("fold => fold.open") for fold in page.locator("#browser details").all())
    page.get_by_role("button", name="fold all").click()
    assert not any(fold.evaluate("fold => fold.open") for fold in page.locator("#browser details").all())


@pytest.mark.parametrize("width", [1280, 390])
def test_no_table_scrolls_sideways_on_a_desk_or_a_phone(open_page: Open, report: str, accessible: Callable[[Any], None],
                                                        width: int) -> None:
    page = open_page(report, viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details:not(.toxic)').forEach((fold) => { fold.open = true; })")
    assert page.evaluate("""[...document.querySelectorAll("body, section, .wide, table, figure")]
        .filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.className || one.tagName)""") == []
    accessible(page)


def test_a_row_on_a_phone_says_what_its_cells_are(open_page: Open, report: str) -> None:
    page = open_page(report, viewport=PHONE)
    cell = page.locator("#browser tbody td:nth-child(2)").first
    label = cell.evaluate("cell => getComputedStyle(cell, '::before').content")
    assert "base" in label


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_fits_a_phone_and_both_schemes(open_page: Open, report: str, picture: Callable[..., None],
                                                  scheme: str) -> None:
    page = open_page(report, viewport=PHONE, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture(page, scheme)
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.get_by_role("button", name="light or dark").click()
    assert page.evaluate(background) != before
