"""Containers: whatever goes in comes out as the same kind, with its own coordinates and the right numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
import zarr
from distributed import Client, LocalCluster

from pipeline import PCA, TruncatedSVD, open_matrix
from pipeline.errors import InputError, StoreError
from pipeline.rowwise import _Write

N, LAT, LON = 60, 4, 5
FORMATS = ("csr", "csc", "coo", "lil", "dok", "bsr", "dia")


def rows(n: int = N, d: int = LAT * LON, seed: int = 0) -> np.ndarray:
    """Rows with a clear spectrum about a mean of 10."""
    rng = np.random.default_rng(seed)
    return 10 + (rng.normal(size=(n, 4)) * [9, 5, 3, 2]) @ rng.normal(size=(4, d)) + 0.1 * rng.normal(size=(n, d))


def field(values: np.ndarray | None = None) -> xr.DataArray:
    """A field over time, lat and lon, with all the kinds of coordinates that people have."""
    values = rows() if values is None else values
    time = pd.date_range("2000-01-31", periods=N, freq="ME")
    return xr.DataArray(
        values.reshape(N, LAT, LON),
        {
            "time": ("time", time, {"long_name": "time of the mean"}),
            "season": ("time", time.quarter),
            "lat": ("lat", np.linspace(-30.0, 30.0, LAT), {"units": "degrees_north"}),
            "lon": np.arange(LON) * 10.0,
            "area": (("lat", "lon"), np.ones((LAT, LON))),
            "level": 850,
        },
        ("time", "lat", "lon"),
        name="sst",
    )


def ensemble() -> xr.DataArray:
    """The same rows as twelve times of five members."""
    dims = ("time", "member", "lat", "lon")
    return xr.DataArray(rows().reshape(12, 5, LAT, LON), dims=dims, coords={"member": list("abcde")})


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    """What plain NumPy says of `rows()`, by the SVD."""
    x = rows()
    mean = x.mean(axis=0)
    _, _, vt = np.linalg.svd(x - mean, full_matrices=False)
    v = vt[:3] * np.sign(vt[np.arange(3), np.abs(vt[:3]).argmax(axis=1)])[:, None]
    scores = (x - mean) @ v.T
    rest = x - mean - scores @ v
    return {
        "components": v,
        "scores": scores,
        "restored": scores @ v + mean,
        "error": (rest**2).sum(axis=1),
        "likelihood": PCA(n_components=3).fit(x).score_samples(x),
    }


def check(model: PCA, X: Any, reference: dict[str, np.ndarray], kind: type, shape: tuple[int, ...] = (N,)) -> None:
    """All four answers are of a kind and right."""
    scores = model.transform(X)
    answers = {
        "scores": scores,
        "restored": model.inverse_transform(scores),
        "error": model.reconstruction_error(X),
        "likelihood": model.score_samples(X),
    }
    for name, answer in answers.items():
        assert isinstance(answer, kind), name
        assert answer.shape[: len(shape)] == shape, name
        expected = reference[name].reshape(answer.shape)
        np.testing.assert_allclose(np.asarray(answer), expected, rtol=1e-7, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(model.components_, reference["components"], atol=1e-9)


@pytest.mark.parametrize("convert", [np.asarray, np.ndarray.tolist, np.asfortranarray], ids=["C", "list", "F"])
def test_plain_rows(convert: Callable[[np.ndarray], Any], reference: dict[str, np.ndarray]) -> None:
    X = convert(rows())
    check(PCA(n_components=3).fit(X), X, reference, np.ndarray)


def test_masked_entries_are_missing(reference: dict[str, np.ndarray]) -> None:
    X = np.ma.masked_array(rows(), mask=np.zeros((N, LAT * LON), bool))
    check(PCA(n_components=3).fit(X), X, reference, np.ndarray)
    X[:, 4] = X[7, 3] = np.ma.masked
    for masked in (X, X.reshape(N, LAT, LON), X.astype(int)):
        with pytest.raises(InputError, match="NaN at row 7, feature 3"):
            PCA(n_components=3).fit(masked)
    X[7, 3] = 0.0
    assert np.isnan(PCA(n_components=3).fit(X).mean_).nonzero()[0].tolist() == [4]


def test_an_array_of_many_dims(reference: dict[str, np.ndarray]) -> None:
    X = rows().reshape(N, LAT, LON)
    check(PCA(n_components=3).fit(X), X, reference, np.ndarray)
    flat = PCA(n_components=3).fit(X)
    np.testing.assert_allclose(flat.transform(rows()), reference["scores"], atol=1e-9)


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("form", FORMATS)
def test_sparse_formats(form: str, kind: str) -> None:
    X = rows() * (np.random.default_rng(1).random((N, LAT * LON)) < 0.3)
    sparse = getattr(scipy.sparse, f"{form}_{kind}")(X)
    dense, model = PCA(n_components=3).fit(X), PCA(n_components=3).fit(sparse)
    np.testing.assert_allclose(model.components_, dense.components_, atol=1e-9)
    for name in ("transform", "score_samples", "reconstruction_error"):
        answer = getattr(model, name)(sparse)
        assert isinstance(answer, np.ndarray)
        np.testing.assert_allclose(answer, getattr(dense, name)(X), rtol=1e-7, atol=1e-7)
    svd = TruncatedSVD(n_components=3).fit(sparse)
    np.testing.assert_allclose(svd.singular_values_, np.linalg.svd(X, compute_uv=False)[:3])


def test_a_data_frame_has_names(reference: dict[str, np.ndarray]) -> None:
    names = [f"gene {i}" for i in range(LAT * LON)]
    X = pd.DataFrame(rows(), columns=names, index=pd.date_range("2020", periods=N))
    model = PCA(n_components=3).fit(X)
    check(model, X, reference, np.ndarray)
    assert model.feature_names_in_.tolist() == names
    table = PCA(n_components=3).set_output(transform="pandas").fit_transform(X)
    assert list(table.columns) == ["pca0", "pca1", "pca2"] == model.get_feature_names_out().tolist()
    pd.testing.assert_index_equal(table.index, X.index, check_names=False)
    np.testing.assert_allclose(table, reference["scores"], atol=1e-9)
    with pytest.raises(InputError, match="feature names"):
        model.transform(X.rename(columns={"gene 0": "other"}))
    assert PCA(n_components=3).fit(X.astype(np.float32)).transform(X.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("chunks", [(N, -1), (7, -1), (7, 3), ((1, N - 1), (19, 1)), (N, 1)], ids=str)
def test_dask_stays_lazy(chunks: Any, reference: dict[str, np.ndarray]) -> None:
    X = da.from_array(rows(), chunks=chunks)
    model = PCA(n_components=3).fit(X)
    check(model, X, reference, da.Array)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        scores = model.transform(X)
        restored = model.inverse_transform(scores)
        model.score_samples(X), model.reconstruction_error(X)
    assert (scores.shape, restored.shape, scores.dtype) == ((N, 3), (N, LAT * LON), np.float64)
    assert scores.chunks[0] == X.chunks[0] == restored.chunks[0]


def test_dask_with_unknown_heights(reference: dict[str, np.ndarray]) -> None:
    X = da.from_array(np.concatenate([rows(), np.full((9, LAT * LON), -1e6)]), chunks=(11, 7))
    X = X[X[:, 0] > -1e5]
    assert np.isnan(X.shape[0])
    model = PCA(n_components=3).fit(X)
    scores = model.transform(X)
    assert np.isnan(scores.shape[0])
    np.testing.assert_allclose(scores.compute(), reference["scores"], atol=1e-9)
    np.testing.assert_allclose(model.inverse_transform(scores).compute(), reference["restored"], atol=1e-9)
    np.testing.assert_allclose(model.score_samples(X).compute(), reference["likelihood"])
    assert model.score(X) == pytest.approx(reference["likelihood"].mean())


def test_dask_of_many_dims_and_sparse_blocks(reference: dict[str, np.ndarray]) -> None:
    cube = da.from_array(rows().reshape(N, LAT, LON), chunks=(13, 3, 2))
    model = PCA(n_components=3).fit(cube)
    check(model, cube, reference, da.Array)
    with pytest.raises(InputError, match="16 features"):
        model.transform(cube[:, :, :4])
    sparse = da.from_array(rows(), chunks=(13, -1)).map_blocks(scipy.sparse.csr_matrix)
    np.testing.assert_allclose(PCA(n_components=3).fit(sparse).components_, reference["components"], atol=1e-9)
    np.testing.assert_allclose(model.transform(sparse).compute(), reference["scores"], atol=1e-9)


@pytest.mark.parametrize("order", ["lat time lon", "lon lat time", "time lon lat"])
def test_stored_dims_in_any_order(order: str, tmp_path: Path, reference: dict[str, np.ndarray]) -> None:
    field().transpose(*order.split()).to_dataset().to_zarr(tmp_path / "turned.zarr", consolidated=False)
    model = PCA(n_components=3).fit(field())
    if order == "lat time lon":
        np.testing.assert_allclose(model.transform(tmp_path / "turned.zarr"), reference["scores"], atol=1e-9)
    else:
        with pytest.raises(InputError, match="transpose"):
            model.transform(tmp_path / "turned.zarr")


@pytest.fixture(params=["array", "path", "v2 path", "group", "MemoryStore"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """`rows()` in Zarr, named in every way that people name it."""
    where = tmp_path / "data.zarr"
    match request.param:
        case "array":
            array = zarr.create_array(where, shape=(N, LAT * LON), chunks=(7, 6), dtype="f8")
            array[:] = rows()
            return array
        case "path" | "v2 path":
            field().to_dataset().to_zarr(where, zarr_format=2 if request.param == "v2 path" else 3, consolidated=False)
            return where if request.param == "path" else str(where)
        case "group":
            field().to_dataset().chunk(time=7).to_zarr(where, consolidated=False)
            return zarr.open_group(where)
    store = zarr.storage.MemoryStore()
    field().to_dataset().to_zarr(store, consolidated=False)
    return store


def test_zarr(stored: Any, reference: dict[str, np.ndarray]) -> None:
    check(PCA(n_components=3).fit(stored), stored, reference, np.ndarray)


def test_float32_in_float32_out(tmp_path: Path) -> None:
    cube = field(rows().astype(np.float32))
    where = tmp_path / "data.zarr"
    cube.to_dataset().to_zarr(where, consolidated=False)
    flat = rows().astype(np.float32)
    frame = pd.DataFrame(flat)
    for X in (flat, flat.astype(np.float16), cube, cube.to_dataset(), cube.chunk(), where, frame, da.from_array(flat),
              scipy.sparse.csr_array(flat), open_matrix(flat)):  # fmt: skip
        model = PCA(n_components=3).fit(X)
        scores = model.transform(X)
        assert model.components_.dtype == scores.dtype == model.inverse_transform(scores).dtype == np.float32, type(X)
        assert model.score_samples(X).dtype == model.reconstruction_error(X).dtype == np.float32, type(X)
        whitened = PCA(n_components=3, whiten=True).fit(X)
        assert whitened.inverse_transform(whitened.transform(X)).dtype == np.float32


@pytest.mark.parametrize("integer", [np.int8, np.uint16, np.int64, bool])
def test_integers_become_float64(integer: type) -> None:
    X = np.random.default_rng(0).integers(0, 100, (N, 6)).astype(integer)
    expected = PCA(n_components=2).fit(X.astype(float))
    for container in (X, da.from_array(X, chunks=9), xr.DataArray(X), scipy.sparse.csr_array(X)):
        model = PCA(n_components=2).fit(container)
        scores = model.transform(container)
        assert model.components_.dtype == scores.dtype == np.float64
        np.testing.assert_allclose(np.asarray(scores), expected.transform(X.astype(float)), atol=1e-9)


def lazily_backed(tmp_path: Path) -> xr.DataArray:
    field().to_dataset().to_zarr(tmp_path / "lazy.zarr", consolidated=False)
    return xr.open_zarr(tmp_path / "lazy.zarr", chunks=None, consolidated=False)["sst"]


@pytest.mark.parametrize("backing", ["numpy", "dask", "lazy"])
def test_xarray_keeps_its_coordinates(backing: str, tmp_path: Path, reference: dict[str, np.ndarray]) -> None:
    X = lazily_backed(tmp_path) if backing == "lazy" else field()
    X = X.chunk(time=7, lat=3) if backing == "dask" else X
    model = PCA(n_components=3).fit(X)
    check(model, X, reference, xr.DataArray)
    scores = model.transform(X)
    assert scores.dims == ("time", "mode")
    assert scores["mode"].values.tolist() == [1, 2, 3]
    for name in ("time", "season", "level"):
        xr.testing.assert_identical(scores[name].reset_coords(drop=True), X[name].reset_coords(drop=True))
    assert (scores.chunks is not None) == (backing == "dask")
    restored = model.inverse_transform(scores)
    assert (restored.dims, restored.name) == (X.dims, "sst")
    assert set(restored.coords) == set(X.coords)
    for name in ("time", "lat", "lon", "area"):
        np.testing.assert_array_equal(restored[name], X[name])
    assert restored.lat.attrs == {"units": "degrees_north"}
    for answer in (model.score_samples(X), model.reconstruction_error(X)):
        assert answer.dims == ("time",)
        np.testing.assert_array_equal(answer.time, X.time)
    xr.testing.assert_allclose(model.inverse_transform(scores.T), restored)


@pytest.mark.parametrize("backing", ["numpy", "dask"])
@pytest.mark.parametrize("order", ["lat time lon", "lon lat time", "time lon lat"])
def test_dims_in_any_order(order: str, backing: str, reference: dict[str, np.ndarray]) -> None:
    X = field().transpose(*order.split())
    X = X.chunk(time=13, lat=2) if backing == "dask" else X
    model = PCA(n_components=3).fit(field())
    scores = model.transform(X)
    assert scores.dims == ("time", "mode")
    np.testing.assert_allclose(scores, reference["scores"], atol=1e-9)
    np.testing.assert_allclose(model.score_samples(X), reference["likelihood"])
    np.testing.assert_allclose(model.transform(X.to_dataset()), reference["scores"], atol=1e-9)
    # The sample dim is named when it is not the first; then the model finds it by itself.
    other = PCA(n_components=3).fit(open_matrix(X, sample_dims="time"))
    np.testing.assert_allclose(np.abs(other.transform(X)), np.abs(reference["scores"]), atol=1e-9)
    restored = other.inverse_transform(other.transform(field()))
    np.testing.assert_allclose(restored.transpose("time", "lat", "lon").data.reshape(N, -1), reference["restored"])


def test_new_samples_of_other_features_are_refused() -> None:
    model = PCA(n_components=2).fit(field())
    flat = PCA(n_components=2).fit(rows())
    for X in (field()[:, 1:], field().chunk()[:, 1:], field()[:, 1:].to_dataset()):
        with pytest.raises(InputError, match="15 features"):
            model.transform(X)
    fewer = rows()[:, :15]
    for other in (fewer, fewer.tolist(), da.from_array(fewer), scipy.sparse.csr_array(fewer), fewer.reshape(N, 3, 5)):
        with pytest.raises(InputError, match="15 features"):
            flat.transform(other)
    turned = field().isel(lat=slice(None, None, -1))
    for X in (turned, turned.chunk(time=5), turned.to_dataset(), open_matrix(turned)):
        with pytest.raises(InputError, match="lat"):
            model.transform(X)
    with pytest.raises(InputError, match="mode"):
        model.inverse_transform(field())
    with pytest.raises(InputError, match="columns"):
        model.inverse_transform(np.zeros((3, 3)))
    with pytest.raises(InputError, match="columns"):
        model.inverse_transform(da.zeros((3, 3)))
    with pytest.raises(InputError, match="not numbers"):
        model.inverse_transform([["a", "b"]])
    with pytest.raises(InputError, match="1 dim"):
        model.transform(da.zeros(20))


def test_several_sample_dims(reference: dict[str, np.ndarray]) -> None:
    X = ensemble()
    for data in (X, X.chunk(time=5, member=2, lat=3)):
        model = PCA(n_components=3).fit(open_matrix(data, sample_dims=("time", "member")))
        check(model, data, reference, xr.DataArray, (12, 5))
        scores = model.transform(data)
        assert scores.dims == ("time", "member", "mode")
        assert scores.member.values.tolist() == list("abcde")
        assert model.inverse_transform(scores).dims == X.dims


def test_a_multi_index_comes_back(reference: dict[str, np.ndarray]) -> None:
    cube = ensemble().assign_coords(time=np.arange(12), lat=np.arange(LAT), lon=np.arange(LON))
    X = cube.stack(sample=("time", "member"), space=("lat", "lon"))
    for data in (X, X.chunk(sample=11)):
        model = PCA(n_components=3).fit(data)
        check(model, data, reference, xr.DataArray)
        scores = model.transform(data)
        assert scores.unstack("sample").sizes == {"mode": 3, "time": 12, "member": 5}
        restored = model.inverse_transform(scores)
        assert restored.dims == ("sample", "space")
        np.testing.assert_array_equal(restored.lat, X.lat)
        pd.testing.assert_index_equal(restored.indexes["sample"], X.indexes["sample"])


def test_a_dataset_of_several_variables(reference: dict[str, np.ndarray]) -> None:
    wind = field(rows(seed=1)).rename("wind")
    both = xr.Dataset({"sst": field(), "wind": wind})
    expected = PCA(n_components=3).fit(np.hstack([rows(), rows(seed=1)]))
    scores = expected.transform(np.hstack([rows(), rows(seed=1)]))
    for X in (both, both.chunk(time=7, lat=2), both.transpose("lon", "time", "lat")):
        model = PCA(n_components=3).fit(open_matrix(X, sample_dims="time"))
        answer = model.transform(X)
        assert answer.dims == ("time", "mode")
        assert (answer.chunks is not None) == (X.chunks != {})
        np.testing.assert_allclose(np.abs(answer), np.abs(scores), atol=1e-8)
        restored = model.inverse_transform(answer)
        assert restored.coords["variable"].values.tolist() == ["sst", "wind"]
        again = restored.to_dataset("variable").transpose("time", "lat", "lon")
        wanted = expected.inverse_transform(scores)[:, 20:].reshape(N, LAT, LON)
        np.testing.assert_allclose(again.wind, wanted, atol=1e-7)
    # Variables on other grids lie side by side, each feature with its variable's name.
    mixed = xr.Dataset({"sst": field(), "index": (("time", "place"), rows(d=3))})
    model = PCA(n_components=3).fit(mixed)
    restored = model.inverse_transform(model.transform(mixed))
    assert restored.dims == ("time", "feature")
    assert restored.coords["variable"].values.tolist() == ["sst"] * 20 + ["index"] * 3
    extra = mixed.assign(other=mixed.sst * 2)[["other", "index", "sst"]]
    np.testing.assert_allclose(model.transform(extra), model.transform(mixed))


def test_packed_integers_are_unpacked(tmp_path: Path) -> None:
    X = field()
    X[:, 0, 0] = np.nan
    packing = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 3.0, "_FillValue": -32768}
    for version in (2, 3):
        where = tmp_path / f"packed{version}.zarr"
        X.to_dataset().to_zarr(where, encoding={"sst": packing}, zarr_format=version, consolidated=False)
        unpacked = xr.open_zarr(where, chunks=None, consolidated=False).sst.load()
        expected = PCA(n_components=3).fit(unpacked)
        model = PCA(n_components=3).fit(where)
        assert np.isnan(model.mean_[0])
        np.testing.assert_allclose(model.components_, expected.components_, atol=1e-6)
        np.testing.assert_allclose(model.transform(where), expected.transform(unpacked), rtol=1e-4, atol=1e-4)
        lazy = xr.open_zarr(where, chunks=None, consolidated=False).sst
        np.testing.assert_allclose(model.transform(lazy), expected.transform(unpacked), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("estimator", [PCA(n_components=3), TruncatedSVD(n_components=3)], ids=str)
@pytest.mark.parametrize("backing", ["numpy", "dask", "flat", "zarr"])
def test_land_comes_back_as_land(estimator: Any, backing: str, tmp_path: Path) -> None:
    X = field()
    land = np.zeros((LAT, LON), bool)
    land[1, 2:4] = land[3, 0] = True
    X = X.where(~land)
    X.to_dataset().to_zarr(tmp_path / "land.zarr", consolidated=False)
    flat = X.data.reshape(N, -1)
    data = {"numpy": X, "dask": X.chunk(time=9, lon=2), "flat": flat, "zarr": tmp_path / "land.zarr"}[backing]
    model = type(estimator)(n_components=3).fit(data)
    sea = type(estimator)(n_components=3).fit(X.data[:, ~land])
    np.testing.assert_allclose(model.components_[:, ~land.ravel()], sea.components_, atol=1e-9)
    assert np.isnan(model.components_[:, land.ravel()]).all()
    scores = model.transform(data)
    np.testing.assert_allclose(scores, sea.transform(X.data[:, ~land]), atol=1e-9)
    np.testing.assert_allclose(model.reconstruction_error(data), sea.reconstruction_error(X.data[:, ~land]), rtol=1e-6)
    restored = np.asarray(model.inverse_transform(scores)).reshape(N, LAT, LON)
    np.testing.assert_array_equal(np.isnan(restored[0]), land)
    # Values on what was land when the model was fitted do not count.
    filled = np.where(land.ravel(), 7.0, X.data.reshape(N, -1))
    np.testing.assert_allclose(model.transform(filled), np.asarray(scores))
    if isinstance(model, PCA):
        np.testing.assert_allclose(model.score_samples(data), sea.score_samples(X.data[:, ~land]), rtol=1e-9)
        assert model.noise_variance_ == pytest.approx(sea.noise_variance_)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_named(bad: float, tmp_path: Path) -> None:
    model = PCA(n_components=2).fit(field())
    broken = field()
    broken[17, 2, 3] = bad
    flat = broken.data.reshape(N, -1)
    broken.to_dataset().to_zarr(tmp_path / "bad.zarr", consolidated=False)
    where = rf"{'NaN' if np.isnan(bad) else 'infinity'}.* row 17, feature 13"
    named = (broken, broken.to_dataset(), tmp_path / "bad.zarr")
    for X in (*named, flat, pd.DataFrame(flat), scipy.sparse.csr_array(flat)):
        with pytest.raises(InputError, match=where):
            PCA(n_components=2).fit(X)
        for method in (model.transform, model.score_samples, model.reconstruction_error):
            with pytest.raises(InputError, match=where):
                method(X)
    lazy = model.transform(broken.chunk(time=7, lat=2))
    with pytest.raises(InputError, match="row 3 of a chunk, feature 13"):
        lazy.compute()
    with pytest.raises(InputError, match=r"time=2001-06-30.*lat=10\.0, lon=30\.0"):
        model.transform(broken)


WRONG = [
    ({"weights": np.ones(3)}, r"weights have shape \(3,\): 20"),
    ({"weights": -np.ones(20)}, "weights .* negative: number 0 is -1"),
    ({"weights": np.r_[np.ones(19), np.nan]}, "weights .* number 19 is nan"),
    ({"weights": "cosine"}, "weights='cosine'"),
    ({"weights": ["a"] * 20}, "weights are not numbers"),
    ({"weights": xr.DataArray(np.ones(3), dims="depth")}, "depth"),
    ({"weights": xr.DataArray(np.ones(3), dims="lat")}, "weights of shape"),
    ({"sample_weights": np.ones(3)}, r"sample_weights have shape \(3,\): 60"),
    ({"sample_weights": -np.ones(60)}, "sample_weights .* negative"),
    ({"sample_dims": "tme"}, "no dim 'tme'.* time, lat, lon"),
    ({"sample_dims": ("time", "lat", "lon")}, "leave one"),
    ({"sample_dims": ()}, "at least one"),
    ({"sample_dims": ("time", "time")}, "each once"),
    ({"select": {"tme": slice(3)}}, "no dim 'tme'.* time, lat, lon"),
    ({"select": {"lat": [7]}}, "position 7 of 'lat'"),
    ({"select": {"lat": [True]}}, "mask for 'lat'"),
    ({"select": {"lat": "north"}}, "'lat' takes a slice"),
    ({"select": {"time": slice("never", None)}}, "time"),
    ({"variable": "sst"}, "no variables"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_opens_no_matrix(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_matrix(field(), **options)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    both = xr.Dataset({"sst": field(), "wind": field()})
    with pytest.raises(InputError, match="no variable 'sts': it has sst, wind"):
        open_matrix(both, variable="sts")
    both.to_zarr(tmp_path / "both.zarr", consolidated=False)
    with pytest.raises(InputError, match="name one or more as variable"):
        PCA().fit(tmp_path / "both.zarr")
    with pytest.raises(InputError, match="does not exist"):
        PCA().fit(tmp_path / "nothing.zarr")
    with pytest.raises(InputError, match="no data variables"):
        PCA().fit(xr.Dataset())
    with pytest.raises(InputError, match="latitude"):
        open_matrix(rows(), weights="coslat")
    # The model of one variable finds it again in a store of several.
    model = PCA(n_components=3).fit(open_matrix(tmp_path / "both.zarr", variable="wind"))
    np.testing.assert_allclose(model.transform(tmp_path / "both.zarr"), model.transform(rows()))


@pytest.mark.parametrize("backing", ["numpy", "dask", "zarr", "xarray"])
def test_scores_go_to_a_store(backing: str, tmp_path: Path) -> None:
    X = field()
    X.to_dataset().chunk(time=7).to_zarr(tmp_path / "data.zarr", consolidated=False)
    cubes = {"numpy": X.data, "dask": da.from_array(X.data, chunks=(7, 2, 3)), "xarray": X}
    data = cubes.get(backing, tmp_path / "data.zarr")
    model, out = PCA(n_components=3).fit(data), tmp_path / "scores.zarr"
    scores = np.asarray(model.transform(data))
    returned = model.transform(data, out=out)
    opened = xr.open_zarr(out, consolidated=False)["scores"]
    for answer in (returned, opened):
        assert answer.dims[-1] == "mode"
        np.testing.assert_allclose(answer, scores, atol=1e-12)
    if backing in ("zarr", "xarray"):
        np.testing.assert_array_equal(opened.time, X.time)
        np.testing.assert_array_equal(opened.season, X.season)
    with pytest.raises(StoreError, match="exists"):
        model.transform(data, out=out)
    model.transform(data[:9] if backing != "zarr" else data, out=str(out), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.zarr", "scores.zarr"]


@pytest.mark.parametrize("heights", [(7, 7, 7, 7, 7, 7, 7, 7, 4), (1, 20, 3, 30, 6)])
@pytest.mark.parametrize("kind", ["dense", "sparse", "several"])
def test_scores_of_dask_are_written_by_the_chunk(
    kind: str, heights: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.matrix._SMALL_BLOCK_BYTES", 14 * 24 * 8)
    values = np.random.default_rng(0).standard_normal((sum(heights), 24))
    chunked = da.from_array(values, chunks=(heights, (20, 4)))
    data: Any = {
        "dense": chunked,
        "sparse": chunked.rechunk({1: 24}).map_blocks(scipy.sparse.csr_array),
        "several": xr.Dataset({"a": (("t", "x"), chunked[:, :12]), "b": (("t", "x"), chunked[:, 12:])}),
    }[kind]
    model, written = PCA(3).fit(data), []
    put = _Write.put
    monkeypatch.setattr(_Write, "put", lambda self, result, at: (written.append(at), put(self, result, at))[1])
    scores = model.transform(data, out=tmp_path / "scores.zarr")
    assert len(written) > 1
    chunk = zarr.open_array(tmp_path / "scores.zarr" / "scores").chunks[0]
    assert all(a % chunk == 0 for a, _ in written)
    np.testing.assert_allclose(scores, model.transform(values), atol=1e-12)


def test_scores_of_transposed_data_and_several_sample_dims_go_to_a_store(tmp_path: Path) -> None:
    model = PCA(n_components=3).fit(field())
    model.transform(field().transpose("lon", "lat", "time"), out=tmp_path / "a.zarr")
    written = xr.open_zarr(tmp_path / "a.zarr", consolidated=False).scores
    np.testing.assert_allclose(written, model.transform(field()), atol=1e-12)
    X = ensemble()
    for i, data in enumerate((X, X.chunk(time=5, member=2), X.transpose("lat", "member", "lon", "time"))):
        model = PCA(n_components=3).fit(open_matrix(X, sample_dims=("time", "member")))
        model.transform(data, out=tmp_path / f"{i}.zarr")
        written = xr.open_zarr(tmp_path / f"{i}.zarr", consolidated=False).scores
        xr.testing.assert_allclose(written.transpose("time", "member", "mode"), model.transform(X))
        assert written.member.values.tolist() == list("abcde")
    single = PCA(n_components=3).fit(rows().astype(np.float32))
    assert single.transform(rows().astype(np.float32), out=tmp_path / "f4.zarr").dtype == np.float32


def test_nothing_is_left_of_scores_that_failed(tmp_path: Path) -> None:
    model = PCA(n_components=2).fit(rows())
    broken = rows()
    broken[40, 3] = np.nan
    with pytest.raises(InputError, match="row 40, feature 3"):
        model.transform(broken, out=tmp_path / "scores.zarr")
    assert list(tmp_path.iterdir()) == []
    model.transform(rows(), out=tmp_path / "scores.zarr")
    with pytest.raises(InputError, match="row 40, feature 3"):
        model.transform(broken, out=tmp_path / "scores.zarr", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.zarr"]
    np.testing.assert_allclose(
        xr.open_zarr(tmp_path / "scores.zarr", consolidated=False).scores, model.transform(rows())
    )
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a Zarr store"):
        model.transform(rows(), out=tmp_path / "notes.txt", overwrite=True)
    with pytest.raises(StoreError, match="cannot be written"):
        model.transform(rows(), out=tmp_path / "notes.txt" / "scores.zarr")
    with pytest.raises(InputError, match="out="):
        model.transform(rows(), out=zarr.storage.MemoryStore())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="out="):
        model.transform(rows(), out="s3://bucket/scores.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "scores.zarr"]


@pytest.mark.slow
def test_on_a_cluster_of_processes(tmp_path: Path, reference: dict[str, np.ndarray]) -> None:
    field().to_dataset().chunk(time=7).to_zarr(tmp_path / "data.zarr", consolidated=False)
    chunked = da.from_array(rows(), chunks=9)
    kinds = (rows(), field(), field().chunk(time=9), tmp_path / "data.zarr", scipy.sparse.csr_array(rows()), chunked)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        for X in kinds:
            model = PCA(n_components=3).fit(X)
            np.testing.assert_allclose(np.asarray(model.transform(X)), reference["scores"], atol=1e-9)
            written = model.transform(X, out=tmp_path / "scores.zarr", overwrite=True)
            np.testing.assert_allclose(written, reference["scores"], atol=1e-9)
        broken = da.where(da.arange(N, chunks=9)[:, None] == 17, np.nan, chunked)
        with pytest.raises(InputError, match="row 17, feature 0"):
            PCA(n_components=3).fit(broken)
        with pytest.raises(InputError, match="row 8 of a chunk, feature 0"):
            model.transform(broken).compute()
        with pytest.raises(InputError, match="row 17, feature 0"):
            model.transform(broken, out=tmp_path / "other.zarr")
        assert not (tmp_path / "other.zarr").exists()
