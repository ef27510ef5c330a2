"""Sites that are somewhere else: workers, other clusters, and processes behind an exchange of signed messages."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner
from distributed import Client, LocalCluster, Security

from pipeline import DP, PCA, FederatedPCA, Site, load, open_matrix
from pipeline.cli import main
from pipeline.errors import FederationError, InputError, StoreError
from pipeline.federation.record import Record, pack
from pipeline.jobs.exchange import Exchange, SiteState, serve
from pipeline.jobs.federation import load_federation, load_site, serve_site
from pipeline.jobs.seal import digest, load_key, make_key, opened, sealed
from pipeline.store.messages import Messages

D, K = 30, 3
RNG = np.random.default_rng(0)
X = RNG.standard_normal((1200, D)) * np.geomspace(5, 0.5, D) + 20
PARTS = np.split(X[np.argsort(X[:, 0])], [300, 700])
NAMES = ("north", "south", "lake")


def sine(found: Any, rows: np.ndarray = X) -> float:
    return float(np.sin(getattr(found, "subspace_", found).distance(PCA(K).fit(rows).subspace_)[0]))


def stored(folder: Path, names: tuple[str, ...] = NAMES) -> list[str]:
    paths = [str(folder / f"{name}.zarr") for name in names]
    for path, rows in zip(paths, PARTS, strict=False):
        zarr.create_array(path, shape=rows.shape, chunks=(100, D), dtype="f8")[...] = rows
    return paths


class Watched:
    """An array that writes down which process reads it."""

    def __init__(self, path: str, log: str) -> None:
        self.path, self.log = path, log
        self.shape, self.dtype = zarr.open_array(path, mode="r").shape, np.dtype("f8")

    def __getitem__(self, where: Any) -> np.ndarray:
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}\n")
        return zarr.open_array(self.path, mode="r")[where]


def watched(path: str) -> tuple[Any, str]:
    matrix, log = open_matrix(path).cut_at(50), path + ".log"
    return replace(matrix, source=replace(matrix.source, array=Watched(path, log))), log


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def crossed(client: Client) -> int:
    """Bytes that the workers have sent to each other or to the client so far."""

    def sent(dask_worker: Any) -> int:
        return int(sum(t["total"] for t in dask_worker.transfer_outgoing_log))

    return sum(client.run(sent).values())


@pytest.mark.parametrize("aggregation", ["power", "merge"])
def test_no_row_leaves_its_workers(client: Client, tmp_path: Path, aggregation: str) -> None:
    pids = client.run(os.getpid)
    addresses = list(pids)
    opened_here = [watched(path) for path in stored(tmp_path)]
    places = [[addresses[0]], addresses[1:], [addresses[0]]]
    before = crossed(client)
    sites = [Site(m, n, workers=w) for (m, _), n, w in zip(opened_here, NAMES, places, strict=True)]
    found = FederatedPCA(K, aggregation, rounds=4 if aggregation == "power" else None, timeout=60).fit(sites)
    assert found.excluded_ == {}
    if aggregation == "power":
        assert sine(found) < 0.2
    for (_, log), workers in zip(opened_here, places, strict=True):
        readers = {int(pid) for pid in Path(log).read_text().split()}
        assert readers
        assert readers <= {pids[w] for w in workers}
    # What went over the wire between workers is less than the rows of any site, whatever the round.
    rows = min(p.nbytes for p in PARTS)
    assert crossed(client) - before < rows
    assert max(r["received"] for r in found.rounds_) < 3 * (8 * (K * D + D + 3 * K) + 500) < rows
    assert found.bytes_exchanged_ == sum(r["sent"] + r["received"] for r in found.rounds_)


def test_one_matrix_each_worker_a_site(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "x.zarr")
    zarr.create_array(path, shape=X.shape, chunks=(100, D), dtype="f8")[...] = X
    with client.as_current():
        found = FederatedPCA(K, "merge").fit(path)
        assert found.n_rounds_ == 1
        assert len(found.sites_) == 3
        assert found.rounds_[0]["received"] < 3 * (8 * (K * D + D + 3 * K) + 500)
        assert sine(FederatedPCA(D, "merge").fit(open_matrix(path)).subspace_.truncate(K)) < 1e-9
        assert sine(FederatedPCA(K).fit(X)) < 1e-6
    with dask.config.set(scheduler="synchronous"):
        assert FederatedPCA(K).fit(path).sites_ == ["here"]


def test_workers_by_resources_and_clusters_by_address(client: Client, tmp_path: Path) -> None:
    paths = stored(tmp_path)
    security = Security.temporary()
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        resources={"lake": 1},
        protocol="tls",
        security=security,
    ) as other:
        assert other.scheduler_address.startswith("tls://")
        lake = {"address": other.scheduler_address, "security": security, "resources": {"lake": 1}}
        sites = [
            Site(paths[0], "north", workers=[0]),
            Site(paths[1], "south", workers="1"),
            Site(paths[2], "lake", **lake),
        ]
        found = FederatedPCA(K, timeout=60).fit(sites)
        assert found.excluded_ == {}
        assert sine(found) < 1e-6
        sites[2].close()
    gone = [
        Site(paths[0], "north", workers=[0]),
        Site(paths[1], "south", workers="1"),
        Site(paths[2], "x", workers="no"),
        Site(str(tmp_path / "none.zarr"), "y", workers=[0]),
    ]
    found = FederatedPCA(K, timeout=30, quorum=2).fit(gone)
    assert "none of its workers" in found.excluded_["x"]
    assert "none.zarr does not exist" in found.excluded_["y"]


class Slow(Watched):
    """An array that takes its time, so that there is one to kill its reader in."""

    def __getitem__(self, where: Any) -> np.ndarray:
        time.sleep(0.3)
        return super().__getitem__(where)


@pytest.mark.slow
def test_a_site_whose_worker_is_killed_is_left_out(client: Client, tmp_path: Path) -> None:
    paths = stored(tmp_path)
    pids = client.run(os.getpid)
    sites = [Site(path, name, workers=w) for path, name, w in zip(paths, NAMES, pids, strict=True)]
    matrix = open_matrix(paths[2]).cut_at(50)
    array = Slow(paths[2], paths[2] + ".log")
    sites[2] = Site(replace(matrix, source=replace(matrix.source, array=array)), "lake", workers=list(pids)[2])
    killer = threading.Timer(0.7, os.kill, (list(pids.values())[2], signal.SIGKILL))
    killer.start()
    found = FederatedPCA(K, timeout=6).fit(sites)
    killer.join()
    assert set(found.excluded_) == {"lake"}
    assert sine(found, np.concatenate(PARTS[:2])) < 1e-6


def keys(folder: Path, *names: str) -> dict[str, str]:
    return {name: make_key(folder / f"{name}.pem") for name in names}


def test_keys(tmp_path: Path) -> None:
    public = keys(tmp_path, "a")["a"]
    assert (tmp_path / "a.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="exists"):
        make_key(tmp_path / "a.pem")
    (tmp_path / "b.pem").write_text("no key")
    for path, message in ((tmp_path / "b.pem", "no private key"), (tmp_path / "c.pem", "cannot be read")):
        with pytest.raises(InputError, match=message):
            load_key(path)
    record = Record("hello", 1, {"x": np.ones(2)}, {"n": 1})
    data = sealed(record, load_key(tmp_path / "a.pem"), sender="a", number=1)
    assert opened(data, public, sender="a", number=1).arrays["x"].tolist() == [1, 1]
    other = keys(tmp_path, "d")["d"]
    for wrong, key, envelope in (
        (data, other, {}),
        (data[:-1], public, {}),
        (b"", public, {}),
        (data, public, {"number": 2}),
        (data.replace(b"hello", b"hullo"), public, {}),
    ):
        with pytest.raises(FederationError, match="refused"):
            opened(wrong, key, **envelope)


class Served(threading.Thread):
    """A site that answers from a thread."""

    def __init__(self, name: str, rows: np.ndarray, store: str, folder: Path, coordinator: str, **options: Any) -> None:
        super().__init__(daemon=True)
        self.told: list[str] = []
        state = SiteState.load(folder / f"{name}.state", options.pop("privacy", None))
        args = (name, open_matrix(rows), store, load_key(folder / f"{name}.pem"), coordinator, state)
        self.serve = lambda: serve(*args, patience=20, told=self.told.append, **options)
        self.start()

    def run(self) -> None:
        with dask.config.set(scheduler="synchronous"):
            self.last = self.serve()


def test_an_exchange_refuses_whatever_is_not_the_reply(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Forged, replayed, foreign, oversized, wrong-round and pickled replies, until the right one comes."""
    public = keys(tmp_path, "coordinator", "north", "thief")
    exchange = Exchange(tmp_path / "x.zarr", load_key(tmp_path / "coordinator.pem"), {"north": public["north"]}, 4096)
    north, thief = (load_key(tmp_path / f"{n}.pem") for n in ("north", "thief"))
    box = Messages(tmp_path / "x.zarr")
    request, reply = Record("product", 1), Record("product", 1, {"product": np.ones((1, 2))}, {"n": 1.0})
    exchange.ask("north", request, 9.0)
    first = box.names("to/north")[0]
    wait = exchange.ask("north", request, 1.5)
    second = box.names("to/north")[1]
    asked, before = (box.get(f"to/north/{n}") for n in (second, first))
    good = {"sender": "north", "to": "coordinator", "number": int(second), "answers": digest(asked)}
    replayed = {**good, "number": int(first), "answers": digest(before)}
    bad = {
        "forged": sealed(reply, thief, **good),
        "replayed": sealed(reply, north, **replayed),
        "foreign": sealed(reply, north, **{**good, "sender": "south"}),
        "another question": sealed(reply, north, **{**good, "answers": "0"}),
        "oversized": sealed(Record("product", 1, {"product": np.ones((40, 40))}, {"n": 1.0}), north, **good),
        "unsigned": pack(reply) + bytes(64),
        "pickled": pickle.dumps(reply),
    }
    place = f"from/north/{second}"
    with caplog.at_level(logging.WARNING):
        for data in bad.values():
            box.put(place, data)
            assert isinstance(exchange._look(place, "north", good, ""), str)
    assert len(exchange.refused) == len(bad) == len(caplog.records)
    reasons = " ".join(reason for _, reason in exchange.refused)
    for part in ("not signed", "number is", "sender is", "answers is", "more than the 4096"):
        assert part in reasons
    with pytest.raises(TimeoutError):
        wait()
    wait = exchange.ask("north", request, 5.0)
    third = box.names("to/north")[2]
    box.put(f"from/north/{third}", pickle.dumps(reply))
    fine = {**good, "number": int(third), "answers": digest(box.get(f"to/north/{third}"))}
    timer = threading.Timer(0.3, box.put, (f"from/north/{third}", sealed(reply, north, **fine)))
    timer.start()
    assert wait().arrays["product"].tolist() == [[1, 1]]  # the coordinator went on
    assert zarr.open_group(tmp_path / "x.zarr", mode="r")[f"from/north/{third}"].dtype == np.uint8


def test_a_site_answers_its_coordinator_only(tmp_path: Path) -> None:
    public = keys(tmp_path, "coordinator", "north", "thief")
    store = str(tmp_path / "x.zarr")
    coordinator, thief = (load_key(tmp_path / f"{n}.pem") for n in ("coordinator", "thief"))
    site = Served("north", PARTS[0], store, tmp_path, public["coordinator"], largest=10_000)
    real, box = Exchange(store, coordinator, {"north": public["north"]}), Messages(store)
    facts = {"k": K, "center": True, "scale": None, "standardise": "global"}
    request = Record("moments", 1, {}, facts)
    assert real.ask("north", request, 10.0)().arrays["mean"].shape == (D,)
    number = int(box.names("to/north")[0])
    envelope = {"sender": "coordinator", "to": "north", "number": number + 1}
    for data in (
        sealed(request, thief, **envelope),
        sealed(request, coordinator, **{**envelope, "to": "south"}),
        box.get(f"to/north/{number:016d}"),
        pickle.dumps(request),
        b"\0" * 20_000,
    ):
        number += 1
        envelope["number"] = number + 1
        box.put(f"to/north/{number:016d}", data)
    with pytest.raises(FederationError, match="not answered"):  # a request of the coordinator that no site answers
        real.ask("north", Record("rows", 2, {}, facts), 10.0)()
    real.end(["north"], Record("end", 3, {}, {"reason": "test"}))
    site.join(10)
    assert site.last is not None
    refused = [line for line in site.told if line.startswith("to/")]
    assert len(refused) == 5, site.told
    assert len(box.names("from/north")) == 2
    again = SiteState.load(tmp_path / "north.state")  # what was answered is not answered again after a restart
    assert again.number == int(box.names("to/north")[-1])


def test_a_file_that_is_being_written_is_no_message(tmp_path: Path) -> None:
    box = Messages(tmp_path / "x.zarr")
    box.put("to/north/1", b"hello")
    (tmp_path / "x.zarr" / "to" / "north" / "zarr.0123.partial").touch()  # as LocalStore does for a moment
    assert box.names("to/north") == ["1"]


@pytest.mark.parametrize("secure", [False, True])
def test_sites_behind_an_exchange(tmp_path: Path, secure: bool) -> None:
    public = keys(tmp_path, "coordinator", *NAMES)
    store = f"memory://{tmp_path.name}" if secure else str(tmp_path / "x.zarr")  # an object store, or a folder
    exchange = Exchange(store, load_key(tmp_path / "coordinator.pem"), public)
    served = [Served(n, p, store, tmp_path, public["coordinator"]) for n, p in zip(NAMES[:2], PARTS[:2], strict=True)]
    sites = [*(Site(exchange=exchange, name=n) for n in NAMES[:2]), Site(PARTS[2], "lake")]
    found = FederatedPCA(K, secure=secure, timeout=20).fit(sites)
    assert found.excluded_ == {}
    assert sine(found) < 1e-6
    exchange.end(list(NAMES[:2]), Record("end", 0, {}, {"reason": "done"}))
    for site in served:
        site.join(10)


def test_a_budget_outlives_the_process_of_its_site(tmp_path: Path) -> None:
    privacy = DP(1.0, 1e-6, 20.0)
    state = SiteState.load(tmp_path / "s", privacy)
    state.ledger.spend(privacy)
    state.save()
    again = SiteState.load(tmp_path / "s")
    assert again.ledger.epsilon == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(FederationError, match="spent"):
        again.ledger.spend(DP(0.1, 1e-6, 20.0))
    (tmp_path / "s").write_text("{}")
    with pytest.raises(StoreError, match="what the site has spent"):
        SiteState.load(tmp_path / "s")


def configured(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Keys, rows and configurations of a coordinator and three sites, as the walk-through in docs/federation.md."""
    public, paths = keys(folder, "coordinator", *NAMES), stored(folder)
    exchange, conf = {"path": str(folder / "exchange.zarr")}, folder / "federation.yaml"
    settings = {
        "exchange": exchange,
        "key": str(folder / "coordinator.pem"),
        "sites": {name: {"key": public[name]} for name in NAMES},
        "model": {"n_components": K},
        "timeout": 60,
        "output": {"model": str(folder / "model.zarr")},
    }
    conf.write_text(yaml.safe_dump(settings))
    sites = {}
    for name, path in zip(NAMES, paths, strict=True):
        sites[name] = folder / f"{name}.yaml"
        own = {"name": name, "exchange": exchange, "key": str(folder / f"{name}.pem"), "source": {"path": path}}
        own |= {"coordinator": public["coordinator"], "output": {"model": str(folder / f"{name}-model.zarr")}}
        sites[name].write_text(yaml.safe_dump(own))
    return conf, sites


@pytest.mark.slow
def test_a_coordinator_and_three_sites_as_processes(tmp_path: Path) -> None:
    conf, sites = configured(tmp_path)
    command = [sys.executable, "-m", "pipeline.cli"]
    running = {
        name: subprocess.Popen(
            [*command, "site", "serve", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name, path in sites.items()
    }
    try:
        done = subprocess.run([*command, "federate", str(conf), "--json"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        told = {name: site.communicate(timeout=60) for name, site in running.items()}
    finally:
        for site in running.values():
            site.kill()
    facts = json.loads(done.stdout)
    assert facts["excluded"] == {}
    assert set(facts["sites"]) == set(NAMES)
    model = load(facts["model"])
    assert sine(model) < 1e-6
    for name, site in running.items():
        assert site.returncode == 0, told[name]
        own = load(told[name][0].strip())
        assert own.distance(model).max() < 1e-9
        assert "round 1: moments" in told[name][1]
    crossed = sum(p.stat().st_size for p in (tmp_path / "exchange.zarr" / "from").rglob("0"))
    assert 0 < crossed < facts["bytes_exchanged"] + 3 * 400 * len(facts["rounds"])
    assert crossed < sum(p.nbytes for p in PARTS) / 2


def test_configurations_name_what_is_wrong(tmp_path: Path) -> None:
    conf, sites = configured(tmp_path)
    assert load_federation(str(conf)).model.n_components == K
    assert load_site(str(sites["north"])).name == "north"
    root = Path(__file__).parents[1] / "conf"
    assert load_federation(str(root / "federation.yaml")).quorum == 2
    assert load_site(str(root / "site.yaml")).name == "north"
    text = conf.read_text()
    cases = [
        (text.replace("n_components", "n_component"), "did you mean 'n_components'"),
        (text.replace("timeout: 60", "timeout: soon"), "timeout is 'soon'"),
        (text + "quorum: 9\n", "quorum is 9"),
        (text.replace("  n_components: 3", "  n_components: 3\n  aggregation: mode"), "aggregation"),
        (text.replace("  n_components: 3", "  n_components: 3\n  options: {wish: 1}"), "has no option 'wish'"),
        (text.replace("    key: ", "    kex: ", 1), "did you mean 'key'"),
        (text.replace("  lake:\n    key: ", "  lake:\n    address: x\n    key: "), "give either key"),
        (text.replace("key: " + str(tmp_path / "coordinator.pem"), ""), "exchange and key"),
        ("", "is empty"),
    ]
    for wrong, message in cases:
        (tmp_path / "wrong.yaml").write_text(wrong)
        done = CliRunner().invoke(main, ["federate", str(tmp_path / "wrong.yaml")])
        assert done.exit_code == 2, done.output
        assert message in done.stderr
        assert "wrong.yaml" in done.stderr
    public = yaml.safe_load(text)["sites"]["lake"]["key"]
    unread = {
        text.replace(public, "abc"): "'abc' is no public key",
        text.replace("  lake:", "  ../lake:"): "part of a path",
        text.replace("exchange.zarr", "lake.zarr"): "something else than messages",
        text + f"checkpoint: {tmp_path / 'south.zarr'}\n": "something else than messages",
    }
    before = {p: p.read_bytes() for name in NAMES for p in (tmp_path / f"{name}.zarr").rglob("*") if p.is_file()}
    for wrong, message in unread.items():
        (tmp_path / "wrong.yaml").write_text(wrong)
        done = CliRunner().invoke(main, ["federate", str(tmp_path / "wrong.yaml")])
        assert (done.exit_code, message in done.stderr) == (2, True), done.output
    assert all(p.read_bytes() == data for p, data in before.items())  # what lay there is as it was
    own = sites["north"].read_text()
    for wrong, message in (
        (own + "state: /proc/none/s.json\n", "cannot be written"),
        (own.replace("name: north", "name: ../north"), "part of a path"),
    ):
        (tmp_path / "wrong.yaml").write_text(wrong)
        done = CliRunner().invoke(main, ["site", "serve", str(tmp_path / "wrong.yaml")])
        assert (done.exit_code, message in done.stderr) == (2, True), done.output
    done = CliRunner().invoke(main, ["site", "serve", str(tmp_path / "none.yaml")])
    assert done.exit_code == 2
    done = CliRunner().invoke(main, ["site", "key", str(tmp_path / "new.pem")])
    assert done.exit_code == 0
    assert len(done.stdout.strip()) == 44


def test_the_coordinator_ends_without_sites_and_tells_them(tmp_path: Path) -> None:
    conf, sites = configured(tmp_path)
    conf.write_text(conf.read_text().replace("timeout: 60", "timeout: 3"))
    told: list[str] = []

    def site() -> None:
        try:
            serve_site(load_site(str(sites["north"])), told.append)
        except FederationError as error:
            told.append(str(error))

    one = threading.Thread(target=site)
    one.start()
    done = CliRunner().invoke(main, ["federate", str(conf)])
    one.join(20)
    assert done.exit_code == 1
    assert "1 of 3 sites are left" in done.stderr
    assert "Traceback" not in done.output
    assert "gave up: 1 of 3 sites" in told[-1]
    assert "round 1: moments" in told
