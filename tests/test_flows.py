"""Flows without an orchestrator: their files, what each step does once and again, and where alerts go."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner

from flows.__main__ import main
from flows.alerts import raise_alert
from flows.spec import AlertSpec, load_flow, load_flows
from flows.steps import STEPS, Alert, Outcome
from pipeline import PCA, load
from pipeline.errors import ConflictError, InputError, StoreError
from pipeline.jobs.federation import load_site, serve_site
from pipeline.jobs.release import release
from pipeline.jobs.watch import outside, watch_drift
from pipeline.store import history, tag
from tests.test_sites import configured

RNG = np.random.default_rng(0)
SPREAD = np.r_[9.0, 5.0, np.ones(6)]
ROWS = RNG.standard_normal((900, 8)) * SPREAD + 3
OTHER = RNG.standard_normal((900, 8)) * SPREAD[::-1] + 3
SHIPPED = Path(__file__).parents[1] / "conf" / "flows"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stored(name: str, rows: np.ndarray) -> str:
    zarr.create_array(name, shape=rows.shape, chunks=(100, 8), dtype="f8", overwrite=True)[...] = rows
    return name


def run(flow: str, **parameters: Any) -> tuple[Outcome, list[Alert]]:
    """A step, through its file."""
    Path(f"{flow}.yaml").write_text(yaml.safe_dump({"flow": flow, "parameters": parameters}))
    alerts: list[Alert] = []
    return STEPS[flow].run(load_flow(f"{flow}.yaml").parameters, alerts.append), alerts


def test_the_flows_that_are_shipped() -> None:
    specs = load_flows(SHIPPED)
    assert sorted(s.flow for s in specs) == sorted(STEPS)
    done = CliRunner().invoke(main, ["check", str(SHIPPED)])
    assert done.exit_code == 0
    assert done.stdout.count("\n") == len(specs)


WRONG = {
    "flow: ingst\nparameters: {}": "line 1: flow is 'ingst'; expected one of ingest, fit",
    "parameters: {}": "flow is missing",
    "flow: ingest": "parameters is missing",
    "flow: ingest\nparameters: {store: s}": "parameters.source is missing; expected files, a pattern",
    "flow: ingest\nparameters:\n  source: a\n  stor: s": "line 4: unknown key 'stor' in parameters; did you mean 'st",
    "flow: ingest\nretires: 2\nparameters: {source: a, store: s}": "line 2: unknown key 'retires'; did you",
    "flow: ingest\nretries: -1\nparameters: {source: a, store: s}": "retries is -1; expected an int of at least 0",
    "flow: drift\nschedule: {}\nparameters: {model: m}": "give either cron or interval",
    "flow: drift\nschedule: {cron: '* * *'}\nparameters: {model: m}": "expected minute hour day",
    "flow: drift\nschedule: {interval: 0}\nparameters: {model: m}": "schedule.interval is 0; expected seconds",
    "flow: drift\nschedule: {every: 9}\nparameters: {model: m}": "unknown key 'every' in schedule",
    "flow: drift\nparameters: {model: m, max_angle: 100}": "max_angle is 100; expected degrees",
    "flow: drift\nalert: {webhook: 'ftp://x'}\nparameters: {model: m}": "expected a URL that begins with http",
    "flow: fit\nparameters: {source: {path: x}, output: {modle: m}}": "unknown key 'modle' in parameters.output",
    "flow: score\nparameters: 3": "parameters is 3; expected a section of keys",
    "- flow": "holds no keys",
    "": "is empty",
    "flow: [": "line",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_key_gets_one_clear_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "night.yaml"
    file.write_text(text)
    done = CliRunner().invoke(main, ["check", str(file)])
    assert done.exit_code == 2
    assert WRONG[text] in done.stderr
    assert str(file) in done.stderr
    assert done.stderr.count("\n") == 1


def test_wrong_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no flows"):
        load_flows(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_flows(tmp_path / "none")
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("name: same\nflow: drift\nparameters: {model: m}")
    with pytest.raises(InputError, match="another flow has the name 'same'"):
        load_flows(tmp_path)


def test_a_night_of_plain_functions(here: Path) -> None:
    """Each step changes something once, and nothing when it is run again."""
    (here / "in").mkdir()
    fit = {"source": {"path": "data"}, "model": {"n_components": 2}, "output": {"model": "m"}}
    steps: list[tuple[str, dict[str, Any]]] = [
        ("ingest", {"source": "in", "store": "data", "chunk_rows": 100}),
        ("fit", fit),
        ("update", {"model": "m", "source": "data"}),
        ("publish", {"model": "m", "tag": "good", "min_samples": 10, "max_angle": 20.0}),
        ("score", {"model": "m", "source": "data", "scores": "s", "normal": stored("normal", ROWS[:300])}),
    ]
    np.save("in/0.npy", ROWS[:300])
    assert [run(flow, **given)[0].new for flow, given in steps] == [True, True, False, True, True]
    assert [run(flow, **given)[0].new for flow, given in steps] == [False] * 5
    np.save("in/1.npy", ROWS[300:])
    assert [run(flow, **given)[0].new for flow, given in steps if flow != "fit"] == [True, True, True, True]
    assert len(history("m").versions) == 2
    assert history("m").tags["good"] == history("m").head
    assert load("m").n_samples == 900
    assert run("fit", **fit)[0].new  # after an update, from all rows at once
    assert not run("fit", **fit)[0].new
    fit["model"] = {"n_components": 3}
    assert run("fit", **fit)[0].new
    array = zarr.open_array("data/data", mode="r+")
    array[5, 5] += 1
    assert run("fit", **fit)[0].new
    assert not Path("m.checkpoint").exists()


def test_drift_is_told(here: Path) -> None:
    for rows in (ROWS, OTHER):
        PCA(2).fit(stored("x", rows)).subspace_.save("m", overwrite=True)
    found, alerts = run("drift", model="m", max_angle=10, max_outside=0.5)
    assert (found.alert, [a.facts["version"] for a in alerts]) == (True, [2])
    assert found.facts["angle"] == pytest.approx(np.degrees(load("m", 1).distance(load("m"))[0]))
    assert len(found.facts["reasons"]) == 2
    assert not run("drift", model="m", against=2, max_angle=10)[0].alert
    share = np.square((ROWS - ROWS.mean(0)) @ PCA(2).fit(OTHER).components_.T).sum()
    z = ROWS - load("m").mean
    share = 1 - np.square(z @ load("m").components.T).sum() / np.square(z).sum()
    assert watch_drift("m", source=stored("y", ROWS)).energy == pytest.approx(share)
    assert run("drift", model="m", against=2, source="y", max_energy=0.9)[1][0].text.startswith("ALERT")
    assert outside(load("m"), OTHER) < 0.1 < outside(load("m"), np.r_[OTHER, ROWS], newest=900)
    with pytest.raises(StoreError, match="no version 'none': it has 1, 2"):
        watch_drift("m", against="none")


def test_only_what_passes_its_checks_gets_the_tag(here: Path) -> None:
    PCA(2).fit(ROWS).subspace_.save("m")
    assert release("m", "good", min_samples=900, min_variance=0.8, max_bound=1).tagged == 1
    PCA(2).fit(OTHER).subspace_.save("m", overwrite=True)
    for checks, reason in (
        ({"min_samples": 1000}, "900 samples are fewer"),
        ({"min_variance": 0.99}, "less than 99 %"),
        ({"max_bound": 0.0}, "certified to"),
        ({"max_angle": 5.0}, "turned by"),
        ({"max_outside": 0.1}, "of its variance is new"),
    ):
        refused, alerts = run("publish", model="m", tag="good", **checks)
        assert (refused.alert, refused.new, len(alerts)) == (True, False, 1)
        assert reason in refused.text
        assert history("m").tags["good"] == history("m").versions[0].id
    assert release("m", "good").before == 1
    with pytest.raises(ConflictError, match="newer"):  # a run thought dead, which has checked the first version
        tag("m", "good", 1, forward=True)
    assert tag("m", "good", 1).number == 1


def test_the_same_federation_again_is_one_version(here: Path) -> None:
    conf, sites = configured(here)
    settings = yaml.safe_load(conf.read_text())
    settings["output"]["overwrite"] = True
    conf.write_text(yaml.safe_dump(settings))
    news = []
    for _ in range(2):
        serving = []
        for path in sites.values():
            site = yaml.safe_load(path.read_text())
            site["output"]["overwrite"] = True
            path.write_text(yaml.safe_dump(site))
            serving.append(threading.Thread(target=serve_site, args=(load_site(str(path)), lambda told: None)))
            serving[-1].start()
        news.append(run("federate", configuration=str(conf))[0].new)
        for thread in serving:
            thread.join(60)
    assert news == [True, False]
    assert len(history(settings["output"]["model"]).versions) == 1


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    taken: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", taken
    server.shutdown()
    server.server_close()


def test_alerts_are_told_once_and_leave_the_machine_only_when_told(
    tmp_path: Path, webhook: tuple[str, list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    url, taken = webhook
    alert = Alert("drift", "ALERT: turned", {"angle": 30.0, "reasons": ("turned",)})
    where = AlertSpec(file=str(tmp_path / "deep" / "alerts.jsonl"), webhook=url)
    assert raise_alert(alert, where)
    assert not raise_alert(alert, where)
    assert raise_alert(Alert("drift", "ALERT: turned", {"angle": 31.0}), where)
    lines = [json.loads(line) for line in Path(str(where.file)).read_text().splitlines()]
    assert [r["facts"]["angle"] for r in lines] == [r["facts"]["angle"] for r in taken] == [30.0, 31.0]
    assert [json.loads(r.message)["text"] for r in caplog.records] == ["ALERT: turned"] * 2
    assert raise_alert(alert, AlertSpec(webhook="http://127.0.0.1:9/"))  # nobody is there: it is in the log
    assert "does not take the alert" in caplog.records[-1].message


def test_the_command_runs_one_flow(here: Path) -> None:
    for rows in (ROWS, OTHER):
        PCA(2).fit(stored("x", rows)).subspace_.save("m", overwrite=True)
    given = {"flow": "drift", "alert": {"file": "alerts.jsonl"}, "parameters": {"model": "m", "max_angle": 10}}
    Path("drift.yaml").write_text(yaml.safe_dump(given))
    done = CliRunner().invoke(main, ["run", "drift.yaml"])
    assert done.exit_code == 3
    assert json.loads(done.stdout)["version"] == 2
    assert len(Path("alerts.jsonl").read_text().splitlines()) == 1
    wrong = CliRunner().invoke(main, ["run", "none.yaml"])
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
