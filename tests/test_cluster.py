"""A real cluster of processes: the same answer as in threads, also when a worker is killed on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import scipy.sparse as sp
import zarr
from dask.sizeof import sizeof
from distributed import Client, LocalCluster
from distributed.objects import SchedulerInfo

from pipeline import PCA, open_matrix, plan
from pipeline.allocator import trim
from pipeline.crew import crew, workers_of
from pipeline.folds import RowProduct, SampleProduct, spans, spread_cuts
from pipeline.folds.rows import shifted
from pipeline.keep import Block, Keep, Run
from pipeline.kernels.sparse import SparseBlock
from pipeline.progress import Progress, listening
from pipeline.walk import bytes_walked, walk

SHAPE = (3_000, 80)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal(SHAPE) * np.geomspace(10, 0.1, SHAPE[1]) + 5


@pytest.fixture(scope="module")
def path(data: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> str:
    where = str(tmp_path_factory.mktemp("store") / "x.zarr")
    zarr.create_array(where, shape=SHAPE, chunks=(100, 30), dtype="f8")[...] = data
    return where


def alone(X: object, solver: str) -> PCA:
    with dask.config.set(scheduler="synchronous"):
        return PCA(4, solver=solver).fit(X)


@pytest.mark.parametrize("solver", ["gram", "dual_gram", "krylov", "randomized"])
@pytest.mark.parametrize("kind", ["numpy", "zarr", "dask"])
def test_the_answer_is_that_of_one_process(client: Client, data: np.ndarray, path: str, kind: str, solver: str) -> None:
    rows = data if solver != "dual_gram" else data[:300]
    source = {
        "numpy": rows,
        "zarr": open_matrix(path).rows(0, len(rows)),
        "dask": da.from_array(rows, chunks=(170, 33)),
    }[kind]
    here = alone(source, solver)
    with client.as_current():
        there = PCA(4, solver=solver).fit(source)
        assert there.plan_.workers == 2
    np.testing.assert_allclose(there.components_, here.components_, atol=1e-11)
    np.testing.assert_allclose(there.singular_values_, here.singular_values_, rtol=1e-12)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_local_schedulers_agree(path: str, scheduler: str) -> None:
    here = alone(path, "gram")
    with dask.config.set(scheduler=scheduler, num_workers=2):
        there = PCA(4, solver="gram").fit(path)
    np.testing.assert_allclose(there.components_, here.components_, atol=1e-11)


def test_a_sample_is_taken_by_workers_too(client: Client, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.solvers.iteration._DEAR", 0)
    monkeypatch.setattr("pipeline.solvers.krylov._TIMES", (1, 100))
    x = np.random.default_rng(3).standard_normal((2400, 300)) * np.geomspace(10, 0.1, 300)
    X, model = open_matrix(x).cut_at(60), PCA(3, solver="krylov", tol=1e-6)
    here = model.fit(X).subspace_
    told: list[Progress] = []
    with client.as_current(), listening(told.append):
        there = model.fit(X).subspace_
    assert {p.pass_number for p in told} == set(range(there.passes + 1))
    assert there.provenance["walks"][0]["bytes"] == here.provenance["walks"][0]["bytes"] > 0
    assert max(here.distance(there)) < 1e-9


@pytest.mark.parametrize("kind", ["numpy", "zarr", "dask"])
def test_a_product_over_a_sample_is_that_of_its_rows(client: Client, data: np.ndarray, path: str, kind: str) -> None:
    source = {"numpy": data, "zarr": path, "dask": da.from_array(data, chunks=(170, 33))}[kind]
    X = open_matrix(source).cut_to(100 * 640)
    cuts, lens = spread_cuts(X.cuts, 5, 50), np.random.default_rng(0).standard_normal((data.shape[1], 3))
    fold = SampleProduct.of(RowProduct(np.dtype(np.float64), lens, False, None), cuts)
    rows = np.concatenate([data[start:stop] for start, stop in spans(cuts)])
    rows = rows - rows.mean(axis=0)
    with client.as_current():
        kept = Keep(5 * 50 * data.shape[1] * 8)
        for nbytes in (bytes_walked(X.stretch(cuts), fold), 0):
            found, tally = walk(X.stretch(cuts), fold, keep=kept)
            assert (tally.blocks, tally.nbytes) == (5, nbytes)
            np.testing.assert_allclose(found.centred(lens).product, (rows.T @ (rows @ lens)).T, atol=1e-9)


def test_workers_tell_how_far_they_are(client: Client, path: str) -> None:
    told: list[Progress] = []
    with client.as_current(), listening(told.append):
        model = PCA(4, solver="randomized").fit(path)
    assert {p.pass_number for p in told} == set(range(1, model.plan_.passes + 1))
    assert all(p.passes == model.plan_.passes and 0 <= p.share <= 1 for p in told)
    assert sum(p.share == 1 for p in told) == model.plan_.passes


class Slow:
    """An array that takes its time, so that there is one to kill its reader in, and notes who reads what."""

    def __init__(self, path: str, seconds: float, shape: tuple[int, int] = SHAPE, log: Path | None = None) -> None:
        self.path, self.seconds, self.shape, self.dtype, self.log = path, seconds, shape, np.dtype("f8"), log

    def __getitem__(self, where: Any) -> np.ndarray:
        if self.log is not None and where[0].stop - where[0].start > 1:  # a look at single rows is none
            with self.log.open("a") as file:
                file.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        return zarr.open_array(self.path, mode="r")[where]


def killed_on_the_way(path: str, log: Path, after: int) -> tuple[float, int, int]:
    """A fit whose worker is killed when so many blocks have been read.

    Returns the angle to the undisturbed answer, how many blocks were read more often than in that, and how many of
    the pass the worker had read.
    """
    whole, blocks = alone(path, "krylov"), SHAPE[0] // 100
    slow = _with_array(open_matrix(path).cut_to(100 * SHAPE[1] * 8), Slow(path, 0.02, log=log))
    log.touch()
    theirs: list[int] = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        victim = min(client.run(os.getpid).values())

        def kill() -> None:
            deadline = time.monotonic() + 60
            while (lines := log.read_text().split()).count(str(victim)) == 0 or len(lines) < after:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            os.kill(victim, signal.SIGKILL)
            lines = log.read_text().split()
            theirs.append(lines[(len(lines) - 1) // blocks * blocks :].count(str(victim)))

        killer = threading.Thread(target=kill)
        killer.start()
        found = PCA(4, solver="krylov").fit(slow)
        killer.join()
        assert victim not in client.run(os.getpid).values()
    np.testing.assert_allclose(found.singular_values_, whole.singular_values_, rtol=1e-10)
    extra = len(log.read_text().split()) - found.subspace_.passes * blocks
    return whole.subspace_.distance(found.subspace_).max(), extra, theirs[0]


def test_a_killed_worker_costs_its_blocks_of_the_pass(path: str, tmp_path: Path) -> None:
    angle, extra, theirs = killed_on_the_way(path, tmp_path / "log", 50)
    assert angle < 1e-10
    assert extra <= theirs


def _with_array(matrix, array):
    from dataclasses import replace

    return replace(matrix, source=replace(matrix.source, array=array))


def test_the_plan_knows_the_cluster(client: Client, path: str) -> None:
    with client.as_current():
        there = plan(path, PCA(4))
    limit = min(worker["memory_limit"] for worker in workers_of(client).values())
    assert (there.workers, there.threads, there.memory_limit) == (2, 2, limit)


def test_workers_are_known_whatever_the_client_is_told_meanwhile(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every two seconds distributed overwrites what `scheduler_info` is to give, by an answer without workers."""

    async def emptied(self: Client, n_workers: int = 0) -> None:
        self._scheduler_identity = SchedulerInfo(await self.scheduler.identity(n_workers=0))

    monkeypatch.setattr(Client, "_update_scheduler_info", emptied)
    assert not client.scheduler_info(n_workers=-1)["workers"]
    assert len(workers_of(client)) == 2
    with client.as_current():
        assert (crew().workers, crew().threads) == (2, 2)


def test_kept_blocks_stay_with_their_workers(tmp_path, client) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((8000, 20)) / np.arange(1, 21)) @ rng.standard_normal((20, 100)) + 5
    zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(500, 100))
    model = PCA(4, solver="krylov").fit(str(tmp_path / "x.zarr"))
    read = [walk["bytes"] for walk in model.subspace_.provenance["walks"]]
    assert model.plan_.blocks_kept == model.plan_.n_blocks
    assert read == [x.nbytes] + [0] * (model.plan_.passes - 1)
    exact = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)[:4]
    np.testing.assert_allclose(model.singular_values_, exact, rtol=1e-9)


def resident() -> int:
    return psutil.Process().memory_info().rss


def test_what_a_fit_held_goes_back_to_the_system(tmp_path, client) -> None:
    x = np.random.default_rng(0).standard_normal((12_000, 4_000), dtype="f4")
    zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(500, 4_000), compressors=None)
    model = PCA(4, solver="krylov").fit(str(tmp_path / "x.zarr"))
    assert model.plan_.blocks_kept > 0
    time.sleep(1)
    left = client.run(resident)
    client.run(trim)
    could = [left[worker] - now for worker, now in client.run(resident).items()]
    assert max(could) < 20e6


def test_dask_knows_how_large_kept_blocks_are() -> None:
    rows = shifted(np.ones((100, 1000)), None, None)
    few = SparseBlock(sp.random_array((1000, 1000), density=0.1, format="csr"))
    for made, nbytes in [(rows, rows.x.nbytes), ((rows, None), rows.x.nbytes), (few, 12 * few.array.nnz)]:
        assert sizeof(Run((Block((0, 100), made, 0.1), Block((100, 200), made, 0.1)), 0.2)) > 2 * nbytes
