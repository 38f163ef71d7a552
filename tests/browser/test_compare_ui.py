"""The comparison page in a real Chromium: what a visitor does with it, and what may not happen."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import PHONE
from tests.browser.models import BREAKS, FAILS, ScriptedModel, scripted_model

pytestmark = pytest.mark.browser
TOXIC = [" you are a stupid", " idiot and a damn", " fool."]
OFFENSIVE = ("stupid", "idiot")
TOKENS = {"LLM_DETOX_BASE_TOKEN": "base-secret-81", "LLM_DETOX_TOKEN": "other-secret-82"}
Open = Callable[..., Any]
Check = Callable[[Any], None]
Picture = Callable[..., None]


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[ScriptedModel, ScriptedModel]]:
    with scripted_model() as base, scripted_model() as other:
        yield base, other


@pytest.fixture(scope="module")
def address(browser: Any, models: tuple[ScriptedModel, ScriptedModel],
            tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of the command, as a person would start it."""
    folder = tmp_path_factory.mktemp("compare-ui")
    command = [sys.executable, "-m", "llm_detox.cli", "compare-ui", models[0].url, models[1].url, "--port", "0",
               "--timeout", "5", "--json"]
    with (folder / "log").open("w") as log, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env={**os.environ, **TOKENS}) as page:
        assert page.stdout is not None
        line = page.stdout.readline()
        assert line, (folder / "log").read_text()
        yield json.loads(line)["url"]
        page.terminate()
    said = (folder / "log").read_text()
    assert "Traceback" not in said, said


@pytest.fixture
def base(models: tuple[ScriptedModel, ScriptedModel]) -> Iterator[ScriptedModel]:
    yield models[0]
    models[0].gate.set()


@pytest.fixture
def other(models: tuple[ScriptedModel, ScriptedModel]) -> Iterator[ScriptedModel]:
    yield models[1]
    models[1].gate.set()


def card(page: Any, name: str) -> Any:
    return page.get_by_role("article", name=name)


def ask(page: Any, prompt: str) -> None:
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Ask both").click()


def ended(page: Any, *names: str) -> None:
    for name in names or ("base", "detoxified"):
        card(page, name).get_by_role("status").filter(has_text=re.compile("^done")).wait_for()


def wait_for_text(page: Any, name: str, text: str) -> None:
    card(page, name).locator(".text").filter(has_text=text).wait_for()


def test_both_answers_stream_and_are_scored_while_they_come(
        open_page: Open, address: str, base: ScriptedModel, other: ScriptedModel, accessible: Check,
        picture: Picture) -> None:
    base.said["The train"] = [" leaves", " at noon."]
    other.said["The train"] = [" is", " late today."]
    base.gate.clear()
    page = open_page(address)
    ask(page, "The train")
    ended(page, "detoxified")
    wait_for_text(page, "base", "leaves")
    assert card(page, "base").get_by_role("status").inner_text() == "answering"
    toxicity = card(page, "base").get_by_role("row", name="toxicity", exact=False).first
    assert re.search(r"0\.\d\d", toxicity.inner_text()), "scores are there before the answer is whole"
    base.gate.set()
    ended(page)
    assert card(page, "base").locator(".text").inner_text() == " leaves at noon."
    assert card(page, "detoxified").locator(".text").inner_text() == " is late today."
    assert re.search(r"toxicity \(bilstm\): base 0\.\d\d, detoxified 0\.\d\d", page.locator(".summary").inner_text())
    assert card(page, "base").get_by_role("rowheader").count() >= 6
    accessible(page)
    picture(page, "desk")


def test_toxic_text_is_not_even_in_the_page_until_asked_for(
        open_page: Open, address: str, base: ScriptedModel, other: ScriptedModel, accessible: Check,
        picture: Picture) -> None:
    base.said["My neighbour says"] = TOXIC
    other.said["My neighbour says"] = [" hello", " every morning."]
    page = open_page(address)
    ask(page, "My neighbour says")
    ended(page)
    assert not any(word in page.content() for word in OFFENSIVE)
    assert re.search(r"toxicity [01]\.\d\d", card(page, "base").locator(".veil").inner_text())
    assert card(page, "detoxified").locator(".veil").count() == 0
    accessible(page)
    picture(page, "veiled")
    card(page, "base").get_by_role("button", name="show the veiled text").click()
    wait_for_text(page, "base", "idiot")
    assert "idiot" in card(page, "base").locator("mark").all_inner_texts()
    assert card(page, "detoxified").locator("mark").count() == 0
    accessible(page)
    picture(page, "shown")
    card(page, "base").get_by_role("button", name="veil it again").click()
    card(page, "base").get_by_role("button", name="show the veiled text").wait_for()
    assert not any(word in page.content() for word in OFFENSIVE)


def test_the_threshold_of_the_veil_is_a_setting(open_page: Open, address: str, base: ScriptedModel) -> None:
    page = open_page(address)
    ask(page, "Good morning")
    ended(page)
    assert card(page, "base").locator(".veil").count() == 0
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("veil from toxicity").fill("0")
    card(page, "base").locator(".veil").wait_for()
    assert "fine" not in page.locator("main").inner_text()


def test_everything_can_be_done_with_the_keyboard_alone(
        open_page: Open, address: str, base: ScriptedModel, other: ScriptedModel) -> None:
    base.said["He said"] = TOXIC
    page = open_page(address)
    page.get_by_label("Prompt").wait_for()
    page.wait_for_function("document.activeElement.tagName === 'TEXTAREA'")
    page.keyboard.type("He said")
    page.keyboard.press("Control+Enter")
    ended(page)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "show the veiled text":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "one sees where one is"
    page.keyboard.press("Enter")
    wait_for_text(page, "base", "idiot")
    for _ in range(12):
        page.keyboard.press("Tab")
        if "He said" in page.evaluate("document.activeElement.textContent"):
            break
    page.keyboard.press("Enter")
    card(page, "base").get_by_role("button", name="show the veiled text").wait_for()


def test_escape_stops_and_keeps_what_came(open_page: Open, address: str, base: ScriptedModel,
                                          other: ScriptedModel) -> None:
    base.said["Wait for"] = [" a while", " longer"]
    base.gate.clear()
    page = open_page(address)
    ask(page, "Wait for")
    wait_for_text(page, "base", "a while")
    assert page.get_by_role("button", name="Ask both").is_disabled()
    page.get_by_label("Prompt").press("Escape")
    card(page, "base").get_by_role("status").filter(has_text="stopped").wait_for()
    assert "longer" not in card(page, "base").locator(".text").inner_text()
    base.gate.set()
    ask(page, "Once more")
    ended(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_one_answer_below_the_other(
        open_page: Open, address: str, base: ScriptedModel, accessible: Check, picture: Picture, scheme: str) -> None:
    base.said["On the phone"] = TOXIC
    page = open_page(address, viewport=PHONE, color_scheme=scheme, has_touch=True)
    ask(page, "On the phone")
    ended(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    first, second = (card(page, name).bounding_box() for name in ("base", "detoxified"))
    assert second["y"] >= first["y"] + first["height"]
    accessible(page)
    card(page, "base").get_by_role("button", name="show the veiled text").tap()
    wait_for_text(page, "base", "idiot")
    page.get_by_text("Settings", exact=True).tap()
    page.get_by_label("veil from toxicity").wait_for()
    accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture(page, f"phone-{scheme}")


def test_the_page_follows_the_system_and_the_button_turns_it(open_page: Open, address: str, base: ScriptedModel,
                                                             accessible: Check, picture: Picture) -> None:
    base.said["At night"] = TOXIC
    page = open_page(address, color_scheme="dark")
    ask(page, "At night")
    ended(page)
    card(page, "base").get_by_role("button", name="show the veiled text").click()
    wait_for_text(page, "base", "idiot")
    page.get_by_text("Settings", exact=True).click()
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    accessible(page)
    picture(page, "dark")
    page.get_by_role("button", name="light or dark").click()
    page.wait_for_function("document.body.classList.contains('body--light')")
    assert page.evaluate(background) != dark
    accessible(page)


def test_a_slow_model_does_not_hold_up_the_other(open_page: Open, address: str, base: ScriptedModel,
                                                 other: ScriptedModel, picture: Picture) -> None:
    base.said["Slowly"] = ["", " at last"]
    base.gate.clear()
    page = open_page(address)
    ask(page, "Slowly")
    ended(page, "detoxified")
    assert card(page, "base").get_by_role("status").inner_text() == "waiting for the first token"
    page.wait_for_function("document.querySelector('.clock').textContent >= '1 s'")
    picture(page, "waiting")
    base.gate.set()
    ended(page)


@pytest.mark.parametrize(("pieces", "kept"), [([FAILS], ""), ([" a good", " start", BREAKS], " a good start")])
def test_a_model_that_fails_says_why_and_the_other_goes_on(
        open_page: Open, address: str, base: ScriptedModel, accessible: Check, picture: Picture, pieces: list[str],
        kept: str) -> None:
    base.said["Now"] = pieces
    page = open_page(address)
    ask(page, "Now")
    ended(page, "detoxified")
    card(page, "base").get_by_role("alert").wait_for()
    assert card(page, "base").get_by_role("status").inner_text() == "failed"
    assert len(card(page, "base").get_by_role("alert").inner_text().split()) > 5, "what happened, and what helps"
    assert card(page, "base").locator(".text").inner_text() == kept
    assert page.get_by_role("button", name="Ask both").is_enabled()
    accessible(page)
    picture(page, "failed" if not kept else "broken")


@pytest.mark.parametrize("evil", [
    "<img src=x onerror='window.taken=1'>", "</script><script>window.taken=1</script>",
    "{{constructor.constructor('window.taken=1')()}}", "`${window.taken=1}`", "<b>bold</b> &amp; <mark>no</mark>"])
def test_what_a_model_says_is_text_and_never_html(open_page: Open, address: str, base: ScriptedModel,
                                                  evil: str) -> None:
    base.said[evil] = ["so: ", evil]
    page = open_page(address)
    ask(page, evil)
    ended(page)
    veiled = card(page, "base").get_by_role("button", name="show the veiled text")
    if veiled.count():
        veiled.click()
    card(page, "base").locator(".text:not(.veiled)").wait_for()
    assert card(page, "base").locator(".text").inner_text() == f"so: {evil}"
    page.reload()
    page.locator(".history button").first.wait_for()
    assert page.evaluate("window.taken") is None
    assert page.locator("main b, main img").count() == 0


def test_settings_reach_both_models_alike(open_page: Open, address: str, base: ScriptedModel,
                                          other: ScriptedModel) -> None:
    page = open_page(address)
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("new tokens").fill("7")
    page.get_by_role("switch", name="sample").click()
    page.get_by_label("temperature").fill("0.5")
    page.get_by_label("seed").fill("11")
    ask(page, "With settings")
    ended(page)
    for model in (base, other):
        assert model.asked[-1]["prompt"] == "With settings"
        parameters = model.asked[-1]["parameters"]
        assert parameters["max_new_tokens"] == 7
        assert parameters["temperature"] == 0.5
        assert parameters["seed"] == 11
    asked = len(base.asked)
    page.get_by_label("temperature").fill("")
    ask(page, "With a wrong setting")
    page.get_by_role("alert").filter(has_text="temperature: give a number").wait_for()
    assert len(base.asked) == asked


def test_the_history_comes_back_survives_a_reload_and_can_be_saved_and_cleared(
        open_page: Open, address: str, base: ScriptedModel, accessible: Check, picture: Picture,
        tmp_path: Path) -> None:
    base.said["First"] = [" one", " two"]
    toxic_prompt = "You stupid idiot, you damn fool"
    page = open_page(address)
    for prompt in ("First", toxic_prompt):
        ask(page, prompt)
        page.locator(".history button").nth(0 if prompt == "First" else 1).wait_for()
    page.reload()
    entries = page.locator(".history button")
    entries.nth(1).wait_for()
    assert "prompt veiled: toxicity" in entries.nth(0).inner_text()
    assert "idiot" not in page.content()
    entries.nth(1).click()
    wait_for_text(page, "base", " one two")
    assert page.get_by_label("Prompt").input_value() == "First"
    accessible(page)
    picture(page, "history")
    with page.expect_download() as saved:
        page.get_by_role("button", name="save as JSON lines").click()
    saved.value.save_as(tmp_path / "saved.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "saved.jsonl").read_text("utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["First", toxic_prompt]
    assert rows[0]["answers"]["base"]["text"] == " one two"
    assert 0 <= rows[0]["answers"]["base"]["scores"]["bilstm"]["insult"] <= 1
    page.get_by_role("button", name="clear").click()
    page.get_by_text("Nothing has been asked yet.").wait_for()


def test_another_visitor_sees_nothing_of_the_history(open_page: Open, address: str, base: ScriptedModel) -> None:
    page = open_page(address)
    ask(page, "Between you and me")
    ended(page)
    stranger = open_page(address)
    stranger.get_by_text("Nothing has been asked yet.").wait_for()
    assert "Between you and me" not in stranger.content()


def test_tokens_go_to_their_own_model_and_never_to_the_page(
        open_page: Open, address: str, base: ScriptedModel, other: ScriptedModel) -> None:
    received: list[str] = []
    page = open_page(address)
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: received.append(str(frame))))
    page.on("response", lambda answer: received.append(answer.text() if "text" in answer.headers.get(
        "content-type", "") else ""))
    page.reload()
    ask(page, "Who goes there")
    ended(page)
    assert base.asked[-1]["authorization"] == f"Bearer {TOKENS['LLM_DETOX_BASE_TOKEN']}"
    assert other.asked[-1]["authorization"] == f"Bearer {TOKENS['LLM_DETOX_TOKEN']}"
    assert any("a fine day" in frame for frame in received)
    assert not any(token in text for token in TOKENS.values() for text in [*received, page.content()])
