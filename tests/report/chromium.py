"""A page in Chromium, if it is installed: what its scripts print, its layout, its accessibility."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
WIDTHS = (390, 1280)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium: apt-get install chromium"
)


def check_page(browser: Browser, file: Path) -> None:
    """Require a page without problems at each width and in each colour scheme."""
    for width in WIDTHS:
        for scheme in SCHEMES:
            found = _problems(browser, file, width, scheme)
            assert not found, (file, width, scheme, found)


def _problems(
    browser: Browser, file: Path, width: int, scheme: Literal["light", "dark"]
) -> list[Any]:
    """Return what is wrong with a page: errors, a horizontal scroll, pictures, accessibility."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    found: list[Any] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda message: found.append(message.text))
    # Without a listener a dialog is dismissed by itself.
    page.add_init_script("window.alert = (text) => console.error(`executed: ${text}`)")
    page.goto(file.as_uri())
    found += [f"{count} pictures do not load"] if (count := _broken(page)) else []
    scroll = page.evaluate("document.documentElement.scrollWidth")
    found += [f"it is {scroll} px wide"] if scroll > width else []
    page.evaluate(AXE)
    for violation in page.evaluate("axe.run()")["violations"]:
        if violation["impact"] in {"serious", "critical"}:
            found.append((violation["id"], [node["html"] for node in violation["nodes"][:3]]))
    context.close()
    return found


def _broken(page: Page) -> int:
    """Load all pictures, those out of sight too, and return how many cannot be shown."""
    count: int = page.evaluate(
        """async () => {
          const images = [...document.images];
          for (const image of images) image.loading = "eager";
          const loaded = images.map((image) => image.decode().then(() => 0, () => 1));
          return (await Promise.all(loaded)).reduce((sum, each) => sum + each, 0);
        }"""
    )
    return count
