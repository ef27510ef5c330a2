"""Every kind of matrix: opened, walked along either side, fitted by every solver and scored, against dense NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import sparse as pydata
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import PCA, Operator, Subspace, TruncatedSVD, dottest, load, open_matrix, plan
from pipeline.errors import InputError, StoreError
from tests.problems import SOLVERS, exact

RNG = np.random.default_rng(11)
N, D = 90, 40


def counts(n: int = N, d: int = D, density: float = 0.2) -> np.ndarray:
    """Mostly zeros, with loud and silent features; the last row and a feature are empty."""
    rng = np.random.default_rng(5)
    x = rng.gamma(1.0, 1.0, (n, 3)) @ rng.gamma(0.5, 1.0, (3, d)) * np.geomspace(6, 0.5, d)
    x = np.where(rng.random((n, d)) < density, np.ceil(x), 0.0)
    x[-1], x[:, 7] = 0.0, 0.0
    return x


X = counts()
Z = X + 1j * counts(density=0.3)[:, ::-1]


def write_sparse(group: zarr.Group, matrix: Any) -> zarr.Group:
    """As anndata does."""
    group.attrs.update(
        {"encoding-type": f"{matrix.format}_matrix", "encoding-version": "0.1.0", "shape": list(matrix.shape)}
    )
    for name in ("data", "indices", "indptr"):
        values = getattr(matrix, name)
        group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(max(50, values.size // 20),))[...] = (
            values
        )
    return group


def write_names(group: zarr.Group, names: list[str]) -> None:
    group.attrs.update({"encoding-type": "dataframe", "_index": "index", "column-order": []})
    array = group.create_array("index", shape=(len(names),), dtype=str)
    array[...] = np.array(names, dtype=np.dtypes.StringDType())


def stored(where: Path, matrix: Any, form: int = 3) -> Path:
    write_sparse(zarr.open_group(where, mode="w", zarr_format=form), matrix)
    return where


def anndata(where: Path, form: int = 3) -> Path:
    root = zarr.open_group(where, mode="w", zarr_format=form)
    root.attrs["encoding-type"] = "anndata"
    write_sparse(root.create_group("X"), sp.csr_array(X))
    write_sparse(root.create_group("layers").create_group("counts"), sp.csc_array(2 * X))
    dense = root.create_group("obsm").create_array("X_pca", shape=(N, 4), dtype="f8")
    dense[...] = X[:, :4]
    raw = root.create_group("raw")
    write_sparse(raw.create_group("X"), sp.csr_array(np.hstack([X, X])))
    write_names(raw.create_group("var"), [f"raw{i}" for i in range(2 * D)])
    write_names(root.create_group("obs"), [f"cell{i}" for i in range(N)])
    write_names(root.create_group("var"), [f"gene{i}" for i in range(D)])
    return where


def operator(x: np.ndarray, block_rows: int | None = None) -> Operator:
    if block_rows is None:
        return Operator(x.shape, lambda r: x @ r, lambda y: x.conj().T @ y, x.dtype)
    return Operator(x.shape, lambda r, a, b: x[a:b] @ r, lambda y, a, b: x[a:b].conj().T @ y, x.dtype, block_rows)


KINDS: dict[str, Callable[[Path], tuple[Any, np.ndarray]]] = {
    "csr": lambda tmp: (sp.csr_array(X), X),
    "csc of integers": lambda tmp: (sp.csc_array(X.astype("i4")), X),
    "coo with doubles": lambda tmp: (twice(X), X),
    "float32": lambda tmp: (sp.csr_array(X.astype("f4")), X),
    "complex": lambda tmp: (sp.csr_array(Z), Z),
    "zarr csr, v3": lambda tmp: (stored(tmp / "x.zarr", sp.csr_array(X)), X),
    "zarr csc, v2": lambda tmp: (stored(tmp / "x.zarr", sp.csc_array(X), 2), X),
    "anndata, v3": lambda tmp: (anndata(tmp / "x.zarr"), X),
    "anndata layer, v2": lambda tmp: (open_matrix(anndata(tmp / "x.zarr", 2), "layers/counts"), 2 * X),
    "pydata": lambda tmp: (pydata.COO.from_numpy(X), X),
    "dask of scipy": lambda tmp: (da.from_array(X, chunks=(20, 13)).map_blocks(sp.csr_matrix), X),
    "dask of pydata": lambda tmp: (da.from_array(X, chunks=(20, -1)).map_blocks(pydata.COO.from_numpy), X),
    "xarray of pydata": lambda tmp: (xr.DataArray(pydata.COO.from_numpy(X), dims=("cell", "gene")), X),
    "picked": lambda tmp: (open_matrix(sp.csr_array(X), select={"sample": X[:, 0] > 0, "feature": slice(1, 30)}),
                           X[X[:, 0] > 0][:, 1:30]),
    "operator": lambda tmp: (operator(X), X),
    "operator in blocks": lambda tmp: (operator(X, 25), X),
    "complex operator": lambda tmp: (operator(Z, 25), Z),
    "scipy's operator": lambda tmp: (sp.linalg.aslinearoperator(X), X),
    "complex zarr": lambda tmp: (zarr_of(tmp / "x.zarr", Z), Z),
    "complex dask": lambda tmp: (da.from_array(Z, chunks=(20, 13)), Z),
    "wide csr": lambda tmp: (sp.csr_array(X.T), X.T),
    "wide complex csc": lambda tmp: (sp.csc_array(Z.T), Z.T),
    "wide operator": lambda tmp: (operator(X.T), X.T),
    "complex64": lambda tmp: (Z.astype("c8"), Z),
}  # fmt: skip


def twice(x: np.ndarray) -> sp.coo_array:
    """Every entry stored as two halves, in any order, with zeros that are stored."""
    rows, cols = np.indices(x.shape).reshape(2, -1)
    order = RNG.permutation(2 * x.size)
    where = np.concatenate([rows, rows])[order], np.concatenate([cols, cols])[order]
    return sp.coo_array((np.tile(x.ravel() / 2, 2)[order], where), shape=x.shape)


def zarr_of(where: Path, x: np.ndarray) -> Path:
    zarr.create_array(where, shape=x.shape, chunks=(17, 13), dtype=x.dtype)[...] = x
    return where


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_are_the_same_matrix(kind: str, tmp_path: Path) -> None:
    source, dense = KINDS[kind](tmp_path)
    matrix = open_matrix(source)
    assert matrix.shape == dense.shape
    low = matrix if matrix.source.collections else matrix.cut_at(17)  # chunks of Dask come whole
    for cut, axis in ((low, 0), (low.T, 1)):
        whole = np.concatenate([cut.read(i) for i in range(cut.n_blocks)], axis=axis)
        np.testing.assert_allclose(whole, dense, rtol=1e-6)
        assert dottest(cut) < 1e-6
    if kind != "dask of pydata":  # its slices are compiled, for ten seconds
        np.testing.assert_allclose(matrix.rows(3, 21).read(0), dense[3:21], rtol=1e-6)


@pytest.mark.parametrize("solver", [*SOLVERS, "single_pass"] if "single_pass" not in SOLVERS else SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_solver_finds_what_numpy_finds(kind: str, solver: str, tmp_path: Path) -> None:
    source, dense = KINDS[kind](tmp_path)
    for model, center in ((PCA, True), (TruncatedSVD, False)):
        z = dense - dense.mean(axis=0) if center else dense
        _, values, rows = np.linalg.svd(z, full_matrices=False)
        found = model(3, solver=solver, tol=1e-3).fit(source)
        single = found.components_.dtype in (np.float32, np.complex64)
        np.testing.assert_allclose(found.singular_values_, values[:3], rtol=1e-5)
        assert projector_gap(found.components_, rows[:3]) <= max(np.sin(found.subspace_.angle_bound), 1e-6)
        scores = np.asarray(found.transform(source))
        np.testing.assert_allclose(scores, z @ found.components_.conj().T, atol=1e-3 if single else 1e-9)
        assert scores.dtype == found.components_.dtype
        variance = np.square(np.abs(dense - dense.mean(axis=0))).sum() / (len(dense) - center)
        assert found.subspace_.total_variance == pytest.approx(variance, rel=1e-5)


def projector_gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.conj().T @ a - b.conj().T @ b, 2))


WEIGHTS, TIMES = RNG.uniform(0.5, 2, D), RNG.integers(0, 4, N)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scale", [None, "std"])
@pytest.mark.parametrize("kind", [sp.csr_array, sp.csc_array, lambda x: operator(x, 25), np.asarray])
def test_weights_and_repeated_rows_are_implicit_too(kind: Any, scale: str | None, solver: str) -> None:
    matrix = open_matrix(kind(X), weights=WEIGHTS, sample_weights=TIMES)
    truth = exact(np.repeat(X, TIMES, axis=0), scale=scale, weights=WEIGHTS)
    found = PCA(3, scale=scale, solver=solver, tol=1e-5).fit(matrix)
    np.testing.assert_allclose(found.singular_values_, truth.values[:3], rtol=1e-7)
    np.testing.assert_allclose(found.mean_, truth.mean, atol=1e-12)
    assert truth.angle(found.components_) < 1e-5


@settings(max_examples=25, deadline=None)
@given(
    density=st.floats(0.0, 1.0),
    shape=st.tuples(st.integers(3, 30), st.integers(2, 30)),
    shift=st.sampled_from([0.0, 1e4]),
    solver=st.sampled_from(SOLVERS),
    form=st.sampled_from(["csr", "csc"]),
)
def test_no_bound_of_sparse_data_is_below_the_truth(density, shape, shift, solver, form) -> None:
    rng = np.random.default_rng([int(1e6 * density), *shape])
    x = np.where(rng.random(shape) < density, rng.standard_normal(shape) + shift, 0.0)
    k = min(3, *shape) if min(shape) > 3 else 1
    found, truth = PCA(k, solver=solver).fit(sp.coo_array(x).asformat(form)), exact(x)
    for j in range(1, k + 1):
        assert truth.angle(found.components_[:j]) <= np.sin(found.subspace_.angle_bounds[j - 1]) + 1e-9


def test_sparse_data_costs_what_is_stored_of_it(tmp_path: Path) -> None:
    """8 GB as a dense matrix; the plan, the bytes read and the answer know nothing of them."""
    big = sp.random_array((200_000, 5_000), density=1e-4, rng=np.random.default_rng(0), format="csr")
    big = sp.csr_array(big + sp.csr_array(([900.0, 500.0], ([5, 7], [11, 13])), shape=big.shape))
    source = stored(tmp_path / "big.zarr", big)
    matrix = open_matrix(source)
    assert matrix.bytes_a_pass < 4e6
    model = PCA(2, solver="krylov", memory_limit="1GB")
    assert plan(matrix, model).bytes_read < 4e7
    found = model.fit(matrix)
    np.testing.assert_allclose(found.singular_values_, [900, 500], rtol=1e-3)
    assert found.transform(source).shape == (200_000, 2)


def test_sparse_blocks_are_read_once_and_multiplied_often(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tastes = rng.dirichlet(np.full(1500, 0.02), 12)
    x = sp.csr_array(rng.poisson(60 * tastes[rng.integers(0, 12, 20_000)]).astype("f4"))
    path = stored(tmp_path / "many.zarr", x)
    model = PCA(10, solver="krylov").fit(str(path))
    read = [walk["bytes"] for walk in model.subspace_.provenance["walks"]]
    assert model.plan_.blocks_kept == model.plan_.n_blocks
    assert 4 < len(read) < model.plan_.passes  # no more than it takes for the eigenvalues to settle
    assert model.plan_.bytes_read == read[0] == sum(read)
    dense = x.toarray().astype(float)
    values = np.sqrt(np.linalg.eigvalsh(20_000 * np.cov(dense.T, bias=True))[:-11:-1])
    np.testing.assert_allclose(model.singular_values_, values, rtol=1e-6)
    np.testing.assert_allclose(PCA(10, solver="krylov").fit(x).singular_values_, values, rtol=1e-6)
    # The scores of the fit come from the same blocks.
    again = PCA(10, solver="krylov")
    scores = again.fit_transform(str(path))
    assert again.plan_.bytes_read == read[0]
    np.testing.assert_allclose(scores, model.transform(x), rtol=1e-4, atol=1e-4)
    # With too little memory to keep the blocks they are wide, and passes are few.
    assert plan(str(path), PCA(10, solver="krylov", memory_limit="125MB")).passes == 6
    for limit in range(125_000_000, 250_000_000, 5_000_000):  # all blocks are kept or none, as chunks are shared
        less = plan(str(path), PCA(10, solver="krylov", memory_limit=limit))
        assert less.blocks_kept in (0, less.n_blocks)


@pytest.mark.parametrize("solver", ["gram", "dual_gram", "krylov"])
@pytest.mark.parametrize("kind", ["csr", "csc", "nan", "complex", "operator"])
def test_a_fit_gives_the_scores_that_a_transform_gives(kind: str, solver: str, tmp_path: Path) -> None:
    x = sp.random_array((90, 40), density=0.3, rng=np.random.default_rng(3)).toarray()
    options: dict[str, Any] = {"scale": "std"}
    data: Any
    if kind == "complex":
        x = x + 1j * x[::-1]
        data = zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(20, 20))
    elif kind == "operator":
        data = Operator(x.shape, lambda r: x @ r, lambda y: x.T @ y)
    else:
        if kind == "nan":
            x[x > 0.9], options["missing"] = np.nan, "mean"
        data = stored(tmp_path / "x.zarr", (sp.csc_array if kind == "csc" else sp.csr_array)(x))
    model = PCA(3, solver=solver, **options)
    np.testing.assert_allclose(model.fit_transform(data), model.transform(data), atol=1e-9)


def test_blocks_of_stored_rows_read_nothing_else(tmp_path: Path) -> None:
    matrix = open_matrix(stored(tmp_path / "x.zarr", sp.csr_array(X)))
    whole = np.asarray(matrix.source.data)
    pointer = np.asarray(matrix.source.indptr)
    last = (len(whole) - 1) // 50
    (tmp_path / "x.zarr" / "data" / "c" / str(last)).write_bytes(b"damaged")
    safe = int(np.searchsorted(pointer, last * 50, side="right")) - 1
    np.testing.assert_array_equal(matrix.rows(0, safe).read(0), X[:safe])
    with pytest.raises(StoreError, match=r"rows .* cannot be read"):
        matrix.read(0)
    assert matrix.bytes_a_pass < matrix.T.bytes_a_pass * 1.01


def test_dtypes_of_pydata_that_scipy_does_not_know() -> None:
    half = pydata.COO.from_numpy(X.astype("f2"))
    chunked = da.from_array(X.astype("f2"), chunks=(40, D)).map_blocks(pydata.COO.from_numpy)
    expected = PCA(3).fit(X)
    for data in (half, chunked, xr.DataArray(half), pydata.COO.from_numpy(X.astype(">f4"))):
        model = PCA(3).fit(data)
        np.testing.assert_allclose(model.singular_values_, expected.singular_values_, rtol=1e-5)
        assert np.asarray(model.transform(data)).dtype == np.float32


def test_anndata_knows_cells_and_genes(tmp_path: Path) -> None:
    where = anndata(tmp_path / "a.zarr")
    found = PCA(2).fit(where)
    assert found.feature_names_in_[:2].tolist() == ["gene0", "gene1"]
    assert found.subspace_.features.coords["feature"].values[3] == "gene3"
    assert open_matrix(where).samples.describe(4) == "sample=cell4"
    raw = open_matrix(where, variable="raw")
    assert raw.shape == (N, 2 * D)
    assert raw.features.describe(2) == "feature=raw2"
    assert open_matrix(where, variable="obsm/X_pca").shape == (N, 4)
    assert open_matrix(where, variable=["X", "layers/counts"]).shape == (N, 2 * D)
    mask = X[:, 0] > 0
    some = open_matrix(where, select={"obs": mask, "var": np.arange(D)[::-1]})
    np.testing.assert_array_equal(some.read(0), X[mask][:, ::-1])
    assert some.features.describe(0) == f"feature=gene{D - 1}"
    with pytest.raises(InputError, match="no matrix 'layers/none': it has X, raw/X, layers/counts, obsm/X_pca"):
        open_matrix(where, variable="layers/none")
    np.testing.assert_array_equal(open_matrix(where, sample_dims="feature").read(0), X.T)


@pytest.mark.parametrize("variable", [None, "layers/counts", "raw", "obsm/X_pca", ["X", "layers/counts"]])
def test_an_anndata_object_is_as_its_store(variable: Any, tmp_path: Path) -> None:
    ad, where = pytest.importorskip("anndata"), tmp_path / "a.zarr"
    cells = ad.AnnData(sp.csr_matrix(X), layers={"counts": sp.csc_matrix(2 * X)}, obsm={"X_pca": X[:, :4]})
    cells.obs_names, cells.var_names = [f"cell{i}" for i in range(N)], [f"gene{i}" for i in range(D)]
    cells.raw = cells.copy()
    cells.write_zarr(where)
    held, kept = (open_matrix(source, variable=variable) for source in (cells, where))
    np.testing.assert_array_equal(held.rows(0, N).read(0), kept.rows(0, N).read(0))
    assert (held.samples.describe(4), held.features.describe(2)) == (
        kept.samples.describe(4),
        kept.features.describe(2),
    )
    if variable is None:
        found = PCA(3).fit(cells)
        np.testing.assert_allclose(found.singular_values_, PCA(3).fit(where).singular_values_)
        np.testing.assert_allclose(found.transform(cells[:60]), found.transform(where)[:60])
        with pytest.raises(InputError, match="first gene39 instead of gene0"):
            found.transform(cells[:, ::-1])
        with pytest.raises(InputError, match="no matrix 'layers/none': it has X, raw/X, layers/counts, obsm/X_pca"):
            open_matrix(cells, variable="layers/none")


def test_stores_that_are_no_sparse_matrix_say_what_is_wrong(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "x.zarr", mode="w")
    group.attrs.update({"encoding-type": "csr_matrix", "shape": [3, 2]})
    with pytest.raises(StoreError, match="it has no data"):
        open_matrix(tmp_path / "x.zarr")
    stored(tmp_path / "x.zarr", sp.csr_array(X))
    zarr.open_group(tmp_path / "x.zarr").attrs["shape"] = [N - 1, D]
    with pytest.raises(StoreError, match=f"has {N} pointers"):
        open_matrix(tmp_path / "x.zarr")
    zarr.open_group(tmp_path / "x.zarr").attrs["shape"] = [N, 10]
    with pytest.raises(StoreError, match="outside of the matrix"):
        PCA(2).fit(tmp_path / "x.zarr")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sparse_entries_that_are_no_numbers_are_named(value: float, solver: str) -> None:
    x = X.copy()
    x[40, 9] = x[50, 3] = value
    with pytest.raises(InputError, match=r"row 40, feature 9 .*of 2 such"):
        PCA(2, solver=solver).fit(sp.csr_array(x))
    with pytest.raises(InputError, match="row 40, feature 9"):
        PCA(2).fit(X).transform(sp.csr_array(x))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array, sp.csc_array])
def test_missing_entries_of_sparse_data_are_filled_with_means(kind: Any, solver: str) -> None:
    x = X.copy()
    x[RNG.random(X.shape) < 0.1] = np.nan
    x[:, 4] = np.nan
    mean = np.nanmean(np.delete(x, 4, axis=1), axis=0)
    dense = np.delete(x, 4, axis=1)
    dense = np.where(np.isnan(dense), mean, dense)
    found = PCA(3, missing="mean", solver=solver, tol=1e-6).fit(kind(x))
    truth = exact(dense)
    np.testing.assert_allclose(found.singular_values_, truth.values[:3], rtol=1e-8)
    np.testing.assert_allclose(
        found.transform(kind(x)), (dense - mean) @ np.delete(found.components_, 4, axis=1).T, atol=1e-9
    )


# Genotypes


def genotypes() -> tuple[np.ndarray, np.ndarray]:
    """Calls with -1 where there is none, and what they are when standardised."""
    rng = np.random.default_rng(8)
    calls = rng.binomial(2, rng.uniform(0.05, 0.95, 30), (80, 30)).astype(np.int8)
    calls[:, 5], calls[:, 6] = 2, 0
    calls[rng.random(calls.shape) < 0.06] = -1
    seen = np.where(calls < 0, np.nan, calls.astype(float))
    p = np.nanmean(seen, axis=0) / 2
    spread = np.sqrt(2 * p * (1 - p))
    return calls, np.where(np.isnan(seen), 0.0, (seen - 2 * p) / np.where(spread > 0, spread, 1.0))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", [
    np.asarray, sp.csr_array, lambda g: g.astype("i4"), lambda g: da.from_array(g, chunks=(30, 30)),
    lambda g: np.where(g < 0, np.nan, g.astype("f4")), lambda g: xr.DataArray(g, dims=("sample", "variant")),
])  # fmt: skip
def test_missing_calls_count_as_the_mean_and_monomorphic_variants_as_nothing(kind: Any, solver: str) -> None:
    calls, z = genotypes()
    found = PCA(3, scale="genotype", missing="mean", solver=solver, tol=1e-3).fit(kind(calls))
    truth = exact(z, center=False)
    rtol = 1e-5 if found.components_.dtype == np.float32 else 1e-8
    np.testing.assert_allclose(found.singular_values_, truth.values[:3], rtol=rtol)
    np.testing.assert_allclose(np.asarray(found.transform(kind(calls))), z @ found.components_.T, atol=1e-4)
    assert np.abs(found.components_[:, [5, 6]]).max() < 1e-6


def test_a_missing_call_is_an_error_where_nothing_else_was_said() -> None:
    calls, _ = genotypes()
    row, feature = np.argwhere(calls < 0)[0]
    with pytest.raises(
        InputError, match=rf"missing call \(-1 or NaN\) at row {row}, feature {feature}.*missing='mean'"
    ):
        PCA(3, scale="genotype").fit(calls)
    known = PCA(3, scale="genotype").fit(np.maximum(calls, 0))
    with pytest.raises(InputError, match=f"row {row}"):
        known.transform(calls)
    np.testing.assert_allclose(PCA(3).fit(calls).mean_, calls.mean(axis=0))  # without the scale, -1 is a number


# Complex numbers


@pytest.mark.parametrize("dtype", ["c8", "c16"])
def test_complex_models_are_kept_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    z = Z.astype(dtype)
    found = PCA(3, scale="std").fit(z)
    assert found.components_.dtype == np.dtype(dtype)
    assert found.singular_values_.dtype == np.float64
    largest = found.components_[np.arange(3), np.abs(found.components_).argmax(axis=1)]
    assert np.all(largest.real > 0)
    np.testing.assert_allclose(largest.imag, 0, atol=1e-6)
    found.subspace_.save(tmp_path / "m.zarr")
    assert load(tmp_path / "m.zarr") == found.subspace_
    assert Subspace.from_dataset(found.subspace_.to_dataset()) == found.subspace_
    scores = found.transform(z)
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0), found.singular_values_, rtol=1e-5)
    np.testing.assert_allclose(PCA().fit(z).inverse_transform(PCA().fit(z).transform(z)), z, atol=1e-4)
    np.testing.assert_array_equal(
        found.transform(z, out=tmp_path / "s.zarr").values, found.transform(xr.DataArray(z, dims=("a", "b"))).values
    )


def test_complex_batches_merge_and_complex_likelihoods_are_those_of_scipy() -> None:
    batched = PCA(D)
    for start in range(0, N, 45):
        batched.partial_fit(Z[start : start + 45])
    truth = PCA(4).fit(Z)
    np.testing.assert_allclose(batched.singular_values_[:4], truth.singular_values_, rtol=1e-9)
    assert batched.subspace_.truncate(4).distance(truth.subspace_).max() < 1e-6
    z = Z[:, :5] - Z[:, :5].mean(axis=0)
    covariance = z.T @ z.conj() / (N - 1)
    distance = np.einsum("ni,ij,nj->n", z.conj(), np.linalg.inv(covariance), z).real
    expected = -(5 * np.log(np.pi) + np.linalg.slogdet(covariance)[1] + distance)
    np.testing.assert_allclose(PCA(5).fit(Z[:, :5]).score_samples(Z[:, :5]), expected, rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(4, 40), st.integers(3, 40)),
    decay=st.floats(0.3, 0.95),
    seed=st.integers(0, 10**6),
    solver=st.sampled_from([*SOLVERS, "single_pass"]),
    dtype=st.sampled_from(["c8", "c16"]),
)
def test_no_bound_of_complex_data_is_below_the_truth(shape, decay: float, seed: int, solver: str, dtype: str) -> None:
    rng, r = np.random.default_rng(seed), min(shape[0] - 1, shape[1])
    left, right = (rng.standard_normal((m, r)) + 1j * rng.standard_normal((m, r)) for m in shape)
    u, v = np.linalg.qr(left - left.mean(axis=0))[0], np.linalg.qr(right)[0]
    x = ((u * decay ** np.arange(r)) @ v.conj().T + rng.normal()).astype(dtype)
    wide = x.astype("c16")
    rows = np.linalg.svd(wide - wide.mean(axis=0))[2]
    k = min(3, *shape) - (shape[0] == 3)
    found = PCA(k, solver=solver).fit(x)
    for j in range(1, k + 1):
        basis = np.linalg.qr(found.components_[:j].conj().T.astype("c16"))[0]
        sine = np.linalg.norm(basis - rows[:j].conj().T @ (rows[:j] @ basis), 2)
        assert sine <= np.sin(found.subspace_.angle_bounds[j - 1]) + 1e-12


def test_a_target_that_is_complex_is_refused() -> None:
    with pytest.raises(InputError, match="Complex data not supported"):
        PCA(1).fit(X, np.ones(N) * 1j)


# Selections and operators


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array, lambda x: da.from_array(x, chunks=(20, 13))])
def test_masks_pick_rows_and_columns(kind: Any) -> None:
    rows, columns = X[:, 0] > 0, X[0] > 0
    matrix = open_matrix(kind(X), select={"sample": rows, "feature": columns})
    np.testing.assert_array_equal(matrix.read(0)[:5], X[rows][:5, columns])
    found, truth = PCA(2).fit(matrix), exact(X[rows][:, columns])
    np.testing.assert_allclose(found.singular_values_, truth.values[:2], rtol=1e-9)
    with pytest.raises(InputError, match=r"has shape \(3,\)"):
        open_matrix(kind(X), select={"sample": np.ones(3, bool)})
    with pytest.raises(InputError, match="False everywhere"):
        open_matrix(kind(X), select={"feature": np.zeros(D, bool)})


def test_operators_that_are_wrong_are_refused_before_the_fit() -> None:
    calls = []

    def counted(r: np.ndarray) -> np.ndarray:
        calls.append(r.shape[1])
        return X @ r

    with pytest.raises(InputError, match=r"not adjoint.*differ by \d"):
        PCA(2).fit(Operator(X.shape, counted, lambda y: 1.01 * X.T @ y))
    assert sum(calls) == 1
    with pytest.raises(InputError, match="rmatmat of the operator gives NaN or infinity"):
        PCA(2).fit(Operator(X.shape, counted, lambda y: np.nan * X.T @ y))
    with pytest.raises(InputError, match=r"matmat of the operator gives the shape \(40, 1\)"):
        PCA(2).fit(Operator(X.shape, lambda r: X.T @ X @ r, lambda y: X.T @ y))
    with pytest.raises(InputError, match="complex dtype"):
        PCA(2).fit(Operator(Z.shape, lambda r: Z @ r, lambda y: Z.conj().T @ y))
    with pytest.raises(InputError, match="block_rows"):
        Operator(X.shape, np.dot, np.dot, block_rows=0)
    with pytest.raises(InputError, match="no names"):
        open_matrix(operator(X), select={"sample": slice(3)})
