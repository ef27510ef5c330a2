"""Flows as they run at night: a Prefect server, deployments on schedules, data that arrive, a process that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from pipeline import PCA, load
from pipeline.intake import ingest
from pipeline.store import history
from pipeline.store.growing import batches_of

pytestmark = pytest.mark.skipif(find_spec("prefect") is None, reason="Prefect is not installed (extra flows)")

PATIENCE = 240.0  # seconds, on a machine that has other work
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((400, 8)) * np.r_[9.0, 5.0, np.ones(6)] + 3
LONG = RNG.standard_normal((30_000, 400)) * np.arange(1, 401) ** -0.1  # hardly a gap: 27 passes

FLOWS = {
    "ingest": {"schedule": {"cron": "* * * * * */5"}, "parameters": {"source": "incoming", "store": "data.zarr"}},
    "update": {"schedule": {"interval": 3600}, "parameters": {"model": "model.zarr", "source": "data.zarr"}},
    "drift": {"parameters": {"model": "model.zarr", "max_angle": 1e-9}, "alert": {"file": "alerts.jsonl"}},
    "fit": {
        "parameters": {
            "source": {"path": "long.npy.zarr"},
            "model": {"n_components": 5, "solver": "randomized", "tol": 1e-5},
            "output": {"model": "long-model.zarr"},
        }
    },
}


class Served:
    """A folder whose flows are served, and what the server says of them."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.page = folder, f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "flows", "serve", "conf", "--port", str(port), "--home", "prefect"]
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        with open(folder / "serve.log", "wb") as log:
            environment = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)

    def ask(self, path: str, **question: Any) -> Any:
        data = json.dumps(question).encode()
        request = urllib.request.Request(f"{self.page}/api/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def start(self, flow: str) -> str:
        (found,) = self.until(lambda: self.ask("deployments/filter", deployments={"name": {"any_": [flow]}}))
        return str(self.until(lambda: self.ask(f"deployments/{found['id']}/create_flow_run"))["id"])

    def run(self, id: str) -> dict[str, Any]:
        return dict(self.until(lambda: self.ask("flow_runs/filter", flow_runs={"id": {"any_": [id]}}))[0])

    def finish(self, flow: str) -> None:
        id = self.start(flow)
        self.until(lambda: self.run(id)["state_type"] == "COMPLETED")

    def until(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.told()
            try:
                if found := what():
                    return found
            except OSError:  # not up yet, or busy: its SQLite takes one writer at a time
                pass
            time.sleep(0.05)
        raise AssertionError(f"it did not come to pass\n{self.told()}")

    def told(self) -> str:
        return (self.folder / "serve.log").read_text()[-5000:]

    def arrive(self, name: str, rows: np.ndarray) -> None:
        np.save(self.folder / f".{name}", rows)
        (self.folder / f".{name}.npy").rename(self.folder / "incoming" / f"{name}.npy")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("flows")
    (folder / "incoming").mkdir()
    (folder / "conf").mkdir()
    for name, flow in FLOWS.items():
        text = yaml.safe_dump({"flow": name, "retry_delay": 0.5, **flow})
        (folder / "conf" / f"{name}.yaml").write_text(text)
    np.save(folder / "incoming" / "0.npy", ROWS[:100])
    np.save(folder / "long.npy", LONG)
    ingest(folder / "data.zarr", folder / "incoming")
    ingest(folder / "long.npy.zarr", folder / "long.npy")
    PCA(2).fit(str(folder / "data.zarr")).subspace_.save(folder / "model.zarr")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = Served(folder, port)
    try:
        found.until(lambda: len(found.ask("deployments/filter")) == len(FLOWS))
        yield found
    finally:
        found.process.send_signal(signal.SIGINT)
        found.process.wait(120)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_night(served: Served, tmp_path: Path) -> None:
    """Data arrive between runs, and one of them twice; a fit is killed; the page shows it all."""
    folder = served.folder
    long = served.start("fit")
    served.arrive("1", ROWS[100:250])
    victim = served.until(lambda: _process_of(served, long))
    served.until((folder / "long-model.zarr.checkpoint" / "zarr.json").exists)
    victim.kill()
    served.until(lambda: len(batches_of(folder / "data.zarr")) == 2)
    served.finish("update")
    served.arrive("1-again", ROWS[100:250])
    served.arrive("2", ROWS[250:])
    served.until(lambda: len(batches_of(folder / "data.zarr")) == 3)
    served.finish("update")
    served.finish("update")
    done = served.until(lambda: (r := served.run(long))["state_type"] == "COMPLETED" and r)

    assert [(b.start, b.stop) for b in batches_of(folder / "data.zarr")] == [(0, 100), (100, 250), (250, 400)]
    assert [v.kind for v in history(folder / "model.zarr").versions] == ["fit", "update", "update"]
    S = load(folder / "model.zarr")
    assert S.n_samples == 400
    np.testing.assert_allclose(S.mean, ROWS.mean(axis=0), rtol=1e-9)

    assert done["run_count"] == 2
    found, whole = load(folder / "long-model.zarr"), PCA(5, solver="randomized", tol=1e-5).fit(LONG).subspace_
    assert found.distance(whole).max() < 1e-6
    assert len(history(folder / "long-model.zarr").versions) == 1
    assert not (folder / "long-model.zarr.checkpoint").exists()

    served.finish("drift")
    (alert,) = [json.loads(line) for line in (folder / "alerts.jsonl").read_text().splitlines()]
    assert (alert["flow"], alert["facts"]["version"], alert["facts"]["against"]) == ("drift", 3, 2)
    assert [a["key"] for a in served.until(lambda: served.ask("artifacts/filter"))] == ["drift-alert"]
    _look(served, tmp_path)


def _process_of(served: Served, run: str) -> psutil.Process | None:
    """The process of a run, once there is one."""
    for child in psutil.Process(served.process.pid).children():
        with suppress(psutil.Error):
            if child.environ().get("PREFECT__FLOW_RUN_ID", "").replace("-", "") == run.replace("-", ""):
                return child
    return None


def _look(served: Served, folder: Path) -> None:
    """The page in a real browser, where there is one."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.set_window_size(1300, 1000)
        for place, words in (("deployments", FLOWS), ("runs", ("ingest", "update", "Completed"))):
            browser.get(f"{served.page}/{place}")
            served.until(lambda: all(w in browser.find_element("tag name", "body").text for w in words))  # noqa: B023
            if kept := os.environ.get("FLOWS_SCREENSHOTS"):
                browser.save_screenshot(f"{kept}/{place}.png")
    finally:
        browser.quit()
