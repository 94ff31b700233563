"""A headless Chromium that opens pages from the disk and notes what they ask for."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

# the first that there is; machines of continuous integration have Chrome, whose driver is of the same version
BROWSERS = ("chromium", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",  # WebGL without a GPU
    "--force-device-scale-factor=1",
)
# resolves once the page shows all
START = """
const done = arguments[0];
window.explorer.then((app) => { window.app = app; done(null); }, (error) => done(String(error.stack)));
"""


def missing() -> str | None:
    """What there is not of all that a browser needs, or None."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed (pip install 'scvi-lfm[browser]')"
    for program, found in (("chromium", _program()), ("chromedriver", shutil.which("chromedriver"))):
        if found is None:
            return f"there is no {program} (apt-get install chromium chromium-driver)"
    return None


def _program() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def browser(folder: Path, *, size: tuple[int, int] = (1280, 800), more: tuple[str, ...] = ()) -> Iterator[Chrome]:
    """A browser with a new profile in a folder."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(_program())
    for option in (*OPTIONS, *more, f"--user-data-dir={folder / 'profile'}", "--window-size={},{}".format(*size)):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(120)
        prefer(driver, "light")
        yield driver
    finally:
        driver.quit()


def prefer(driver: Chrome, theme: str) -> None:
    """What the system is said to be set to."""
    feature = {"name": "prefers-color-scheme", "value": theme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def show(driver: Chrome, page: Path) -> None:
    """Open a page, and wait until it shows all; raise with its error where it does not."""
    driver.get_log("performance")
    driver.get(page.as_uri())
    if error := driver.execute_async_script(START):
        raise RuntimeError(error)


def requests(driver: Chrome) -> list[str]:
    """Addresses that were asked for since a page was opened."""
    events: list[dict[str, Any]] = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
