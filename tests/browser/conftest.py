"""A real Chromium, pages that must not complain, and axe-core's checks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / ".venv" / "browser"
PHONE, DESK = {"width": 375, "height": 740}, {"width": 1280, "height": 900}
# Quasar's frames and hover shades lie over the texts, and axe does not look behind them for the background.
_AXE = """async () => {
  const style = document.createElement("style");
  style.textContent = [".q-btn::before", ".q-focus-helper", ".q-field__control::before", ".q-field__control::after"]
    .join() + "{ display: none !important }";
  document.head.append(style);
  const found = await axe.run(document, {resultTypes: ["violations", "incomplete"]});
  style.remove();
  return found;
}"""
# What axe cannot decide: the contrast of a symbol, and of a text in a picture.
_UNDECIDED = ("contains only non-text characters", "contains an image node")
_OF_THE_MACHINE = ("chromium", "chromium-browser", "google-chrome", "chrome")


def _chromium() -> tuple[str, dict[str, str]] | None:
    """The browser's program and what its environment needs: that of the tests' packages, else the machine's."""
    packaged = FOLDER / "chromium" / "chromium"
    if packaged.exists():
        libraries = [str(folder) for folder in sorted((packaged.parent / "libraries").rglob("lib")) if folder.is_dir()]
        system = os.environ.get("LD_LIBRARY_PATH", "")
        return str(packaged), {"LD_LIBRARY_PATH": ":".join(filter(None, [system, *libraries]))}
    found = next(filter(None, map(shutil.which, _OF_THE_MACHINE)), None)
    return (found, {}) if found else None


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: `make test-browser` installs it")
    found = _chromium()
    if found is None:
        pytest.skip("no Chromium: `make test-browser` installs one")
    program, environment = found
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(
            executable_path=program, env={**os.environ, **environment}, headless=True,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-zygote"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def axe() -> str:
    script = FOLDER / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        pytest.skip("no axe-core: `make test-browser` installs it")
    return script.read_text("utf-8")


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address as a visitor would; in the end no page may have complained, or asked anybody else."""
    contexts, complaints, asked = [], [], set()

    def opened(address: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": DESK, "reduced_motion": "reduce", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning")
                else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.add(request.url.split("/")[2] if "://" in request.url else ""))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints
    assert {host for host in asked if host and not host.startswith("127.0.0.1")} == set()


@pytest.fixture
def accessible(axe: str) -> Callable[[Any], None]:
    """Asserts that axe-core finds nothing against WCAG 2 A and AA, nor against its own good practice, and that it could
    judge the contrast of every text."""

    def check(page: Any) -> None:
        page.evaluate(axe)
        result = page.evaluate(_AXE)
        unjudged = [one for one in result["incomplete"] if one["id"] == "color-contrast"]
        found = [f"{one['id']}: {node['html'][:200]} {node['failureSummary']}"
                 for one in [*result["violations"], *unjudged] for node in one["nodes"]]
        assert not [one for one in found if not any(words in one for words in _UNDECIDED)]

    return check


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keeps a screenshot under LLM_DETOX_PICTURES, where that is set, for people to look at."""
    folder = os.environ.get("LLM_DETOX_PICTURES")

    def taken(page: Any, name: str, **options: Any) -> None:
        if folder:
            path = Path(folder)
            path.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=path / f"{request.node.name.partition('[')[0]}-{name}.png", full_page=True, **options)

    return taken
