"""Jobs on a cluster that outlives whoever submitted them: real processes, TLS with real certificates, real kills."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from distributed import Client, LocalCluster, Security

from pipeline import PCA, load
from pipeline.cli import main
from pipeline.crew import workers_of
from pipeline.jobs import doctor, tasks
from pipeline.jobs.clusters import address
from pipeline.jobs.record import ENDED, Record
from pipeline.jobs.run import run_job
from pipeline.jobs.spec import parse_job
from pipeline.jobs.submit import jobs_on
from pipeline.jobs.tasks import work
from pipeline.store import history

SHAPE = (4_000, 30)


def make_authority(folder: Path) -> dict[str, str]:
    """An authority and a certificate that it signed, as files."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in ("authority", "127.0.0.1")]
    today = datetime.datetime.now(datetime.UTC)
    folder.mkdir(exist_ok=True)
    for who, (key, name) in enumerate(zip(keys, names, strict=True)):
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - datetime.timedelta(days=1))
            .not_valid_after(today + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=who == 0, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .sign(keys[0], hashes.SHA256())
        )
        (folder / ("ca.pem", "cert.pem")[who]).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return {name: str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def client(tls: dict[str, str]) -> Iterator[Client]:
    roles = {f"tls_{role}_{kind}": tls[kind] for role in ("scheduler", "worker", "client") for kind in ("cert", "key")}
    security = Security(tls_ca_file=tls["ca"], require_encryption=True, **roles)
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            protocol="tls",
            security=security,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(address, "_PATIENCE", "2s")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(SHAPE) * np.geomspace(10, 0.1, SHAPE[1]) + 5
    zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(100, 30))
    return x


@pytest.fixture
def job(tmp_path: Path, client: Client, tls: dict[str, str], data: np.ndarray) -> Callable[..., str]:
    """A job file, with what a test wants to be different; relative paths, as people write them."""

    def write(**sections: Any) -> str:
        settings = {
            "name": "night",
            "source": {"path": "x.zarr"},
            "model": {"n_components": 4, "solver": "krylov", "tol": 1e-9},
            "output": {"model": "out/m.zarr", "scores": "out/s.zarr"},
            "cluster": {"address": client.scheduler.address, "tls": tls},
        }
        for name, section in sections.items():
            settings[name] = {**settings[name], **section}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings))
        return "job.yaml"

    return write


@pytest.fixture
def slow(client: Client) -> Iterator[Callable[[float], None]]:
    """Blocks take their time, on the workers that are there now; how much can be changed."""

    def slower(seconds: float) -> None:
        import importlib

        from pipeline import fold, walk

        real = importlib.import_module(fold.__name__).ready
        walk.ready = lambda *args: (time.sleep(seconds), real(*args))[1]

    client.run(slower, 0.3)
    yield lambda seconds: client.run(slower, seconds)
    client.run(slower, 0.0)


def pipeline(*args: object) -> Result:
    return CliRunner().invoke(main, ["--quiet", *map(str, args)], prog_name="pipeline")


def done(*args: object) -> str:
    result = pipeline(*args)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def refused(*args: object, code: int = 2) -> str:
    result = pipeline(*args)
    assert result.exit_code == code, (result.output, result.exception)
    assert (result.stdout, result.stderr.count("\n")) == ("", 1), result.output
    return result.stderr


def facts(id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done("logs", "--json", id))
    return found


def until(id: str, *states: str, lines: int = 0) -> dict[str, Any]:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        found = facts(id)
        if found["state"] in states and len(found["log"]) >= lines:
            return found
        assert found["state"] not in ENDED, found["error"]
        time.sleep(0.1)
    raise AssertionError(found)


def the_same(place: str, data: np.ndarray) -> None:
    exact = PCA(4, solver="gram").fit(data)
    found = load(place)
    assert exact.subspace_.distance(found).max() < 1e-6
    np.testing.assert_allclose(found.singular_values, exact.singular_values_, rtol=1e-9)


def test_a_job_goes_on_when_its_client_is_killed(
    job: Callable[..., str], client: Client, tls: dict[str, str], data: np.ndarray, slow: Any, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "submit", job()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as laptop:
        id = laptop.stdout.readline().strip()  # type: ignore[union-attr]
        laptop.send_signal(signal.SIGKILL)
    assert id.startswith("night-")
    assert until(id, "running", "done")["user"]
    ended = until(id, "done")
    the_same("out/m.zarr", data)
    assert load("out/m.zarr").provenance["job"] == id
    assert ended["result"]["scores"] == str(tmp_path / "out" / "s.zarr")
    assert ended["attempts"] == 1
    assert "pass 1" in done("logs", "night")
    assert "exists already" in refused("submit", job())
    assert "has ended already: done" in refused("cancel", id)
    # The cluster is asked with certificates; the store needs nobody.
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(yaml.safe_dump({"address": client.scheduler.address, "tls": tls}))
    rows = [json.loads(done("jobs", "--json", *where)) for where in ((), ("--store", "out/jobs.zarr"))]
    rows.append(json.loads(done("jobs", "--json", "--cluster", cluster)))
    assert [[row["id"] for row in table] for table in rows] == [[id]] * 3
    assert done("jobs").split()[:2] == [id, "done"]


def test_a_killed_worker_costs_an_attempt(job: Callable[..., str], client: Client, data: np.ndarray, slow: Any) -> None:
    id = done("submit", job(model={"checkpoint": "kept"})).strip()
    begun = until(id, "running", lines=2)
    where = begun["log"][0].split()[-1]
    victim = client.run(os.getpid, workers=[where])[where]
    os.kill(victim, signal.SIGKILL)
    assert until(id, "done")["attempts"] == 2
    the_same("out/m.zarr", data)
    assert len(history("out/m.zarr").versions) == 1
    assert not Path("kept").exists()
    client.wait_for_workers(2)
    assert victim not in client.run(os.getpid).values()


def test_a_cancelled_job_stops_and_can_go_on(
    job: Callable[..., str], data: np.ndarray, slow: Callable[[float], None]
) -> None:
    slow(1.5)
    id = done("submit", job(model={"checkpoint": "kept"})).strip()
    until(id, "running", lines=2)
    began = time.monotonic()
    assert done("cancel", id[:-2]).strip() == id
    assert time.monotonic() - began < 5
    assert (facts(id)["state"], facts(id)["error"]) == ("cancelled", None)
    assert sorted(p.name for p in Path("out").iterdir()) == ["jobs.zarr"]
    assert Path("kept").exists()
    slow(0.0)
    again = done("submit", job(model={"checkpoint": "kept"})).strip()
    until(again, "done")
    the_same("out/m.zarr", data)


def test_what_a_cancelled_job_begins_later_is_called_off(client: Client) -> None:
    """One that is at work without the cluster when it is cancelled: its calls to the scheduler are not lost, either."""

    class Late(threading.Thread):
        error, workers, log = None, 0, SimpleNamespace(keep=lambda: None)

        def __init__(self, client: Client) -> None:
            super().__init__(daemon=True)
            self.client = client

        def run(self) -> None:
            time.sleep(3 * tasks.LOOK)
            self.workers = len(workers_of(self.client))
            try:
                self.client.submit(time.sleep, 60, pure=False).result()
            except CancelledError as error:
                self.error = error

    record = SimpleNamespace(get=lambda name: "somebody", put=lambda *_: None, attempts=lambda: [1])
    with Client(client.scheduler.address, security=client.security, set_as_default=False) as its_own:
        job, began = Late(its_own), time.monotonic()
        job.start()
        assert tasks._watch(job, record, 1) == "cancelled"
        assert time.monotonic() - began < 10
    assert job.workers == 2
    assert isinstance(job.error, CancelledError)
    tasks._call_off(its_own)  # it is closed, as one is that has lost its scheduler


def test_what_fails_is_told_in_the_store(job: Callable[..., str], data: np.ndarray) -> None:
    zarr.open_array("x.zarr")[3900, 7] = np.nan
    ended = until(done("submit", job()).strip(), "failed")
    assert "row 3900, feature 7" in ended["error"]["sentence"]
    assert "Traceback" in ended["error"]["traceback"]
    assert "holds NaN at row 3900" in done("logs", ended["id"])
    assert "holds NaN at row 3900" in done("jobs")
    assert not Path("out/m.zarr").exists()


def test_a_job_without_workers_waits_and_can_be_cancelled(job: Callable[..., str], data: np.ndarray) -> None:
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        first, second = (
            done("submit", job(output={"model": f"out/{n}.zarr", "scores": None}), "--scheduler", address).strip()
            for n in (1, 2)
        )
        assert facts(first)["state"] == "queued"
        said = refused("submit", job(output={"model": "out/1.zarr", "scores": None}), "--scheduler", address)
        assert f"the job {first}, which is queued, writes to {os.path.abspath('out/1.zarr')}" in said
        done("cancel", first)
        assert facts(first)["state"] == "cancelled"
        rows = json.loads(done("jobs", "--json", "--scheduler", address))
        assert [row["id"] for row in rows] == [second]
    done("cancel", second)  # the scheduler is gone, and the task with it
    assert facts(second)["state"] == "cancelled"


def test_what_is_no_longer_wanted_does_nothing(
    job: Callable[..., str], client: Client, data: np.ndarray, slow: Any
) -> None:
    record = Record(os.path.abspath("out/jobs.zarr"), done("submit", job()).strip())
    until(record.id, "running")
    record.start({})  # Dask has begun it elsewhere, as its worker seemed lost
    deadline = time.monotonic() + 30
    while jobs_on(client)[record.id][1] != "finished" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert client.get_dataset(f"pipeline-job-{record.id}")["job"].result() == "elsewhere"
    assert record.get("ended") is None
    assert not Path("out/m.zarr").exists()
    record.put("alive", "2026-01-01T00:00:00+00:00")
    assert record.state == "lost"
    assert "lost since 2026" in done("logs", record.id)
    record.start({})  # the third: a fourth is not made
    for state in ("failed", "failed"):  # and what has ended is not begun again
        assert client.submit(work, record.store, record.id, pure=False).result() == state
        assert len(record.attempts()) == 4
    assert "after 3 workers were lost" in record.facts()["error"]["sentence"]


def test_what_was_published_is_not_fitted_again(
    client: Client, data: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Relative paths, and the workers' current directory is another one.
    spec = parse_job({"source": {"path": "x.zarr"}, "model": {"n_components": 4}, "output": {"model": "m.zarr"}})
    first = run_job(spec, client=client, job="a").subspace
    # It was killed after that, before its scores.
    with_scores = spec.model_copy(update={"output": spec.output.model_copy(update={"scores": "s.zarr"})})
    monkeypatch.setattr(PCA, "fit", None)
    assert run_job(with_scores, client=client, job="a").subspace == first
    assert len(history("m.zarr").versions) == 1
    np.testing.assert_allclose(
        np.linalg.norm(zarr.open_group("s.zarr")["scores"][...], axis=0), first.singular_values, rtol=1e-9
    )


def test_what_is_wrong_is_one_sentence(job: Callable[..., str], tls: dict[str, str], tmp_path: Path) -> None:
    assert "nope.zarr" in refused("submit", job(source={"path": "nope.zarr"}))
    assert "is an array, not a group" in refused("submit", job(source={"variable": "sst"}))
    assert "local processes end" in refused("submit", job(), "--cluster", _local(tmp_path))
    assert "does not answer" in refused("submit", job(), "--scheduler", "tcp://127.0.0.1:9")
    other = make_authority(tmp_path / "other")
    assert "certificates" in refused("submit", job(cluster={"tls": other}))
    assert "does not exist" in refused("submit", job(cluster={"tls": {**tls, "ca": "no.pem"}}))
    assert "asks for certificates" in refused("jobs", "--scheduler", "tls://127.0.0.1:9")
    assert "no job zzz" in refused("logs", "zzz")
    assert "nowhere does not exist" in refused("jobs", "--store", "nowhere")
    assert "Not a directory" in refused("submit", job(output={"jobs": "job.yaml/x"}))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cluster.yaml", "job.yaml", "other", "x.zarr"]


def _local(folder: Path) -> Path:
    (folder / "cluster.yaml").write_text("workers: 1\n")
    return folder / "cluster.yaml"


def test_the_doctor(client: Client, tls: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"address": client.scheduler.address, "tls": tls}))
    (tmp_path / "file").touch()
    found = {f["what"]: f for f in json.loads(done("doctor", "--json", "--cluster", "c.yaml", "out", "new/model.zarr"))}
    assert {what: f["verdict"] for what, f in found.items() if what not in ("memory", "threads")} == dict.fromkeys(
        ("network", "workers", "versions", "decoder", "store"), "ok"
    )
    assert found["versions"]["words"].endswith("everywhere")
    assert "work on 2 workers and here" in found["store"]["words"]
    assert [p.name for p in tmp_path.iterdir() if "probe" in p.name] == []
    sick = pipeline("doctor", "--cluster", "c.yaml", "file")
    assert sick.exit_code == 1
    assert "it is a file, not a store" in sick.stdout
    assert pipeline("doctor", "out").exit_code == 0


def test_versions_that_differ_are_named() -> None:
    here = {"python": "3.11.7", "dask": "2026.8.0", "numpy": "2.4.6"}
    there = {**here, "python": "3.11.9", "dask": "2026.9.0", "numpy": "2.4.5"}
    found = list(doctor._versions({"here": {"versions": here}, "tcp://a:1": {"versions": there}}))
    assert [(f.verdict, f.words) for f in found] == [
        ("wrong", "dask 2026.8.0 here, 2026.9.0 on tcp://a:1"),
        ("warning", "numpy 2.4.6 here, 2.4.5 on tcp://a:1"),
    ]
