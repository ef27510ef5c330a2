"""What several modules of tests share: the precision of large data, a real browser, real object stores."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.servers import KEYS, SERVERS, Buckets, object_store

_FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync")
_OFFLINE = ("disable-background-networking", "disable-component-update")


@pytest.fixture(scope="class")  # of a function where there is none; hypothesis wants none of a function's own
def as_of_large_data() -> Iterator[None]:
    """Float32 is multiplied as such, however few entries there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.kernels.blocks._FEW", 0)
        yield


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium without a window and with a log of its console; where there is none, the test is skipped."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    chromium, driver = next(filter(None, found), None), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, *_OFFLINE, f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driven = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield driven
    finally:
        driven.quit()


@pytest.fixture
def picture(browser: Any) -> Callable[[str], None]:
    """Keep what the browser shows as NAME.png in the folder SCREENSHOTS, if that variable is set: for people."""

    def keep(name: str) -> None:
        if kept := os.environ.get("SCREENSHOTS"):
            browser.save_screenshot(str(Path(kept) / f"{name}.png"))

    return keep


@pytest.fixture(scope="session")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The address of each server, which is started when it is first asked for."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(object_store(SERVERS[name], tmp_path_factory.mktemp(name))))


@pytest.fixture
def bucket(addresses: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Buckets:
    """Where to put the next model of a server, which the environment names from now on."""

    def place(name: str) -> str:
        for key, value in {**KEYS, "AWS_ENDPOINT_URL": addresses(name)}.items():
            monkeypatch.setenv(key, value)
        return f"s3://models/{uuid4().hex}"

    return place


@pytest.fixture(params=SERVERS)
def s3(request: pytest.FixtureRequest, bucket: Buckets) -> str:
    """A place in each server."""
    return bucket(request.param)
