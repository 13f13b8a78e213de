"""A headless Chromium that tells of every console message and every request, None where none is installed."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE = 60
"""Seconds until something that does not happen is a failure; processes may share the cores."""
FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1440,900",
)  # fmt: skip


class Browser:
    """A page that is open, and what happened in it."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, path: Path) -> None:
        """Load a file and wait until its script has done all that it does by itself."""
        self.driver.get("about:blank")
        self.requests()  # of the browser's own first page
        self.driver.get(path.resolve().as_uri())
        self.until("return document.documentElement.dataset.ready === 'true'")

    def run(self, script: str, *arguments: Any) -> Any:
        """What JavaScript gives."""
        return self.driver.execute_script(script, *arguments)

    def resize(self, width: int) -> None:
        """Another width of the window; a narrow one is a phone's."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        time.sleep(0.5)

    def until(self, script: str, *arguments: Any) -> None:
        """Wait until JavaScript gives something true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script, *arguments):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def set(self, id: str, value: str) -> None:
        """Choose or type a value, as a user does, and wait for what follows."""
        self.run(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, { bubbles: true }));",
            id,
            value,
        )
        time.sleep(0.3)

    def console(self) -> list[str]:
        """Messages since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """One that is closed when the block ends."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
