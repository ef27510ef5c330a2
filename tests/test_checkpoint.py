"""A fit that is killed goes on where it was: the same answer, few blocks read again, and nothing mixed in."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.storage import MemoryStore

from pipeline import PCA, TruncatedSVD, load, open_matrix
from pipeline.driver import solve
from pipeline.errors import ConvergenceError, InputError, PlanError, StoreError
from pipeline.kernels.content import mixed_rows, row_bits, stretch_sums
from pipeline.kernels.rank import Rank
from pipeline.matrix import Matrix
from pipeline.plans import prepare
from pipeline.solvers import Settings
from pipeline.store.checkpoint import Checkpoint, checkpoint_at
from pipeline.store.state import pack, unpack
from pipeline.stretches import EVERY
from tests.test_cluster import Slow

N, D, BLOCK = 400, 24, 20
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, D)) * np.geomspace(10, 0.5, D) + 3


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("data") / "x.zarr"
    zarr.create_array(where, shape=X.shape, chunks=(BLOCK, D), dtype="f8")[...] = X
    return where


class Died(Exception):
    """The process is gone, as far as the fit can tell."""


class Mortal:
    """Counts the blocks that are read, and dies at a given one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read, self.last = 0, None
        real = Matrix.read_range

        def counted(matrix: Matrix, *args: Any) -> np.ndarray:
            self.read += 1
            if self.read == self.last:
                raise Died
            return real(matrix, *args)

        monkeypatch.setattr(Matrix, "read_range", counted)

    def fit(self, model: Any, X: Any, last: int | None = None) -> Any:
        self.read, self.last = 0, last
        return model.fit(X)


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Mortal:
    return Mortal(monkeypatch)


def blocks(path: Path) -> Matrix:
    return open_matrix(path).cut_at(BLOCK)


METHODS = {
    "gram": {"solver": "gram"},
    "krylov": {"solver": "krylov"},
    "krylov to a tol": {"solver": "krylov", "tol": 1e-6},
    "randomized, scaled": {"solver": "randomized", "scale": "std"},
    "means of what is missing": {"solver": "gram", "missing": "mean"},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_goes_on_where_it_died(path: Path, tmp_path: Path, mortal: Mortal, method: str) -> None:
    model = PCA(4, checkpoint=str(tmp_path / "c"), **METHODS[method])
    whole = mortal.fit(model, blocks(path)).subspace_
    assert model.plan_.blocks_kept == 0
    total, threads = mortal.read, os.cpu_count() or 1
    assert not (tmp_path / "c").exists()
    for last in sorted({1, 2, total // 2, total} if total < 150 else {total // 3}):
        with pytest.raises(Died):
            mortal.fit(model, blocks(path), last)
        died = mortal.read
        again = mortal.fit(model, blocks(path)).subspace_
        assert died + mortal.read - total <= 0.1 * N / BLOCK + threads
        assert again.components.tobytes() == whole.components.tobytes()
        assert again.singular_values.tobytes() == whole.singular_values.tobytes()
        assert again.passes == whole.passes
        assert not (tmp_path / "c").exists()


def test_columns_are_walked_on_too(tmp_path: Path, mortal: Mortal) -> None:
    wide = X.T.copy()
    model = TruncatedSVD(3, solver="krylov", checkpoint=tmp_path / "c")
    whole = mortal.fit(model, open_matrix(wide).cut_at(BLOCK))
    components, total = whole.components_, mortal.read
    for last in (total // 3, total):
        with pytest.raises(Died):
            mortal.fit(model, open_matrix(wide).cut_at(BLOCK), last)
        np.testing.assert_array_equal(mortal.fit(model, open_matrix(wide).cut_at(BLOCK)).components_, components)


@pytest.mark.parametrize(("every", "least", "most"), [(0.0, 8, 20), (EVERY, 1, 1)])
def test_a_long_pass_is_kept_every_few_minutes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, least: int, most: int
) -> None:
    """However dear a state is to write, as all are here."""
    assert EVERY <= 180
    monkeypatch.setattr(Checkpoint, "due", lambda nbytes, read: False)
    kept, real = [], Checkpoint.write
    monkeypatch.setattr(Checkpoint, "write", lambda self, *given: (kept.append(1), real(self, *given)))
    ready = prepare(blocks(path), Settings(Rank(4)), "gram", None)
    with checkpoint_at(tmp_path / "c") as checkpoint:
        solve(ready.matrix, ready.solver, checkpoint=checkpoint, checkpoint_every=every)
    assert least <= len(kept) <= most


def test_another_cutting_goes_on_too(path: Path, tmp_path: Path, mortal: Mortal) -> None:
    model = PCA(4, solver="gram", checkpoint=tmp_path / "c")
    with pytest.raises(Died):
        mortal.fit(model, blocks(path), 10)
    found = mortal.fit(model, open_matrix(path).cut_at(50))
    assert mortal.read <= 7
    np.testing.assert_allclose(found.components_, PCA(4, solver="gram").fit(X).components_, atol=1e-12)


def test_any_store_will_do(path: Path, mortal: Mortal) -> None:
    store = MemoryStore()
    model = PCA(4, solver="krylov", checkpoint=store)
    with pytest.raises(Died):
        mortal.fit(model, blocks(path), 50)
    assert [array.dtype for _, array in zarr.open_group(store, mode="r").arrays()] == ["uint8"]
    mortal.fit(model, blocks(path))
    assert mortal.read < 65
    assert not store._store_dict


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"n_components": 5}, "other settings"),
        ({"random_state": 1}, "other settings"),
        ({"solver": "randomized"}, "other settings"),
        ({"scale": "std"}, "other settings"),
        ({"data": X + 1}, "other data"),
        ({"data": X.astype("f4")}, "other data"),
    ],
)
def test_another_fit_is_refused(tmp_path: Path, mortal: Mortal, other: dict[str, Any], words: str) -> None:
    model = PCA(4, solver="krylov", checkpoint=tmp_path / "c")
    with pytest.raises(Died):
        mortal.fit(model, open_matrix(X).cut_at(BLOCK), 60)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    data = other.pop("data", X)
    with pytest.raises(StoreError, match=words):
        PCA(**{**model.get_params(), **other}).fit(open_matrix(data).cut_at(BLOCK))
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    mortal.fit(model, open_matrix(X).cut_at(BLOCK))


def test_data_that_changed_on_disk_are_other_data(tmp_path: Path, mortal: Mortal) -> None:
    z = zarr.create_array(tmp_path / "x.zarr", shape=X.shape, chunks=(BLOCK, D), dtype="f8")
    z[...] = X
    model = PCA(4, checkpoint=tmp_path / "c")
    with pytest.raises(Died):
        mortal.fit(model, blocks(tmp_path / "x.zarr"), 10)
    z[0, 0] = 99.0
    with pytest.raises(StoreError, match="other data"):
        mortal.fit(model, blocks(tmp_path / "x.zarr"))


def test_a_verdict_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ConvergenceError):
        PCA(4, tol=1e-15, solver="gram", checkpoint=tmp_path / "c").fit(X.astype("f4"))
    bad = X.copy()
    bad[370, 3] = np.nan
    with pytest.raises(InputError, match="row 370"):
        PCA(4, checkpoint=tmp_path / "c").fit(open_matrix(bad).cut_at(BLOCK))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["file", "folder", "model", "array"])
def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path, what: str) -> None:
    place = tmp_path / "c"
    if what == "file":
        place.write_text("precious")
    elif what == "folder":
        place.mkdir()
        (place / "thesis.tex").write_text("precious")
    elif what == "model":
        PCA(2).fit(X).subspace_.save(place)
    else:
        zarr.create_array(place, data=X)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match="choose another place"):
        PCA(2, checkpoint=place).fit(X)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("how", ["removed", "cut", "flipped"])
def test_a_damaged_checkpoint_is_refused(path: Path, tmp_path: Path, mortal: Mortal, how: str) -> None:
    model = PCA(4, solver="krylov", checkpoint=tmp_path / "c")
    with pytest.raises(Died):
        mortal.fit(model, blocks(path), 60)
    for file in [p for p in (tmp_path / "c").rglob("*") if p.is_file() and p.stat().st_size]:
        data = file.read_bytes()
        if file.name == "zarr.json" and (file.parent != tmp_path / "c" or how == "removed"):
            continue  # not what is read; without a root nothing is known of a checkpoint
        if how == "removed":
            file.unlink()
        else:
            middle = len(data) // 2
            file.write_bytes(data[:middle] + (b"" if how == "cut" else bytes([data[middle] ^ 1]) + data[middle + 1 :]))
        with pytest.raises(StoreError, match=r"remove it|choose another place"):
            mortal.fit(model, blocks(path))
        file.write_bytes(data)
    mortal.fit(model, blocks(path))


@pytest.mark.parametrize("call", ["write_bytes", "fsync"])
def test_a_checkpoint_that_cannot_be_written(path: Path, tmp_path: Path, monkeypatch: Any, call: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*(("zarr.storage._local._put", full) if call == "write_bytes" else ("os.fsync", full)))
    with pytest.raises(StoreError, match="No space left"):
        PCA(2, checkpoint=tmp_path / "c").fit(blocks(path))


def test_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.lock._PATIENCE", 0.05)
    with checkpoint_at(tmp_path / "c"), pytest.raises(StoreError, match="another run uses the checkpoint"):
        PCA(2, checkpoint=tmp_path / "c").fit(X)


# States as JSON and arrays -------------------------------------------------------------------------------------------

PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5)


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(PLAIN, lambda v: st.lists(v).map(tuple) | st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8)
)
def test_plain_values_come_back(value: Any) -> None:
    tree, arrays = pack(value)
    assert unpack(json.loads(json.dumps(tree)), arrays) == value


@settings(max_examples=25, deadline=None)
@given(
    array=hnp.arrays(
        st.sampled_from(["f4", "f8", "i8", "u8", "b1", ">f8", "c16"]), hnp.array_shapes(min_dims=0, min_side=0)
    )
)
def test_arrays_come_back_from_a_store(array: np.ndarray) -> None:
    checkpoint = Checkpoint(MemoryStore(), "memory")
    checkpoint.write({}, {"a": array, "kind": array.dtype, "one": np.float32(0.1)})
    back = checkpoint.read({})
    assert (back["a"].dtype, back["kind"], back["one"]) == (array.dtype, array.dtype, np.float32(0.1))
    assert back["a"].tobytes() == np.ascontiguousarray(array).tobytes()
    assert back["a"].shape == array.shape


@pytest.mark.parametrize(
    "tree",
    [
        {"class": "os:system", "fields": {}},
        {"class": "pipeline.errors:StoreError", "fields": {}},
        {"class": "pipeline.cli:main", "fields": {}},
        {"class": "pipeline.solvers.gram:dataclass", "fields": {}},
        {"class": "pipeline.nowhere:X", "fields": {}},
        {"array": "missing"},
        {"scalar": 1, "of": "O"},
        {},
    ],
)
def test_a_hostile_state_builds_nothing(tree: Any) -> None:
    with pytest.raises(StoreError):
        unpack(tree, {})


def test_objects_are_not_stored() -> None:
    for value in (object(), np.array([object()]), {1: 2}, print):
        with pytest.raises(TypeError):
            pack(value)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(["f4", "f8"]))
def test_content_does_not_depend_on_the_cutting(data: Any, dtype: str) -> None:
    n, d = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 9))
    x = np.random.default_rng(n * 10 + d).standard_normal((n, d)).astype(dtype)
    edges = np.unique([0, *data.draw(st.lists(st.integers(0, n))), n])
    whole = stretch_sums(mixed_rows(row_bits(x), 0), 0, edges)
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, d))
    rows = [stretch_sums(mixed_rows(row_bits(x[i:j]), i), i, edges) for i, j in ((0, a), (a, n))]
    np.testing.assert_array_equal(rows[0] + rows[1], whole)
    np.testing.assert_array_equal(row_bits(x[:, :b]) + row_bits(x[:, b:], b), row_bits(x))
    swapped = x[::-1]
    if n > 1:
        assert not np.array_equal(
            stretch_sums(mixed_rows(row_bits(swapped), 0), 0, np.array([0, n])), whole.sum(keepdims=True)
        )


def test_the_content_id_is_that_of_the_values(path: Path) -> None:
    ids = {
        PCA(2, solver=solver).fit(source).subspace_.provenance["source"]["content"]
        for solver, source in [("gram", X), ("krylov", open_matrix(path)), ("gram", blocks(path)), ("dual_gram", X)]
    }
    assert len(ids) == 1
    assert PCA(2).fit(X + 1e-9).subspace_.provenance["source"]["content"] not in ids


# Real kills ----------------------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from pathlib import Path
import dask
from pipeline import PCA, open_matrix
from pipeline.matrix import Matrix

if __name__ == "__main__":
    source, checkpoint, model, log = sys.argv[1:]
    real = Matrix.read_range

    def slow(matrix, start, stop, out=None):
        with open(log, "a") as file:
            file.write(f"{start}\\n")
        time.sleep(0.05)  # long enough for the kills to fall into the fit, not behind it
        return real(matrix, start, stop, out)

    Matrix.read_range = slow
    with dask.config.set(num_workers=2):
        PCA(4, solver="krylov", checkpoint=checkpoint).fit(open_matrix(source).cut_at(20)).subspace_.save(model)
"""


@pytest.mark.slow
def test_kill_the_client_again_and_again(path: Path, tmp_path: Path) -> None:
    script, log, model = tmp_path / "fit.py", tmp_path / "log", tmp_path / "m.zarr"
    script.write_text(SLOW)
    kills = 0
    chance = np.random.default_rng(1)
    while not model.exists():
        assert kills < 6
        before = log.stat().st_size if log.exists() else 0
        process = subprocess.Popen([sys.executable, script, path, tmp_path / "c", model, log])
        deadline = time.monotonic() + 60
        while (not log.exists() or log.stat().st_size <= before) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.uniform(0.1, 0.5) if kills < 2 else 60)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 2
    found, whole = load(model), PCA(4, solver="krylov").fit(blocks(path)).subspace_
    assert found.distance(whole).max() < 1e-10
    np.testing.assert_allclose(found.singular_values, whole.singular_values, rtol=1e-12)
    reads, once = len(log.read_text().split()), whole.passes * N / BLOCK
    assert reads - once <= kills * (0.1 * N / BLOCK + 2)
    assert not (tmp_path / "c").exists()


SERVE = """
import time
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        time.sleep(600)
"""


def scheduler_killed(path: Path, folder: Path, after: int) -> tuple[float, int]:
    """A fit whose cluster goes when so many blocks have been read, and which goes on here.

    Returns the angle to the undisturbed answer, and how many blocks were read again.
    """
    from distributed import Client

    (folder / "serve.py").write_text(SERVE)
    log = folder / "log"
    log.touch()
    # The workers import this suite, and not that of some package which has left its own among the installed ones.
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    cluster = subprocess.Popen([sys.executable, folder / "serve.py"], stdout=subprocess.PIPE, text=True, env=where)
    assert cluster.stdout is not None
    model = PCA(4, solver="krylov", checkpoint=folder / "c")
    matrix = blocks(path)
    array = Slow(str(path), 0.05, X.shape, log)
    slow = dataclasses.replace(matrix, source=dataclasses.replace(matrix.source, array=array))

    def kill() -> None:
        while len(log.read_text().split()) < after:
            time.sleep(0.005)
        cluster.kill()

    try:
        with Client(cluster.stdout.readline().strip(), set_as_default=False) as client, client.as_current():
            killer = threading.Thread(target=kill)
            killer.start()
            with pytest.raises(PlanError, match="scheduler was lost"):
                model.fit(slow)
            killer.join()
    finally:
        cluster.kill()
        cluster.wait()
    assert (folder / "c").exists()
    found = model.fit(slow).subspace_
    extra = len(log.read_text().split()) - found.passes * N // BLOCK
    return float(found.distance(PCA(4, solver="krylov").fit(matrix).subspace_).max()), extra


@pytest.mark.slow
def test_kill_the_scheduler(path: Path, tmp_path: Path) -> None:
    angle, extra = scheduler_killed(path, tmp_path, 33)
    assert angle < 1e-10
    assert extra <= 0.1 * N / BLOCK + 2  # two workers, each with a block unfinished
