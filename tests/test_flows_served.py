"""Flows as they run at night: a Prefect server, deployments on schedules, data that arrive, a process that dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from pipeline import PCA, load
from pipeline.errors import FederationError
from pipeline.intake import ingest
from pipeline.jobs.federation import load_site, serve_site
from pipeline.store import history
from pipeline.store.growing import batches_of
from tests.test_sites import configured

pytestmark = pytest.mark.skipif(find_spec("prefect") is None, reason="Prefect is not installed (extra flows)")

PATIENCE = 600.0  # seconds, on a machine that has other work
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((400, 8)) * np.r_[9.0, 5.0, np.ones(6)] + 3
LONG = RNG.standard_normal((30_000, 400)) * np.arange(1, 401) ** -0.1  # hardly a gap: 27 passes

SETTINGS: dict[str, dict[str, Any]] = {
    "ingest": {"source": "incoming", "store": "data.zarr"},
    "fit": {"source": {"path": "data.zarr"}, "model": {"n_components": 2}, "output": {"model": "model.zarr"}},
    "update": {"model": "model.zarr", "source": "data.zarr"},
    "score": {"model": "model.zarr", "source": "data.zarr", "scores": "scores", "normal": "data.zarr", "most": 0.5},
    "drift": {"model": "model.zarr", "max_angle": 1e-9},
    "publish": {"model": "model.zarr", "tag": "good", "min_samples": 300},
    "federate": {"configuration": "federation/federation.yaml"},
}
FLOWS = {
    name: {"flow": name, "schedule": {"cron": "* * * * * */10"}, "parameters": settings}
    for name, settings in SETTINGS.items()
}
FLOWS["long"] = {  # has no schedule: it is killed on its way
    "flow": "fit",
    "parameters": {
        "source": {"path": "long.npy.zarr"},
        "model": {"n_components": 5, "solver": "randomized", "tol": 1e-5},
        "output": {"model": "long-model.zarr"},
    },
}


class Served:
    """A folder whose flows are served, and what the server says of them."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.page = folder, f"http://127.0.0.1:{port}"
        self.since: dict[str, datetime] = {}
        command = [sys.executable, "-m", "flows", "serve", "conf", "--port", str(port), "--home", "prefect"]
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        with open(folder / "serve.log", "wb") as log:
            environment = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)

    def stop(self) -> None:
        """As who supervises a service does (Ctrl-C is not heard where the suite runs in the background)."""
        self.process.terminate()
        try:
            self.process.wait(120)
        finally:
            self.process.kill()

    def ask(self, path: str, **question: Any) -> Any:
        data = json.dumps(question).encode()
        request = urllib.request.Request(f"{self.page}/api/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def start(self, flow: str) -> str:
        (found,) = self.until(lambda: self.ask("deployments/filter", deployments={"name": {"any_": [flow]}}))
        return str(self.until(lambda: self.ask(f"deployments/{found['id']}/create_flow_run"))["id"])

    def run(self, id: str) -> dict[str, Any]:
        return dict(self.until(lambda: self.ask("flow_runs/filter", flow_runs={"id": {"any_": [id]}}))[0])

    def completed(self, flow: str) -> list[dict[str, Any]]:
        """The runs of a deployment that its schedule has begun since it was switched on, and that ended well.

        A run from before that broke off under load, is scheduled again and may end at any time.
        """
        asked = {"state": {"type": {"any_": ["COMPLETED"]}}, "start_time": {"after_": self.since[flow].isoformat()}}
        runs = self.ask("flow_runs/filter", deployments={"name": {"any_": [flow]}}, flow_runs=asked)
        return [run for run in runs if run["auto_scheduled"]]

    def switch(self, flow: str, on: bool) -> None:
        """Let its schedule go on or not, as the switch on the page does."""
        (found,) = self.until(lambda: self.ask("deployments/filter", deployments={"name": {"any_": [flow]}}))
        act, self.since[flow] = "resume" if on else "pause", datetime.now(UTC)
        self.until(lambda: self.ask(f"deployments/{found['id']}/{act}_deployment") or True)

    def goes_well(self, flow: str) -> None:
        """Wait until a run that its schedule has begun has come to a good end."""
        self.switch(flow, True)
        self.until(lambda: self.completed(flow))
        self.switch(flow, False)

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
    for name in ("incoming", "conf", "federation"):
        (folder / name).mkdir()
    for name, flow in FLOWS.items():
        given = {"retry_delay": 0.5, "alert": {"file": "alerts.jsonl"}, **flow}
        (folder / "conf" / f"{name}.yaml").write_text(yaml.safe_dump(given))
    np.save(folder / "incoming" / "0.npy", ROWS[:100])
    np.save(folder / "long.npy", LONG)
    ingest(folder / "long.npy.zarr", folder / "long.npy")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with sites_of(folder / "federation"):
        found = Served(folder, port)
        try:
            found.until(lambda: len(found.ask("deployments/filter")) == len(FLOWS))
            yield found
        finally:
            found.stop()


@contextmanager
def sites_of(folder: Path) -> Iterator[None]:
    """The sites of a federation, which answer whoever asks as often as one asks."""
    over = threading.Event()

    def answer(path: Path) -> None:
        while not over.is_set():
            with suppress(FederationError):  # nobody asks just now
                serve_site(load_site(str(path)), lambda told: None)

    conf, sites = configured(folder)
    threads = [threading.Thread(target=answer, args=(path,), daemon=True) for path in sites.values()]
    for path in (conf, *sites.values()):
        given = yaml.safe_load(path.read_text())
        given["output"]["overwrite"] = True
        path.write_text(yaml.safe_dump(given if path == conf else {**given, "patience": 5}))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_night(served: Served, request: pytest.FixtureRequest) -> None:
    """All flows on schedules: data arrive between runs, some twice; a fit is killed; the page shows it all."""
    folder, data, model = served.folder, served.folder / "data.zarr", served.folder / "model.zarr"
    for flow in SETTINGS:  # only those that have something to do: a process of each every ten seconds is much
        served.switch(flow, flow in ("ingest", "fit"))
    long = served.start("long")
    victim = served.until(lambda: _process_of(served, long))
    served.until((folder / "long-model.zarr.checkpoint" / "zarr.json").exists)
    victim.kill()

    served.goes_well("fit")
    served.switch("update", True)
    served.arrive("1", ROWS[100:250])
    served.until(lambda: len(history(model).versions) == 2)
    served.goes_well("score")
    served.arrive("1-again", ROWS[100:250])
    served.arrive("2", ROWS[250:])
    served.until(lambda: len(history(model).versions) == 3)
    for flow in ("update", "ingest", "drift", "publish", "federate"):
        served.goes_well(flow)
    served.switch("score", True)
    served.until(lambda: _stretches(folder / "scores")[-1][1] == 400)
    served.switch("score", False)
    done = served.until(lambda: (r := served.run(long))["state_type"] == "COMPLETED" and r)

    assert [(b.start, b.stop) for b in batches_of(data)] == [(0, 100), (100, 250), (250, 400)]
    assert [v.kind for v in history(model).versions] == ["fit", "update", "update"]
    assert history(model).tags["good"] == history(model).versions[2].id
    S = load(model)
    assert S.n_samples == 400
    np.testing.assert_allclose(S.mean, ROWS.mean(axis=0), rtol=1e-9)
    stretches = _stretches(folder / "scores")
    assert [0, *[b for _, b in stretches]] == [*[a for a, _ in stretches], 400]  # each row once
    assert len(history(folder / "federation" / "model.zarr").versions) == 1

    assert done["run_count"] == 2
    found, whole = load(folder / "long-model.zarr"), PCA(5, solver="randomized", tol=1e-5).fit(LONG).subspace_
    assert found.distance(whole).max() < 1e-6
    assert len(history(folder / "long-model.zarr").versions) == 1
    assert not (folder / "long-model.zarr.checkpoint").exists()

    *earlier, alert = [json.loads(line) for line in (folder / "alerts.jsonl").read_text().splitlines()]
    assert (alert["flow"], alert["facts"]["version"], alert["facts"]["against"]) == ("drift", 3, 2)
    assert all(a["facts"]["version"] == 2 for a in earlier)  # of a run that had begun too early
    served.until(lambda: "drift-alert" in {a["key"] for a in served.ask("artifacts/filter")})
    _look(served, request.getfixturevalue("browser"), request.getfixturevalue("picture"))


def _stretches(scores: Path) -> list[tuple[int, int]]:
    """Which rows were scored, run by run."""
    found = [p.stem.split("-")[1:] for p in scores.glob("rows-*.json")]
    return sorted((int(a), int(b)) for a, b in found) or [(0, 0)]


def _process_of(served: Served, run: str) -> psutil.Process | None:
    """The process of a run, once there is one."""
    for child in psutil.Process(served.process.pid).children():
        with suppress(psutil.Error):
            if child.environ().get("PREFECT__FLOW_RUN_ID", "").replace("-", "") == run.replace("-", ""):
                return child
    return None


def _look(served: Served, browser: Any, picture: Callable[[str], None]) -> None:
    """The page in a real browser, where there is one."""
    browser.set_window_size(1300, 1000)
    for place, words in (("deployments", FLOWS), ("runs", ("Completed", "update")), ("artifacts", ("drift-alert",))):
        browser.get(f"{served.page}/{place}")
        served.until(lambda: all(w in browser.find_element("tag name", "body").text for w in words))  # noqa: B023
        picture(f"prefect-{place}")
