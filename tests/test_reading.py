"""Each stored chunk is read as often as the plan promised: a store that counts."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ZstdCodec
from zarr.storage import MemoryStore, WrapperStore

from pipeline import PCA, open_matrix, plan, walk
from pipeline.errors import PlanError, StoreError
from pipeline.sources.grid import Grid


class Counting(WrapperStore):
    """A store that counts how often each chunk is asked for."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.reads: Counter[str] = Counter()

    async def get(self, key, prototype, byte_range=None):
        if key.startswith("c/"):
            self.reads[key] += 1
        return await super().get(key, prototype, byte_range)


def stored(chunks: tuple[int, int], shape: tuple[int, int] = (300, 60), **options: object) -> Counting:
    rng = np.random.default_rng(0)
    store = Counting(MemoryStore())
    array = zarr.create_array(store, shape=shape, chunks=chunks, dtype="f8", **options)
    array[...] = rng.standard_normal(shape) * np.geomspace(10, 0.1, shape[1])
    store.reads.clear()
    return store


@pytest.mark.parametrize("solver", ["gram", "krylov", "randomized"])
@pytest.mark.parametrize("chunks", [(50, 60), (40, 20), (300, 60), (7, 60), (300, 7)])
def test_a_tall_matrix_is_read_once_a_pass(solver: str, chunks: tuple[int, int]) -> None:
    store = stored(chunks)
    X, model = open_matrix(zarr.open_array(store)), PCA(4, solver=solver)
    promised = plan(X, model)
    model.fit(X)
    assert len(store.reads) == -(-300 // chunks[0]) * -(-60 // chunks[1])
    assert set(store.reads.values()) == {promised.passes}
    assert promised.bytes_read == promised.passes * 300 * 60 * 8
    assert model.subspace_.passes == promised.passes


@pytest.mark.parametrize("solver", ["dual_gram", "krylov", "randomized"])
@pytest.mark.parametrize("chunks", [(60, 50), (20, 40), (60, 300), (60, 7)])
def test_a_wide_matrix_is_read_once_a_pass(solver: str, chunks: tuple[int, int]) -> None:
    store = stored(chunks, (60, 300))
    X, model = open_matrix(zarr.open_array(store)), PCA(4, solver=solver)
    promised = plan(X, model)
    model.fit(X)
    assert set(store.reads.values()) == {promised.passes}
    assert model.subspace_.passes == promised.passes


def test_blocks_that_share_chunks_are_promised_as_such() -> None:
    store = stored((100, 60))
    X = open_matrix(zarr.open_array(store)).cut_to(30 * 60 * 8)
    assert X.n_blocks == 12
    promised = plan(X, PCA(3))
    PCA(3).fit(X)
    assert sum(store.reads.values()) * 100 * 60 * 8 == promised.bytes_read


def test_a_shard_is_cut_between_blocks_only() -> None:
    store = stored((20, 30), shards=(100, 60))
    X = open_matrix(zarr.open_array(store)).cut_to(100 * 60 * 8)
    assert [X.bounds(i) for i in range(X.n_blocks)] == [(0, 100), (100, 200), (200, 300)]
    assert PCA(3).fit(X).n_components_ == 3


def test_means_of_missing_entries_cost_one_pass_more() -> None:
    store = stored((50, 60))
    array = zarr.open_array(store)
    array[3, 4] = np.nan
    store.reads.clear()
    model = PCA(3, solver="gram", missing="mean")
    promised = plan(array, model)
    model.fit(array)
    assert promised.passes == model.subspace_.passes == 2
    assert set(store.reads.values()) == {2}


def test_a_store_is_opened_as_it_is() -> None:
    store = stored((50, 60))
    PCA(3).fit(open_matrix(store))
    assert set(store.reads.values()) == {1}


def test_transform_reads_once_and_open_matrix_reads_nothing() -> None:
    store = stored((50, 60))
    model = PCA(3).fit(np.random.default_rng(0).standard_normal((80, 60)))
    X = open_matrix(zarr.open_array(store))
    plan(X, model)
    assert not store.reads
    model.transform(X)
    assert set(store.reads.values()) == {1}


@pytest.mark.parametrize(
    ("solver", "shape", "chunks"), [("krylov", (6000, 100), (500, 100)), ("dual_gram", (100, 6000), (100, 500))]
)
def test_blocks_that_are_kept_are_read_once(solver: str, shape: tuple[int, int], chunks: tuple[int, int]) -> None:
    store = stored(chunks, shape)
    X, model = open_matrix(zarr.open_array(store)), PCA(4, solver=solver)
    expected = model.fit(X.read_range(0, shape[0])).transform(X.read_range(0, shape[0]))
    store.reads.clear()
    scores = model.fit_transform(X)
    assert model.plan_.blocks_kept == model.plan_.n_blocks
    assert set(store.reads.values()) == {1}
    assert model.plan_.bytes_read == X.nbytes
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)


def test_kept_blocks_stay_when_threads_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored((500, 100), (6000, 100))
    X, threads, now = open_matrix(zarr.open_array(store)), cycle([2, 1, 3]), walk.crew
    monkeypatch.setattr(walk, "crew", lambda: replace(now(), threads=next(threads)))
    model = PCA(4, solver="krylov").fit(X)
    assert model.plan_.blocks_kept == X.n_blocks
    assert set(store.reads.values()) == {1}


def test_what_does_not_fit_beside_the_work_is_read_again() -> None:
    store = stored((500, 100), (6000, 100))
    X, roomy = open_matrix(zarr.open_array(store)), PCA(4, solver="krylov")
    everything = plan(X, roomy)
    limit = everything.peak_memory - everything.blocks_kept * everything.block_rows * 800 // 2
    tight = plan(X, PCA(4, solver="krylov", memory_limit=limit))
    model = PCA(4, solver="krylov", memory_limit=limit).fit(X)
    assert 0 < tight.blocks_kept < everything.blocks_kept
    assert tight.peak_memory <= limit
    assert sum(store.reads.values()) * 500 * 800 == tight.bytes_read
    np.testing.assert_allclose(model.components_, roomy.fit(X).components_, atol=1e-9)


def test_a_thread_is_idle_before_chunks_are_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store, summarise, at_work, seen = stored((1000, 2000), (6000, 2000)), walk.summarise, [], set()

    def watched(*args: object) -> object:
        at_work.append(None)
        seen.add(len(at_work))
        try:
            return summarise(*args)
        finally:
            at_work.pop()

    monkeypatch.setattr(walk, "summarise", watched)
    X = open_matrix(zarr.open_array(store))
    with dask.config.set(num_workers=2):
        with pytest.raises(PlanError) as refused:
            plan(X, PCA(4, solver="krylov", memory_limit=1))
        least = refused.value.needed
        limits = range(least, least + 200_000_000, 5_000_000)
        plans = [plan(X, PCA(4, solver="krylov", memory_limit=limit)) for limit in limits]
        threads, repeats = [p.threads for p in plans], [p.bytes_read > p.passes * X.nbytes for p in plans]
        assert threads == sorted(threads)
        assert repeats == sorted(repeats, reverse=True)
        assert not any(p.threads == 2 and repeated for p, repeated in zip(plans, repeats, strict=True))
        tight = next(p for p, repeated in zip(plans, repeats, strict=True) if not repeated)
        assert (tight.threads, tight.idle_threads, tight.blocks_kept) == (1, 1, 0)
        assert "1 more left idle" in str(tight)
        store.reads.clear()
        model = PCA(4, solver="krylov", memory_limit=tight.memory_limit).fit(X)
        assert set(store.reads.values()) == {model.subspace_.passes}
        assert seen == {1}
        roomy = PCA(4, solver="krylov").fit(X)
    assert roomy.plan_.threads == 2
    assert seen == {1, 2}
    np.testing.assert_allclose(model.singular_values_, roomy.singular_values_, rtol=1e-9)


@pytest.mark.parametrize("chunks", [(430, 170), (77, 1000), (260, 640)])
def test_what_is_read_beside_what_is_kept_is_as_planned(chunks: tuple[int, int]) -> None:
    """Kept and other blocks share chunks here, and the last block is low."""
    store = stored(chunks, (1999, 1000))
    X = zarr.open_array(store)
    roomy, partly = plan(X, PCA(4, solver="krylov")), 0
    for share in (0.2, 0.5, 0.8):
        limit = roomy.peak_memory - int(share * X.nbytes)
        store.reads.clear()
        model = PCA(4, solver="krylov", memory_limit=limit).fit(X)
        walks = model.subspace_.provenance["walks"]
        assert model.plan_.bytes_read == sum(walk["bytes"] for walk in walks)
        assert model.plan_.bytes_read <= sum(store.reads.values()) * chunks[0] * chunks[1] * 8
        partly += 0 < model.plan_.blocks_kept < model.plan_.n_blocks
    assert partly


KILLED = """
import os, sys
import numpy as np
from pipeline import PCA
from pipeline.rowwise import _Write

write, written = _Write.block, []

def block(self, *args):
    written.append(write(self, *args))
    if len(written) == 5:
        os.kill(os.getpid(), 9)
    return written[-1]

_Write.block = block
PCA(3).fit(sys.argv[1]).transform(sys.argv[1], out=sys.argv[2])
"""


def test_scores_go_on_where_a_killed_run_ended(tmp_path, monkeypatch) -> None:
    source, out = str(tmp_path / "x.zarr"), tmp_path / "scores.zarr"
    x = np.random.default_rng(0).standard_normal((40_000, 20))
    zarr.create_array(source, data=x, chunks=(2_500, 20))
    ended = subprocess.run([sys.executable, "-c", KILLED, source, str(out)], check=False)
    assert ended.returncode == -9
    assert not out.exists()
    model, read = PCA(3).fit(source), Grid.read
    rows: list[int] = []
    monkeypatch.setattr(Grid, "read", lambda self, r, c, out=None: (rows.append(r[1] - r[0]), read(self, r, c, out))[1])
    scores = model.transform(source, out=out)
    assert sum(rows) <= 40_000 - 4 * 2_500
    np.testing.assert_allclose(scores, model.transform(x), atol=1e-12)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_scores_of_other_data_do_not_mix_with_those_of_a_killed_run(tmp_path) -> None:
    source, out = str(tmp_path / "x.zarr"), tmp_path / "scores.zarr"
    x = np.random.default_rng(0).standard_normal((40_000, 20))
    stored = zarr.create_array(source, data=x, chunks=(2_500, 20))
    subprocess.run([sys.executable, "-c", KILLED, source, str(out)], check=False)
    stored[:2_500] = x[:2_500] = 2 * x[:2_500]
    model = PCA(3).fit(source)
    np.testing.assert_allclose(model.transform(source, out=out), model.transform(x), atol=1e-12)


def test_left_singular_vectors_are_those_of_the_centred_data() -> None:
    x = np.random.default_rng(1).standard_normal((60, 8))
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    model = PCA(8).fit(x)
    left = model.left_singular_vectors(x)
    np.testing.assert_allclose(np.abs(u.T @ left), np.eye(8), atol=1e-10)
    np.testing.assert_allclose(model.singular_values_, s)


def counts(tmp_path, n: int, d: int) -> zarr.Array:
    """Allele counts of four populations, some of them missing."""
    rng = np.random.default_rng(0)
    frequency = rng.uniform(0.1, 0.9, (4, d))
    calls = rng.binomial(2, frequency[np.arange(n) % 4]).astype("i1")
    calls[rng.random((n, d)) < 0.01] = -1
    array = zarr.create_array(tmp_path / "calls.zarr", shape=(n, d), chunks=(500, d), dtype="i1")
    array[...] = calls
    return array


TRACED = {
    "integers, missing calls": (lambda z: z, {"scale": "genotype", "missing": "mean"}),
    "integers": (lambda z: z, {}),
    "a mask": (lambda z: open_matrix(z, select={"sample": np.arange(2000) % 3 > 0}), {}),
    "in memory": (lambda z: z[:], {}),
    "complex": (lambda z: z[:] + 1j * z[:][::-1].astype("c8"), {"solver": "gram"}),
}


@pytest.mark.parametrize(("source", "asked"), TRACED.values(), ids=TRACED)
def test_a_plan_is_true_of_what_is_allocated(source, asked, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.solvers.iteration._DEAR", 1 << 20)  # as on large data
    x, model = source(counts(tmp_path, 2000, 1200)), PCA(3, **{"solver": "krylov", **asked})
    with dask.config.set(scheduler="synchronous"):
        model.fit(x)
        tracemalloc.start()
        model.fit(x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= model.plan_.peak_memory <= 6 * peak + (64 << 20)  # BLAS's own memory, and slabs, are not traced


def test_small_integers_in_single_precision_are_as_in_double(tmp_path, monkeypatch) -> None:
    z = counts(tmp_path, 1000, 700)
    asked = {"scale": "genotype", "missing": "mean", "solver": "krylov"}
    fine = PCA(3, **asked).fit(z)
    monkeypatch.setattr("pipeline.solvers.iteration._DEAR", 1 << 16)
    X = open_matrix(z)
    model = PCA(3, **asked)
    assert model.prepare(X).solver.cost(X).dtype == np.float32
    scores = model.fit_transform(z)
    assert scores.dtype == model.components_.dtype == np.float64
    np.testing.assert_allclose(model.singular_values_, fine.singular_values_, rtol=1e-5)
    np.testing.assert_allclose(scores, model.transform(z), atol=1e-3)
    assert model.subspace_.provenance["seen"] == fine.subspace_.provenance["seen"]
    assert PCA(3, tol=1e-9, **asked).fit(z).subspace_.angle_bound < 1e-9  # rounding is in the way: in double, then


PLAIN = {
    "zstd": ZstdCodec(level=1),
    "zstd with checksums": ZstdCodec(checksum=True),
    "lz4": BloscCodec(cname="lz4", shuffle="shuffle"),
    "blosc-zstd": BloscCodec(cname="zstd", shuffle="bitshuffle"),
    "as they are": None,
}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks as small as these are worth it."""
    monkeypatch.setattr("pipeline.sources.plain._WORTH", 1)


def in_files(folder: Path, x: np.ndarray, chunks: tuple[int, ...], codec: Any = None, **how: Any) -> str:
    array = zarr.create_array(
        folder / "x", shape=x.shape, chunks=chunks, dtype=x.dtype, compressors=codec, filters=None, **how
    )
    array[...] = x
    return str(folder / "x")


def as_read(path: str) -> np.ndarray:
    """The whole matrix, each block into a buffer of the stored dtype."""
    X = open_matrix(path)
    return np.concatenate(
        [X.read(i, np.empty((b - a, X.shape[1]), X.dtype)) for i in range(X.n_blocks) for a, b in [X.bounds(i)]]
    )


@pytest.mark.usefixtures("small_chunks")
class TestPlainChunks:
    @pytest.mark.parametrize("codec", PLAIN.values(), ids=list(PLAIN))
    @pytest.mark.parametrize("dtype", ["f4", "f8", "i1", "i4", "c8"])
    @pytest.mark.parametrize(
        ("shape", "chunks"), [((600, 70), (50, 70)), ((600, 5, 14), (1, 5, 14)), ((60, 10, 70), (1, 2, 70))], ids=str
    )
    def test_they_are_decompressed_where_they_are_to_be(
        self, shape: Any, chunks: Any, dtype: str, codec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = (100 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)
        path = in_files(tmp_path, x, chunks, codec)
        assert "decompressed in place" in open_matrix(path).source.layout
        monkeypatch.setattr(zarr.Array, "get_basic_selection", None)  # nobody asks Zarr
        np.testing.assert_array_equal(as_read(path), x.reshape(len(x), -1))

    @pytest.mark.parametrize(
        "how",
        [
            {"chunks": (50, 35)},
            {"chunks": (50, 80)},
            {"chunks": (50, 70), "codec": GzipCodec()},
            {"chunks": (50, 70), "shards": (100, 70)},
            {"chunks": (50, 70), "serializer": BytesCodec(endian="big")},
            {"chunks": (50, 70), "zarr_format": 2},
            {"chunks": (50, 70), "order": "F", "zarr_format": 2},
        ],
        ids=str,
    )
    def test_others_are_left_to_zarr(self, how: dict[str, Any], tmp_path: Path) -> None:
        x = np.random.default_rng(0).standard_normal((600, 70)).astype("f4")
        path = in_files(tmp_path, x, **how)
        assert "in place" not in open_matrix(path).source.layout
        np.testing.assert_array_equal(as_read(path), x)

    @pytest.mark.parametrize("codec", PLAIN.values(), ids=list(PLAIN))
    def test_the_last_chunk_and_chunks_that_are_not_there(self, codec: Any, tmp_path: Path) -> None:
        x = np.random.default_rng(0).standard_normal((620, 70)).astype("f4")
        path = in_files(tmp_path, x, (50, 70), codec, fill_value=7)
        (Path(path) / "c" / "3" / "0").unlink()
        x[150:200] = 7
        np.testing.assert_array_equal(as_read(path), x)

    @pytest.mark.parametrize("codec", PLAIN.values(), ids=list(PLAIN))
    def test_damaged_ones_are_named(self, codec: Any, tmp_path: Path) -> None:
        x = np.random.default_rng(0).standard_normal((600, 70)).astype("f4")
        path = in_files(tmp_path, x, (50, 70), codec)
        short = in_files(tmp_path / "short", x[:40], (40, 70), codec)
        chunk = Path(path) / "c" / "3" / "0"
        whole = chunk.read_bytes()
        for bad in (whole[: len(whole) // 2], whole[:3], b"", (Path(short) / "c" / "0" / "0").read_bytes()):
            chunk.write_bytes(bad)
            with pytest.raises(StoreError, match=r"rows 0 to 600 .* cannot be read"):
                as_read(path)

    def test_blosc_is_not_asked_for_a_chunk_that_is_cut_off(self, tmp_path: Path) -> None:
        # It would read on: what it makes of that depends on what was in the memory behind it before.
        path = in_files(tmp_path, np.ones((600, 70), "f4"), (50, 70), PLAIN["blosc-zstd"])
        chunk = Path(path) / "c" / "3" / "0"
        whole = chunk.read_bytes()
        for length in (0, 3, 15, 16, len(whole) - 1):
            chunk.write_bytes(whole[:length])
            with pytest.raises(StoreError, match=rf"rows 0 to 600 .* c/3/0 is cut off after {length} bytes"):
                as_read(path)
