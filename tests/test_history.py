"""Versions: each fit or update is one, none is lost, and of two writers one is told. On a disk, in S3, in Icechunk."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import shutil
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from zarr.storage import ObjectStore

import pipeline.store.publish as publishing
import pipeline.store.read as reading
from pipeline import PCA, errors
from pipeline.cli import main
from pipeline.drift import drift
from pipeline.errors import ConflictError, InputError, StoreError
from pipeline.jobs.record import Record, records_in, whoever
from pipeline.jobs.run import run_job
from pipeline.jobs.spec import parse_job
from pipeline.jobs.update import update_model
from pipeline.matrix import Matrix
from pipeline.store import expire, history, load, provenance_of, rollback, save, tag
from pipeline.store.history import GRACE, commit
from pipeline.store.objects import Objects
from pipeline.store.probe import ABILITIES, probe
from pipeline.store.read import open_store
from tests.servers import SERVERS, Buckets
from tests.test_store import check_whole, of_version

X = np.random.default_rng(0).standard_normal((60, 6)) * [6, 5, 4, 3, 2, 1]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "durable" not in request.keywords:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr("pipeline.store.head.GRACE", 0.0)


KINDS = ["disk", "icechunk", *SERVERS]
REMOTE = "icechunk in seaweedfs"


@pytest.fixture
def place(request: pytest.FixtureRequest, bucket: Buckets, tmp_path: Path) -> str:
    kind, _, name = request.param.rpartition(" in ")
    if "icechunk" in request.param:
        pytest.importorskip("icechunk")
    if name in SERVERS:
        return f"icechunk:{bucket(name)}" if kind else bucket(name)
    return f"icechunk:{tmp_path / 'm.icechunk'}" if name == "icechunk" else str(tmp_path / "m.zarr")


@pytest.mark.parametrize("place", [*KINDS, REMOTE], indirect=True)
def test_versions_follow_each_other(place: str) -> None:
    for number in (1, 2, 3):
        assert save(of_version(number), place, overwrite=number > 1).number == number
        assert load(place) == of_version(number)
    with pytest.raises(StoreError, match="--overwrite"):
        save(of_version(9), place)
    told = history(place)
    assert [v.number for v in told.versions] == [1, 2, 3]
    assert [v.parent for v in told.versions] == [None, *(v.id for v in told.versions[:2])]
    assert told.head == told.versions[-1].id
    assert all(v.created.endswith("+00:00") for v in told.versions)
    for version in told.versions:
        for name in (version.number, str(version.number), version.id, version.id[:8]):
            assert load(place, version=name) == of_version(version.number)
    for wrong in (4, 0, "nothing", "1.0"):
        with pytest.raises(StoreError, match="has no version"):
            load(place, wrong)
    assert provenance_of(place, told.versions[1]) == {"value": 2.0}


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_tags_rollback_and_expiry(place: str) -> None:
    for number in range(1, 6):
        save(of_version(number), place, overwrite=number > 1)
    tag(place, "good", 2)
    tag(place, "latest")
    assert load(place, "good") == of_version(2)
    for name in ("1", "", "a b", "a/b", "-x"):
        with pytest.raises(InputError, match="tag"):
            tag(place, name)
    assert rollback(place, 3).number == 3
    assert load(place) == of_version(3)
    assert len(history(place).versions) == 5
    assert save(of_version(6), place, overwrite=True).number == 6
    assert history(place).versions[-1].parent == history(place).versions[2].id
    gone = expire(place, 1, grace=0)
    # Icechunk may keep more: what a tag has come from.
    stay = [2, 5, 6] if not place.startswith("icechunk") else sorted({*range(1, 7)} - {v.number for v in gone})
    assert gone
    assert {2, 5, 6} <= set(stay)
    assert [v.number for v in history(place).versions] == stay
    for number in stay:
        assert load(place, number) == of_version(number)
    with pytest.raises(InputError, match="at least one"):
        expire(place, 0)
    with pytest.raises(StoreError, match="has no version"):
        load(place, gone[0].number)


@pytest.mark.parametrize("place", [*KINDS, REMOTE], indirect=True)
def test_who_comes_late_is_told(place: str) -> None:
    first = save(of_version(1), place)
    second = save(of_version(2), place, overwrite=True, parent=first.id)
    with pytest.raises(ConflictError, match="version 2 is there now"):
        save(of_version(3), place, overwrite=True, parent=first.id)
    assert load(place) == of_version(2)
    save(of_version(3), place, overwrite=True, parent=second.id)
    assert issubclass(errors.ConflictError, StoreError)
    assert [v.number for v in history(place).versions] == [1, 2, 3]


def test_plain_xarray_opens_every_version(tmp_path: Path) -> None:
    model = tmp_path / "m.zarr"
    for number in (1, 2, 3):
        save(of_version(number), model, overwrite=number > 1)
    assert check_whole(xr.open_zarr(model).load()) == 3
    for version in history(model).versions[:-1]:
        assert check_whole(xr.open_zarr(model / version.path).load()) == version.number
        assert load(model / version.path) == of_version(version.number)
    rollback(model, 1)
    assert check_whole(xr.open_zarr(model).load()) == 1


def test_a_damaged_version_does_not_become_the_head(tmp_path: Path) -> None:
    model = tmp_path / "m.zarr"
    for number in (1, 2, 3, 4):
        save(of_version(number), model, overwrite=number > 1)
    path = model / history(model).versions[0].path
    next(p for p in path.glob("components/**/0") if p.is_file()).write_bytes(b"nothing")
    for act in (lambda: rollback(model, 1), lambda: load(model, 1)):
        with pytest.raises(StoreError, match="components"):
            act()
    assert load(model) == of_version(4)


def test_a_model_without_a_history_gets_one(tmp_path: Path) -> None:
    model = tmp_path / "m.zarr"
    save(of_version(1), model)
    document = json.loads((model / "zarr.json").read_bytes())
    record = json.loads(document["attributes"]["publication"])
    for name in ("history", "tags", "gone"):
        record.pop(name)
    document["attributes"]["publication"] = json.dumps(record)
    document["attributes"].pop("checksum")
    document["attributes"]["checksum"] = _checksum(document)
    (model / "zarr.json").write_text(json.dumps(document))
    save(of_version(2), model, overwrite=True)
    assert load(model, 1) == of_version(1)


def _checksum(document: dict[str, Any]) -> str:
    from pipeline.store.head import _checksum

    return _checksum(document)


# Faults --------------------------------------------------------------------------------------------------------------


def commit_often(model: Path, first: int, count: int, results: Any) -> None:
    """What one of many processes does: each of its commits ends in a version or in a conflict."""
    publishing.os.fsync = lambda descriptor: None  # type: ignore[assignment]
    import pipeline.store.head as head

    head.GRACE = 0.0
    for i in range(count):
        value = float(first + i)
        try:
            results.put(("done", value, save(of_version(int(value)), model, overwrite=True).id))
        except ConflictError:
            results.put(("conflict", value, None))


def many_commits(model: Path, processes: int, each: int) -> dict[str, float]:
    """Processes that publish at the same time: id to value of what they were told is done."""
    spawn = multiprocessing.get_context("forkserver")
    spawn.set_forkserver_preload(["hypothesis.extra.numpy", "pipeline.store", "pytest", "xarray", "zarr"])
    results = spawn.Queue()
    given = [(model, 100 * (i + 1), each, results) for i in range(processes)]
    writers = [spawn.Process(target=commit_often, args=args) for args in given]
    for writer in writers:
        writer.start()
    told = [results.get(timeout=200) for _ in range(processes * each)]
    for writer in writers:
        writer.join()
    return {id: value for what, value, id in told if what == "done"}


@pytest.mark.slow
def test_many_processes_commit_at_once(tmp_path: Path) -> None:
    model = tmp_path / "m.zarr"
    save(of_version(1), model)
    done = many_commits(model, 8, 1)
    versions = history(model).versions
    assert {v.id for v in versions[1:]} == set(done)
    assert [v.number for v in versions] == list(range(1, len(versions) + 1))
    assert [v.parent for v in versions[1:]] == [v.id for v in versions[:-1]]
    for version in versions[1:]:
        assert load(model, version.id).n_samples == done[version.id]


def publish_and_expire(model: Path, stop: Any) -> None:
    """A writer that never rests."""
    publishing.os.fsync = lambda descriptor: None  # type: ignore[assignment]
    number = 1
    while not stop.is_set():
        number += 1
        save(of_version(number), model, overwrite=True)
        expire(model, 2, grace=0.0)


@pytest.mark.slow
def test_reading_while_versions_are_published_and_expire(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("forkserver")
    spawn.set_forkserver_preload(["hypothesis.extra.numpy", "pipeline.store", "pytest", "xarray", "zarr"])
    model, stop = tmp_path / "m.zarr", spawn.Event()
    save(of_version(1), model)
    writer = spawn.Process(target=publish_and_expire, args=(model, stop))
    writer.start()
    heads, olds, expired = set(), 0, 0
    try:
        deadline = time.monotonic() + 60
        while (len(heads) < 4 or olds < 8) and time.monotonic() < deadline:
            found = load(model)
            heads.add(found.n_samples)
            assert found == of_version(int(found.n_samples))
            check_whole(xr.open_zarr(model).load())
            for version in history(model).versions:
                try:
                    old = load(model, version.number)
                except StoreError as error:
                    assert "has no version" in str(error) or "has expired" in str(error)  # noqa: PT017
                    expired += 1
                else:
                    assert old == of_version(version.number)
                    olds += 1
    finally:
        stop.set()
        writer.join()
    assert len(heads) >= 4
    assert olds >= 8


def test_the_answer_to_a_commit_is_lost(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore
    from obstore.exceptions import GenericError

    place, real = s3, obstore.put
    save(of_version(1), place)

    def lossy(store: Any, key: str, data: bytes, **how: Any) -> Any:
        found = real(store, key, data, **how)
        if key == "zarr.json":
            raise GenericError("connection reset")
        return found

    monkeypatch.setattr(obstore, "put", lossy)
    assert save(of_version(2), place, overwrite=True).number == 2
    assert load(place) == of_version(2)
    assert [v.number for v in history(place).versions] == [1, 2]

    def dead(store: Any, key: str, data: bytes, **how: Any) -> Any:
        if key == "zarr.json":
            raise GenericError("connection reset")
        return real(store, key, data, **how)

    monkeypatch.setattr(obstore, "put", dead)
    with pytest.raises(StoreError, match="not known whether version 3"):
        save(of_version(3), place, overwrite=True)
    monkeypatch.setattr(obstore, "put", real)
    assert load(place) == of_version(2)
    assert load(place, 1) == of_version(1)


def test_a_pointer_that_moves_while_a_version_is_uploaded(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    place, real, raced = s3, obstore.put, []
    save(of_version(1), place)

    def racing(store: Any, key: str, data: bytes, **how: Any) -> Any:
        if key == "zarr.json" and not raced:
            raced.append(key)
            save(of_version(7), place, overwrite=True)
        return real(store, key, data, **how)

    monkeypatch.setattr(obstore, "put", racing)
    with pytest.raises(ConflictError):
        save(of_version(8), place, overwrite=True)
    assert load(place) == of_version(7)
    raced.clear()

    def tagging(store: Any, key: str, data: bytes, **how: Any) -> Any:
        if key == "zarr.json" and not raced:
            raced.append(key)
            tag(place, "good", 1)
        return real(store, key, data, **how)

    monkeypatch.setattr(obstore, "put", tagging)
    save(of_version(9), place, overwrite=True)  # a tag is no version: nobody was overtaken
    assert load(place) == of_version(9)
    assert load(place, "good") == of_version(1)


def test_the_disk_does_not_confirm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m.zarr"
    save(of_version(1), model)
    real = publishing.synced

    def failing(path: Path) -> None:
        if path == model and json.loads((model / "zarr.json").read_bytes())["attributes"]["n_samples"] == 2.0:
            raise OSError(5, "Input/output error")
        real(path)

    monkeypatch.setattr(publishing, "synced", failing)
    with pytest.raises(StoreError, match=r"version 2 .* is published, but the disk does not confirm"):
        save(of_version(2), model, overwrite=True)
    assert load(model) == of_version(2)


class Disk:
    """What a disk holds for certain: files as they were when they were synced, folders with the names they had then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: dict[int, bytes] = {}
        self.folders: dict[int, dict[str, int]] = {}

        def fsync(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            inode = os.fstat(descriptor).st_ino
            if path.is_dir():
                self.folders[inode] = {p.name: p.lstat().st_ino for p in path.iterdir()}
            else:
                self.files[inode] = path.read_bytes()

        monkeypatch.setattr(os, "fsync", fsync)

    def after_a_power_cut(self, inode: int, where: Path) -> None:
        """What is left, written down somewhere else."""
        where.mkdir()
        for name, held in self.folders.get(inode, {}).items():
            if held in self.files:
                (where / name).write_bytes(self.files[held])
            elif held in self.folders:
                self.after_a_power_cut(held, where / name)


@pytest.mark.durable
def test_a_power_cut_loses_no_version_that_was_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, folder = Disk(monkeypatch), tmp_path / "disk"
    folder.mkdir()
    model, acknowledged = folder / "m.zarr", []

    def check(step: int) -> None:
        left = tmp_path / f"left {step}"
        disk.after_a_power_cut(folder.stat().st_ino, left)
        for number in acknowledged:
            assert load(left / "m.zarr", number) == of_version(number)

    for number in (1, 2, 3, 4):
        save(of_version(number), model, overwrite=number > 1)
        acknowledged.append(number)
        check(number)
    rollback(model, 2)
    check(5)
    tag(model, "good", 1)
    check(6)


# The command line ----------------------------------------------------------------------------------------------------


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*words])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def test_the_commands(tmp_path: Path) -> None:
    model = str(tmp_path / "m.zarr")
    for k in (2, 3):
        PCA(k).fit(X).subspace_.save(model, overwrite=k > 2)
    told = json.loads(run("log", model, "--json"))
    assert [(v["version"], v["parent"], v["kind"], v["head"]) for v in told] == [
        (2, 1, "fit", True),
        (1, None, "fit", False),
    ]
    assert told[0]["content"] == told[1]["content"] == PCA(2).fit(X).subspace_.provenance["source"]["content"]
    assert {"seed", "versions", "created", "source"} <= set(told[0]["provenance"])
    assert "*   2" in run("log", model)
    found = json.loads(run("diff", f"{model}@1", model, "--json"))
    assert max(found["principal_angles_degrees"]) < 1e-5
    assert [m["partner"] for m in found["modes"]] == [1, 2]
    assert "principal angles" in run("diff", model, f"{model}@1")
    assert run("tag", model, "good", "1").strip() == f"{model}@1"
    assert run("rollback", model, "good").strip() == f"{model}@1"
    assert load(model).k == 2
    assert json.loads(run("inspect", f"{model}@2", "--json"))["n_components"] == 3
    assert "has no version" in run("inspect", f"{model}@9", code=2)
    assert "has no version" in run("rollback", model, "9", code=2)
    for k in (1, 2):
        PCA(k).fit(X).subspace_.save(model, overwrite=True)
    assert run("expire", model, "--keep", "1").split() == [f"{model}@2", f"{model}@3"]
    assert "does not exist" in run("log", str(tmp_path / "nothing"), code=2)
    assert "cannot be a tag" in run("tag", model, "7", code=2)
    versions = [v for v in history(model).versions if (tmp_path / "m.zarr" / v.path).exists()]
    shutil.rmtree(tmp_path / "m.zarr" / versions[0].path)
    told = json.loads(run("log", model, "--json"))
    assert [v["version"] for v in told if v["damage"]] == [versions[0].number]
    assert "has no zarr.json" in run("log", model)
    assert "is missing" in run("rollback", model, str(versions[0].number), code=2)


def test_drift_names_what_became_of_each_mode() -> None:
    a, b = PCA(3).fit(X).subspace_, PCA(3).fit(X[:, [1, 0, 2, 3, 4, 5]]).subspace_
    same = drift(a, a)
    assert same.partner.tolist() == [0, 1, 2]
    assert same.modes.max() < 1e-7
    assert same.outside < 1e-12
    np.testing.assert_allclose(same.ratio, 1)
    assert drift(a, b).modes.max() > 0.1
    assert drift(a.truncate(1), b).partner.size == 1
    assert -1 in drift(a, b.truncate(2)).partner
    with pytest.raises(InputError):
        drift(a, PCA(2).fit(X[:, :4]).subspace_)


def test_commit_is_open_to_any_dataset(tmp_path: Path) -> None:
    ds = PCA(2).fit(X).subspace_.to_dataset()
    assert commit(ds, tmp_path / "m.zarr").number == 1


def test_a_source_in_an_object_store_is_followed(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = f"{s3}/x.zarr", f"{s3}/m.zarr"
    array = zarr.create_array(open_store(source, read_only=False), shape=(20, 6), chunks=(8, 6), dtype="f8")
    array[...] = X[:20]
    reads: list[tuple[int, int]] = []
    real = Matrix.read_range

    def counted(matrix: Matrix, start: int, stop: int, out: Any = None) -> np.ndarray:
        reads.append((start, stop))
        return real(matrix, start, stop, out)

    monkeypatch.setattr(Matrix, "read_range", counted)
    run_job(parse_job({"source": {"path": source}, "model": {"n_components": 6}, "output": {"model": model}}))
    for rows in (36, 60):
        before = array.shape[0]
        array.resize((rows, 6))
        array[before:] = X[before:rows]
        reads.clear()
        assert update_model(model, source).rows == rows - before
        assert not update_model(model, source).rows
        assert sum(b - a for a, b in reads) == rows - before
    whole = PCA(6).fit(X).subspace_
    assert load(model).distance(whole).max() < 1e-7
    np.testing.assert_allclose(load(model).singular_values, whole.singular_values, rtol=1e-10)


def test_who_reads_a_version_that_expires_in_an_object_store(s3: str) -> None:
    from obstore.store import from_url

    for number in (1, 2, 3):
        save(of_version(number), s3, overwrite=number > 1)
    first = history(s3).versions[0].path
    assert [v.number for v in expire(s3, 1)] == [1, 2]
    plain = ObjectStore(from_url(f"{s3}/{first}", client_options={"allow_http": True}))  # as docs/versions.md has it
    assert check_whole(xr.open_zarr(plain).load()) == 1
    with pytest.raises(StoreError, match="has no version"):
        load(s3, 1)
    with mock.patch.object(time, "time", return_value=time.time() + GRACE + 1):
        assert not expire(s3, 1)
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(plain)


class Flapping(BaseHTTPRequestHandler):
    """What stands before an object store, and says that it is busy when its server's `refuses` has it so."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.refuses(self.command):  # type: ignore[attr-defined]
            status, data, headers = 503, b"<Error><Code>SlowDown</Code></Error>", []
        else:
            behind = http.client.HTTPConnection(self.server.behind)  # type: ignore[attr-defined]
            behind.request(self.command, self.path, body, dict(self.headers))
            got = behind.getresponse()
            status, data, headers = got.status, got.read(), got.getheaders()
        self.send_response(status)
        for name, value in headers:
            if name.lower() in ("etag", "last-modified", "content-type", "content-range"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def log_message(self, format: str, *args: Any) -> None:
        return


class Gate:
    """A flapping store: `down` are the numbers of the writes that it refuses."""

    def __init__(self, behind: str) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Flapping)
        self.server.behind, self.server.refuses = behind.removeprefix("http://"), self.refuses  # type: ignore[attr-defined]
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.opened(range(0))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def opened(self, down: range) -> None:
        self.writes, self.down = 0, down

    def refuses(self, command: str) -> bool:
        self.writes += command == "PUT"
        return command == "PUT" and self.writes in self.down


_MS = timedelta(milliseconds=1)
QUICK = {"max_retries": 2, "backoff": {"init_backoff": _MS, "max_backoff": 10 * _MS, "base": 2}}


def flapping_at_each_write(place: str, steps: int) -> str:
    """Publishes through a store that refuses one write, or all from there on, at each (or some) of the writes."""
    gate = Gate(os.environ["AWS_ENDPOINT_URL"])
    endless, done = range(10**9), 1
    with (
        mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL": gate.address}),
        mock.patch.object(reading, "RETRIES", QUICK),
    ):
        save(of_version(1), place)
        writes = gate.writes
        for step in sorted({*range(1, writes + 1, max(1, writes // steps)), writes}):
            done += 1
            gate.opened(range(step, step + 1))
            kept = of_version(1 + 6 * done)  # of as many files as all others here
            save(kept, place, overwrite=True)
            assert gate.writes == writes + 1
            gate.opened(endless[step:])
            with pytest.raises(StoreError, match=r"was stored before is as it was|not known whether"):
                save(of_version(-1), place, overwrite=True)
            assert gate.writes == step + 2
            gate.opened(range(0))
            assert load(place) == kept
            told = history(place)
            assert len(told.versions) == done
            objects = Objects(open_store(place), place).listed(None)
            held = {"/".join(o["path"].split("/")[:2]) for o in objects}
            if step < writes:  # the outcome of the last one is not known: its files stay for a day
                assert held == {"zarr.json", *(v.path for v in told.versions)}
    gate.server.shutdown()
    return f"{done - 1} of {writes} writes refused once and for good: {done - 1} published, {done - 1} told, 0 lost"


def test_a_store_that_flaps(bucket: Buckets) -> None:
    flapping_at_each_write(bucket("moto"), 2)


def test_an_object_store_keeps_jobs_and_passes_the_doctor(s3: str) -> None:
    assert probe(s3) == dict.fromkeys(ABILITIES, "")
    for id in ("a", "b"):
        record = Record(s3, id)
        record.put("submitted", whoever())
        assert (record.state, record.start({}), record.start({}), record.state) == ("queued", 1, 2, "running")
    record.end("failed", error={"sentence": "no"})
    assert [(r.id, r.state) for r in records_in(s3)] == [("a", "running"), ("b", "failed")]
    assert "404" in probe("s3://no-such-bucket/x")["read"]
    with mock.patch.object(Matrix, "read_range", side_effect=AssertionError), pytest.raises(StoreError, match="404"):
        run_job(
            parse_job({"source": {"path": "x"}, "model": {"n_components": 1}, "output": {"model": "s3://no-bucket/x"}})
        )
