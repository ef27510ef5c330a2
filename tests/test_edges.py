"""Data at the edges: the right answer, or an error that says what is wrong and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from pipeline import PCA, TruncatedSVD, open_matrix
from pipeline.errors import ConvergenceError, InputError, PipelineError, PlanError, StoreError

SOLVERS = ["gram", "dual_gram", "krylov", "randomized"]


def table(n: int = 40, d: int = 7) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, d)) * np.geomspace(9, 1, d)


RNG = np.random.default_rng(4)
LOW = RNG.standard_normal((60, 3)) @ RNG.standard_normal((3, 8))
NOISE = 1e-3 * RNG.standard_normal((60, 8))
EYE = np.eye(8)
ODD = [1e300, 1e200, 1e160, 1e-160, 1e-300, 5e-324]
SPOTS = {"NaN": np.nan, "inf": np.inf, "-inf": -np.inf, "1e308": 1e308, "1e30": 1e30}
# What people feed by accident, and how many components they ask for.
INPUTS: dict[str, tuple[Any, Any]] = {
    **{f"{name} in one entry": (np.where(np.arange(480).reshape(60, 8) == 77, v, LOW), 3) for name, v in SPOTS.items()},
    **{f"all {name}": (np.full((60, 8), v), 2) for name, v in SPOTS.items()},
    **{f"times {scale:g}": (LOW * scale, 3) for scale in ODD},
    **{f"one column times {scale:g}": (LOW * np.r_[scale, np.ones(7)], 3) for scale in ODD},
    **{f"float32 about {mean:g}": ((LOW + mean).astype("f4"), 3) for mean in (1e2, 1e4, 1e6, 1e8, 1e12, 1e38)},
    **{f"float64 about {mean:g}": (LOW + mean, 3) for mean in (1e8, 1e12, 1e15, 1e18)},
    **{f"condition {c:g}": ((LOW + NOISE) @ np.diag(np.geomspace(1, 1 / c, 8)), 8) for c in (1e4, 1e8, 1e12, 1e16)},
    **{f"as {dtype}": ((4 * LOW).astype(dtype), 3) for dtype in ("f2", "i1", ">f8", "<i8", "?", "c8", "c16", "g")},
    **{f"as {dtype}": (LOW.astype(dtype), 3) for dtype in ("U8", "S8", "O")},
    **{f"k = {k}": (LOW + NOISE, k) for k in (8, 9, 60, 0, -3, 2.5, np.nan, "3", None, "auto", 0.9, 1e-9)},
    **{f"of shape {n} x {d}": (np.ones((n, d)), 1) for n, d in ((0, 8), (60, 0), (1, 8), (2, 8), (60, 1), (1, 1))},
    "k above the rank": (LOW, 6),
    "constant": (np.full((60, 8), 3.25), 2),
    "zeros": (np.zeros((60, 8)), 2),
    "one row that is not zero": (np.where(np.arange(60)[:, None] == 5, 1.0, np.zeros(8)), 2),
    "one constant column": (LOW * np.r_[0, np.ones(7)] + 2.0, 3),
    "a column of NaN": (np.where(np.arange(8) == 2, np.nan, LOW), 3),
    "a row of NaN": (np.where(np.arange(60)[:, None] == 2, np.nan, LOW), 3),
    "all singular values the same": (np.vstack([EYE, -EYE]), 3),
    "every row twice": (np.repeat(LOW, 2, axis=0), 3),
    "one outlier of 1e12": (np.where(np.arange(60)[:, None] == 9, 1e12 * LOW, LOW), 2),
    "three dims, one of them empty": (np.ones((5, 0, 3)), 1),
    "one dim": (np.ones(9), 1),
    "a ragged list": ([[1.0, 2.0], [3.0]], 1),
    "dates": (np.zeros((4, 3), "M8[s]"), 1),
    "masked entries": (np.ma.masked_where(LOW > 2, LOW), 3),
}


def outcome(x: Any, k: Any, solver: str) -> str:
    """What becomes of an input: 'refused' by an error of ours, or 'bounded' by what LAPACK finds; else it raises."""
    try:
        found = PCA(k, solver=solver).fit(x).subspace_
    except PipelineError:
        return "refused"
    values = np.asarray(x)[:, found.present]
    wide = values.astype(np.clongdouble if values.dtype.kind == "c" else np.longdouble)
    centred = (wide - wide.mean(axis=0)).astype(np.complex128 if values.dtype.kind == "c" else np.float64)
    kept = found.components[:, found.present]
    for numbers in (kept, found.singular_values, found.mean[found.present], found.residual, found.angle_bounds):
        assert np.isfinite(numbers).all()
    assert np.isfinite([found.total_variance, *found.explained_variance]).all()
    np.testing.assert_allclose(kept @ kept.conj().T, np.eye(found.k), atol=1e-5)
    _, s, vh = np.linalg.svd(centred)
    scale, single = float(np.abs(wide).max()), found.components.dtype in (np.float32, np.complex64)
    least = max(scale * (1e-4 if single else 1e-6), 1e-154)  # squares of less are below what float64 holds
    np.testing.assert_allclose(found.singular_values, s[: found.k], rtol=1e-4, atol=least)
    for j, bound in enumerate(found.angle_bounds, 1):
        rest = vh[:j] - (vh[:j] @ kept[:j].conj().T) @ kept[:j]
        assert np.linalg.norm(rest, 2) <= np.sin(bound) + (1e-3 if single else 1e-6)
    return "bounded"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", INPUTS)
def test_an_input_is_answered_within_its_bound_or_refused(name: str) -> None:
    for solver in SOLVERS:
        assert outcome(*INPUTS[name], solver)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "int64", "uint64", "bool", "float16", ">f4", ">i2", "float32"]
)
def test_every_real_dtype_gives_the_answer_of_float64(dtype: str, solver: str) -> None:
    values = np.abs(table() * 3).clip(0, 120).astype(dtype)
    expected = values.astype(np.float64)
    _, s, _ = np.linalg.svd(expected - expected.mean(axis=0))
    found = PCA(3, solver=solver).fit(values)
    np.testing.assert_allclose(found.singular_values_, s[:3], rtol=2e-6)
    assert found.components_.dtype == (np.float32 if "f" in dtype else np.float64)


@pytest.mark.parametrize("solver", SOLVERS)
def test_constant_data_has_no_variance_and_no_certified_direction(solver: str) -> None:
    found = PCA(2, solver=solver).fit(np.full((10, 4), 7.5))
    assert found.singular_values_.tolist() == [0, 0]
    assert found.explained_variance_ratio_.tolist() == [0, 0]
    np.testing.assert_allclose(found.components_ @ found.components_.T, np.eye(2), atol=1e-12)
    assert found.subspace_.angle_bound == pytest.approx(np.pi / 2)
    np.testing.assert_allclose(found.inverse_transform(found.transform(np.full((3, 4), 7.5))), 7.5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_rank_deficient_data(solver: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((50, 2)) @ rng.standard_normal((2, 9))
    found = PCA(5, solver=solver).fit(x)
    _, s, vt = np.linalg.svd(x - x.mean(axis=0))
    np.testing.assert_allclose(found.singular_values_[:2], s[:2], rtol=1e-9)
    assert np.all(found.singular_values_[2:] < 1e-5 * s[0])
    np.testing.assert_allclose(found.components_ @ found.components_.T, np.eye(5), atol=1e-9)
    assert np.linalg.norm(vt[:2] - (vt[:2] @ found.components_.T) @ found.components_) < 1e-7
    assert found.subspace_.angle_bounds[1] < 1e-5
    assert found.subspace_.angle_bound == pytest.approx(np.pi / 2)
    assert np.isfinite(found.subspace_.residual).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(2, 1), (2, 5), (5, 1), (3, 3), (7, 7)])
def test_the_smallest_shapes(shape: tuple[int, int], solver: str) -> None:
    x = table(*shape)
    found = PCA(solver=solver).fit(x)
    _, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    assert found.n_components_ == min(shape)
    np.testing.assert_allclose(found.singular_values_, s, rtol=1e-7, atol=1e-6 * s[0])


def test_one_sample_has_no_variance() -> None:
    with pytest.raises(InputError, match="n_samples = 1"):
        PCA(1).fit(np.ones((1, 3)))
    found = TruncatedSVD(1).fit(np.array([[3.0, 4.0]]))
    np.testing.assert_allclose(found.singular_values_, [5])


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_fit(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError):
        PCA(1).fit(open_matrix(np.zeros(shape)))


@pytest.mark.parametrize("k", [0, -1, 8, 1.0, 1.5, 0.0, True, "many", np.nan])
def test_numbers_of_components_that_cannot_be(k: object) -> None:
    with pytest.raises(InputError, match="n_components"):
        PCA(k).fit(table())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_first_entry_that_is_no_number_is_named(value: float, solver: str) -> None:
    x = table(400, 6)
    x[311, 2] = x[77, 4] = x[200, 0] = value
    sst = xr.DataArray(
        x.reshape(400, 2, 3), dims=("time", "lat", "lon"), coords={"lat": [-5.0, 5.0], "lon": [0.0, 90.0, 180.0]}
    )
    with pytest.raises(InputError, match=r"row 77, feature 4 .*time=77.*lat=5\.0, lon=90\.0.*of 3 such"):
        PCA(2, solver=solver).fit(open_matrix(sst).cut_to(50 * 6 * 8))


@pytest.mark.parametrize("solver", SOLVERS)
def test_land_is_left_out_and_half_land_is_an_error(solver: str) -> None:
    x = table(60, 8)
    sea = np.delete(x, [2, 5], axis=1)
    x[:, [2, 5]] = np.nan
    found = PCA(3, solver=solver).fit(open_matrix(x).cut_to(7 * 8 * 8))
    _, s, _ = np.linalg.svd(sea - sea.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found.singular_values_, s[:3], rtol=1e-6)
    assert np.isnan(found.components_[:, [2, 5]]).all()
    assert np.isfinite(np.delete(found.components_, [2, 5], axis=1)).all()
    x[40:, 2] = 1.0
    with pytest.raises(InputError, match="row 0, feature 2"):
        PCA(3, solver=solver).fit(open_matrix(x).cut_to(7 * 8 * 8))
    with pytest.raises(InputError, match="every feature is NaN"):
        PCA(1, solver=solver).fit(np.full((5, 3), np.nan))


@pytest.mark.parametrize(("mean", "spread"), [(1e8, 100.0), (1e4, 1.0)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_large_means_in_float32_keep_the_leading_subspace(mean: float, spread: float, solver: str) -> None:
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((500, 30)) * spread * np.geomspace(3, 0.3, 30) + mean).astype(np.float32)
    exact = x.astype(np.float64)
    _, s, vt = np.linalg.svd(exact - exact.mean(axis=0), full_matrices=False)
    found = PCA(3, solver=solver).fit(open_matrix(x).cut_to(40 * 30 * 4))
    sine = np.linalg.norm(vt[:3] - (vt[:3] @ found.components_.T) @ found.components_, 2)
    assert sine < 1e-3
    assert sine <= np.sin(found.subspace_.angle_bound) + 1e-12
    np.testing.assert_allclose(found.singular_values_, s[:3], rtol=1e-4)


def test_other_kinds_of_data_are_refused_by_name() -> None:
    for wrong in (np.array([["a", "b"], ["c", "d"]]), np.zeros((3, 2), "M8[ns]")):
        with pytest.raises(InputError):
            PCA(1).fit(wrong)
    with pytest.raises(InputError, match="dim"):
        open_matrix(np.zeros(5))


def test_a_damaged_chunk_is_named_with_its_rows(tmp_path) -> None:
    where = tmp_path / "x.zarr"
    zarr.create_array(where, shape=(40, 7), chunks=(10, 7), dtype="f8")[...] = table()
    chunk = where / "c" / "2" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(StoreError, match=r"x\.zarr cannot be read"):
        PCA(2).fit(where)
    (where / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"x\.zarr"):
        PCA(2).fit(where)
    with pytest.raises(InputError, match="does not exist"):
        PCA(2).fit(tmp_path / "none.zarr")


def test_too_little_memory_is_refused_with_what_would_do() -> None:
    x = table(1_000, 300)
    with pytest.raises(PlanError, match="set memory_limit to") as caught:
        PCA(3, memory_limit="100kB").fit(x)
    assert caught.value.needed is not None
    assert PCA(3, memory_limit=caught.value.needed).fit(x).plan_.peak_memory <= caught.value.needed


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_tol_without_a_gap_ends_and_says_so(solver: str) -> None:
    u, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((200, 30)))
    v, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((30, 30)))
    x = (u * np.r_[5, 4, 3, 2, 2, 2, np.full(24, 0.1)]) @ v.T
    x -= x.mean(axis=0)
    with pytest.raises(ConvergenceError, match=r"tol=1e-06 was not met: after \d+ pass(es)?") as caught:
        TruncatedSVD(4, solver=solver, tol=1e-6).fit(np.vstack([x, -x]))
    assert caught.value.subspace is not None
    assert caught.value.subspace.angle_bounds[2] < 1e-6


@pytest.mark.parametrize("solver", ["gram", "dual_gram", "krylov"])
def test_a_feature_that_is_constant_among_the_rows_that_count_has_no_spread(solver: str) -> None:
    rng = np.random.default_rng(0)
    weights = np.r_[0, 0, 0, rng.integers(1, 4, 14)]
    x = rng.standard_normal((17, 6))
    x[:, 2] = np.where(weights > 0, 0.37, 1.0)
    found = PCA(2, scale="std", solver=solver).fit(open_matrix(x, sample_weights=weights)).subspace_
    repeated = PCA(2, scale="std", solver=solver).fit(np.repeat(x, weights, axis=0)).subspace_
    np.testing.assert_allclose(found.explained_variance_ratio, repeated.explained_variance_ratio, rtol=1e-10)
    assert found.scale[2] == 1
