"""The same answer however the data is cut, ordered, turned, scaled, shifted, weighted, labelled or walked."""

from __future__ import annotations

import os
import tempfile

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import PCA, open_matrix
from tests.problems import SOLVERS, exact, fitted

RNG = np.random.default_rng(7)
X = RNG.standard_normal((90, 24)) * np.geomspace(8, 0.2, 24) + RNG.standard_normal(24)
TRUTH = exact(X)


def agrees(found, truth=TRUTH, k: int = 4, rtol: float = 1e-7) -> None:
    np.testing.assert_allclose(found.singular_values[:k], truth.values[:k], rtol=rtol)
    assert truth.angle(found.components[:k]) < 1e-6


@settings(max_examples=40, deadline=None)
@given(
    chunks=st.tuples(st.integers(1, 90), st.integers(1, 24)),
    block=st.integers(1, 90),
    solver=st.sampled_from(SOLVERS),
    scheduler=st.sampled_from(["synchronous", "threads"]),
)
def test_any_chunks_any_blocks_any_scheduler(chunks, block: int, solver: str, scheduler: str) -> None:
    array = zarr.create_array(zarr.storage.MemoryStore(), shape=X.shape, chunks=chunks, dtype="f8")
    array[...] = X
    with dask.config.set(scheduler=scheduler):
        agrees(fitted(array, 4, solver, block=block))


def pieces(n: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Lengths of chunks, no two of which need be the same, that n is cut into."""
    cuts = st.sets(st.integers(1, n - 1), max_size=6)
    return cuts.map(lambda at: tuple(np.diff([0, *sorted(at), n]).tolist()))


@settings(max_examples=int(os.environ.get("CHAOS_EXAMPLES", "8")), deadline=None)
@given(
    chunks=st.tuples(st.integers(1, 40), st.integers(1, 24)),
    shards=st.none() | st.tuples(st.integers(1, 4), st.integers(1, 3)),
    dask_chunks=st.tuples(pieces(90), pieces(24)),
    block=st.integers(1, 90),
)
def test_chunks_shards_and_dask_chunks_in_any_relation(chunks, shards, dask_chunks, block: int) -> None:
    """Whatever is read from is whole, and what is written to its own chunks is, too."""
    sharded = shards and tuple(c * n for c, n in zip(chunks, shards, strict=True))
    array = zarr.create_array(zarr.storage.MemoryStore(), shape=X.shape, chunks=chunks, shards=sharded, dtype="f8")
    array[...] = X
    whole = PCA(4).fit(X)
    for source in (array, da.from_array(array, chunks=dask_chunks), da.from_array(X, chunks=dask_chunks)):
        matrix = open_matrix(source)
        agrees(fitted(matrix, 4, block=None if isinstance(source, da.Array) else block))
        np.testing.assert_array_equal(np.concatenate([matrix.read(i) for i in range(matrix.n_blocks)]), X)
        with tempfile.TemporaryDirectory() as folder:
            written = whole.transform(matrix, out=f"{folder}/scores.zarr")
            np.testing.assert_allclose(written.values, whole.transform(X), atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_order_rotation_scale_and_shift(solver: str) -> None:
    base = fitted(X, 4, solver)
    rows, columns = RNG.permutation(90), RNG.permutation(24)
    np.testing.assert_allclose(fitted(X[rows], 4, solver).components, base.components, atol=1e-7)
    np.testing.assert_allclose(fitted(X[:, columns], 4, solver).components, base.components[:, columns], atol=1e-7)
    turn = np.linalg.qr(RNG.standard_normal((24, 24)))[0]
    turned = fitted(X @ turn, 4, solver)
    assert (
        np.linalg.norm(base.components @ turn - (base.components @ turn @ turned.components.T) @ turned.components)
        < 1e-6
    )
    for factor in (1e-30, 3.0, 1e30):
        np.testing.assert_allclose(
            fitted(factor * X, 4, solver).singular_values, factor * base.singular_values, rtol=1e-9
        )
    shifted = fitted(X + 1e6, 4, solver)
    np.testing.assert_allclose(shifted.singular_values, base.singular_values, rtol=1e-7)
    np.testing.assert_allclose(shifted.mean, base.mean + 1e6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_signs_are_fixed(solver: str) -> None:
    found = fitted(-X, 4, solver).components
    assert np.all(found[np.arange(4), np.abs(found).argmax(axis=1)] > 0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [None, "std"])
def test_weights_scale_and_centring_are_those_of_a_dense_computation(
    center: bool, scale: str | None, solver: str
) -> None:
    weights, counts = RNG.uniform(0.5, 2, 24), RNG.integers(1, 4, 90).astype(float)
    given = {"center": center, "scale": scale, "weights": weights, "sample_weights": counts}
    truth = exact(X, **given)
    found = fitted(X, 3, solver, block=7, **given)
    if truth.values[3] < 0.9 * truth.values[2]:
        assert truth.angle(found.components) < 1e-4
    np.testing.assert_allclose(found.singular_values, truth.values[:3], rtol=1e-6)
    np.testing.assert_allclose(found.mean, truth.mean, rtol=1e-10)
    repeated = fitted(np.repeat(X, counts.astype(int), axis=0), 3, solver, center=center, scale=scale, weights=weights)
    np.testing.assert_allclose(found.singular_values, repeated.singular_values, rtol=1e-6)
    assert found.n_samples == repeated.n_samples
    assert found.total_variance == pytest.approx(repeated.total_variance, rel=1e-9)


def test_dims_may_lie_in_any_order_and_samples_have_several() -> None:
    cube = xr.DataArray(X.reshape(90, 4, 6), dims=("time", "lat", "lon"))
    for order in (("time", "lat", "lon"), ("lat", "time", "lon"), ("lat", "lon", "time")):
        agrees(PCA(4).fit(open_matrix(cube.transpose(*order), sample_dims="time")).subspace_)
    split = xr.DataArray(X.reshape(9, 10, 4, 6), dims=("year", "month", "lat", "lon"))
    opened = open_matrix(split.transpose("lat", "year", "lon", "month"), sample_dims=["year", "month"])
    agrees(PCA(4).fit(opened).subspace_)
    np.testing.assert_array_equal(opened.rows(13, 57).read(0), X[13:57])


@pytest.mark.parametrize("kind", ["numpy", "zarr", "dask", "lazy"])
def test_selections_are_orthogonal_and_by_position_mask_or_label(kind: str, tmp_path) -> None:
    cube = xr.DataArray(
        X.reshape(90, 4, 6),
        dims=("time", "lat", "lon"),
        coords={"time": np.arange("2001-01-01", "2001-04-01", dtype="M8[D]"), "lat": [-30.0, -10.0, 10.0, 30.0]},
        name="t",
    )
    if kind == "dask":
        cube = cube.chunk({"time": 20, "lon": 4})
    elif kind != "numpy":
        encoding = (
            {"t": {"chunks": (20, 3, 4)}} if kind == "zarr" else {"t": {"scale_factor": 1.0, "chunks": (20, 3, 4)}}
        )
        cube.to_dataset().to_zarr(tmp_path / "c.zarr", encoding=encoding)
        cube = tmp_path / "c.zarr"
    mask = np.arange(6) % 3 != 1
    picked = {"time": slice("2001-01-11", "2001-03-01"), "lat": slice(-10.0, 30.0), "lon": mask}
    expected = X.reshape(90, 4, 6)[10:60, 1:][:, :, mask].reshape(50, -1)
    np.testing.assert_array_equal(open_matrix(cube, select=picked).read(0), expected)
    odd = {"time": slice(80, 5, -7), "lat": [3, 0], "lon": -1}
    expected = X.reshape(90, 4, 6)[80:5:-7][:, [3, 0]][:, :, [-1]].reshape(-1, 2)
    np.testing.assert_array_equal(open_matrix(cube, select=odd).read(0), expected)


def test_several_variables_are_features_side_by_side(tmp_path) -> None:
    parts = {"a": (("t", "x"), X[:, :10]), "b": (("t", "y"), X[:, 10:])}
    xr.Dataset(parts).to_zarr(tmp_path / "g.zarr", encoding={"a": {"chunks": (20, 5)}, "b": {"chunks": (30, 14)}})
    for source in (xr.Dataset(parts), xr.Dataset(parts).chunk({"t": 17}), tmp_path / "g.zarr"):
        for solver in SOLVERS:
            agrees(
                fitted(
                    open_matrix(source, variable=["a", "b"]),
                    4,
                    solver,
                    block=5 if "Dataset" not in str(type(source)) else None,
                )
            )
    names = open_matrix(xr.Dataset(parts)).features.coords["variable"].values.tolist()
    assert names == ["a"] * 10 + ["b"] * 14
