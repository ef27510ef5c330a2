"""Files that are appended to a store: every format, batches that do not fit, writers that are killed or too late."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import xarray as xr
import zarr
from click.testing import CliRunner

from pipeline import PCA, load, open_matrix
from pipeline.cli import main
from pipeline.errors import ConflictError, InputError, StoreError
from pipeline.intake import ingest
from pipeline.intake.files import FORMATS
from pipeline.jobs.update import update_model
from pipeline.store import history
from pipeline.store.growing import Batch, batches_of, growing
from pipeline.store.read import open_store
from tests.servers import Buckets

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((70, 6)).astype(np.float32)
TIME = pd.date_range("2000-01-01", periods=70, freq="6h")
CUTS = ((0, 30), (30, 37), (37, 70))
NAMES = list("abcdef")


def field(a: int, b: int) -> xr.Dataset:
    """A map with land, and what is no matrix."""
    maps = ROWS[a:b].reshape(-1, 2, 3).copy()
    maps[:, 0, 0] = np.nan
    sst = (("time", "lat", "lon"), maps, {"units": "K", "long_name": "sst"})
    return xr.Dataset({"sst": sst, "crs": ((), 0)}, {"time": TIME[a:b], "lat": [0.0, 1.0], "lon": [5.0, 6.0, 7.0]})


def frame(a: int, b: int) -> pd.DataFrame:
    return pd.DataFrame(ROWS[a:b], columns=NAMES, index=[f"s{i}" for i in range(a, b)])


def write_hdf5(path: Path, a: int, b: int) -> None:
    with h5py.File(path, "w") as file:
        file["group/x"] = ROWS[a:b]


def write_anndata(path: Path, a: int, b: int) -> None:
    anndata = pytest.importorskip("anndata", reason="anndata is not installed (extra ingest)")
    obs, var = pd.DataFrame(index=[f"c{i}" for i in range(a, b)]), pd.DataFrame(index=NAMES)
    anndata.AnnData(sp.csr_matrix(np.maximum(ROWS[a:b], 0)), obs=obs, var=var).write_h5ad(path)


WRITERS: dict[str, Callable[[Path, int, int], Any]] = {
    ".nc": lambda path, a, b: field(a, b).to_netcdf(path),
    ".zarr": lambda path, a, b: field(a, b).to_zarr(path, zarr_format=3, consolidated=False),
    ".h5": write_hdf5,
    ".npy": lambda path, a, b: np.save(path, ROWS[a:b]),
    ".csv": lambda path, a, b: frame(a, b).astype(np.float64).to_csv(path, index_label="who"),
    ".parquet": lambda path, a, b: frame(a, b).to_parquet(path),
    ".h5ad": write_anndata,
}
TRUTH = {".nc": np.where(np.arange(6) == 0, np.nan, ROWS), ".h5ad": np.maximum(ROWS, 0)}
TRUTH[".zarr"] = TRUTH[".nc"]


def keys_of(store: str) -> list[str]:
    """The objects of a store in S3."""
    import obstore

    return [o["path"] for batch in obstore.list(open_store(store).store) for o in batch]


def entries(store: Path | str) -> np.ndarray:
    X = open_matrix(str(store))
    return np.concatenate([b if isinstance(b, np.ndarray) else b.toarray() for b in map(X.read, range(X.n_blocks))])


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_is_appended(suffix: str, tmp_path: Path) -> None:
    incoming, store = tmp_path / "in", tmp_path / "store.zarr"
    incoming.mkdir()
    options = {"labels": "who"} if suffix == ".csv" else {}
    for i, (a, b) in enumerate(CUTS):
        WRITERS[suffix](incoming / f"{i}{suffix}", a, b)
        found = ingest(store, incoming, chunk_rows=None if suffix == ".h5ad" else 8, **options)
        assert [(x.start, x.stop) for x in found.added] == [(a, b)]
        assert found.n_samples == b
    np.testing.assert_allclose(entries(store), TRUTH.get(suffix, ROWS), rtol=1e-12)
    root = (store / "zarr.json").read_bytes()
    WRITERS[suffix](incoming / f"again{suffix}", 30, 37)
    again = ingest(store, incoming, **options)
    assert (again.added, again.known, again.n_samples) == ((), 4, 70)
    assert (store / "zarr.json").read_bytes() == root
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "store.zarr"]
    assert PCA(2).fit(str(store)).n_samples_ == 70


def test_names_labels_and_attributes_stay(tmp_path: Path) -> None:
    for i, (a, b) in enumerate(CUTS):
        WRITERS[".nc"](tmp_path / f"{i}.nc", a, b)
        WRITERS[".csv"](tmp_path / f"{i}.csv", a, b)
    ingest(tmp_path / "maps", tmp_path / "*.nc")
    with xr.open_zarr(tmp_path / "maps") as ds:
        xr.testing.assert_identical(ds["sst"].load().drop_attrs(deep=True), field(0, 70)["sst"].drop_attrs(deep=True))
        assert ds["sst"].attrs == {"units": "K", "long_name": "sst"}
        assert ds["sst"].encoding["chunks"][1:] == (2, 3)
    ingest(tmp_path / "table", tmp_path / "*.csv", labels="who")
    with xr.open_zarr(tmp_path / "table") as ds:
        assert ds["feature"].values.tolist() == NAMES
        assert ds["sample"].values.tolist() == [f"s{i}" for i in range(70)]
    table = frame(0, 1)[NAMES[::-1]].rename(index={"s0": "new"})
    table.astype(np.float64).to_csv(tmp_path / "turned.csv", index_label="who")
    ingest(tmp_path / "table", tmp_path / "turned.csv", labels="who")  # columns are found by name
    np.testing.assert_allclose(entries(tmp_path / "table")[-1], ROWS[0], rtol=1e-12)


@pytest.mark.parametrize(
    "times",
    [
        xr.date_range("2000-02-28", periods=70, freq="7h", calendar="noleap", use_cftime=True),
        TIME.astype("datetime64[us]"),
        TIME.astype(str),
        np.arange(70),
    ],
    ids=["noleap", "microseconds", "texts", "ints"],
)
def test_labels_of_every_kind(times: Any, tmp_path: Path) -> None:
    for i, (a, b) in enumerate(CUTS):
        part = xr.Dataset({"x": (("time", "feature"), ROWS[a:b].astype(">f4"))}, {"time": times[a:b]})
        part.to_zarr(tmp_path / f"{i}.zarr", zarr_format=3, consolidated=False)
    for _ in range(2):
        ingest(tmp_path / "store", tmp_path / "*.zarr", chunk_rows=8)
    with xr.open_zarr(tmp_path / "store") as ds:
        assert ds["time"].values.tolist() == np.asarray(times).astype(ds["time"].dtype).tolist()
        np.testing.assert_array_equal(ds["x"], ROWS)


def test_an_anndata_store_is_read_by_anndata(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata", reason="anndata is not installed (extra ingest)")
    for i, (a, b) in enumerate(CUTS):
        write_anndata(tmp_path / f"{i}.h5ad", a, b)
    ingest(tmp_path / "counts", tmp_path / "*.h5ad")
    read = anndata.read_zarr(tmp_path / "counts")
    np.testing.assert_array_equal(read.X.toarray(), np.maximum(ROWS, 0))
    assert read.obs_names.tolist() == [f"c{i}" for i in range(70)]
    assert read.var_names.tolist() == NAMES


def changed(**changes: Any) -> xr.Dataset:
    ds = field(30, 37)
    for name, change in changes.items():
        ds[name] = change(ds[name])
    return ds


def hole(sst: xr.DataArray) -> xr.DataArray:
    return sst.where((sst["time"] != TIME[33]) | (sst["lon"] != 6))


WRONG = {
    "name": (lambda: field(30, 37).rename(sst="t2m"), "no variable 'sst'"),
    "dim": (lambda: field(30, 37).rename(lat="y"), "no dim 'lat'|does not name its lats"),
    "size": (lambda: field(30, 37).isel(lon=slice(0, 2)), "no lon '7.0'"),
    "places": (lambda: field(30, 37).assign_coords(lon=[5.0, 6.0, 8.0]), "no lon '7.0'"),
    "dtype": (lambda: changed(sst=lambda a: a.astype(np.float64)), "float64, the store float32.*dtype=float32"),
    "units": (lambda: changed(sst=lambda a: a.assign_attrs(units="degC")), "in degC, in the store in K"),
    "hole": (lambda: changed(sst=hole), r"sst at sample 3, lat=0, lon=1 is nan.*missing='keep'"),
    "land": (lambda: changed(sst=lambda a: a.fillna(1)), "has a value, where all samples before have none"),
    "infinite": (lambda: changed(sst=lambda a: a.where(a < 0, np.inf)), "is inf"),
    "labels": (lambda: field(28, 37), r"2 of its 9 samples are in .* already"),
    "no time": (lambda: field(30, 37).drop_vars("time"), "has no 'time'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_refused_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    make, message = WRONG[kind]
    field(0, 30).to_netcdf(tmp_path / "0.nc")
    ingest(tmp_path / "store", tmp_path / "0.nc")
    before = {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()}
    make().to_netcdf(tmp_path / "1.nc")
    field(40, 50).to_netcdf(tmp_path / "2.nc")
    with pytest.raises(InputError, match=message):
        ingest(tmp_path / "store", tmp_path / "1.nc")
    assert {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()} == before
    with pytest.raises(InputError, match="1 of 3 files were added"):  # one bad file stops no other
        ingest(tmp_path / "store", tmp_path / "*.nc")
    assert open_matrix(str(tmp_path / "store")).shape[0] == 40


def test_what_may_be_asked_for(tmp_path: Path) -> None:
    changed(sst=hole).to_netcdf(tmp_path / "hole.nc")
    np.save(tmp_path / "f8.npy", ROWS.astype(np.float64))
    with pytest.raises(InputError, match="lon=1 is nan"):
        ingest(tmp_path / "new", tmp_path / "hole.nc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f8.npy", "hole.nc"]
    ingest(tmp_path / "kept", tmp_path / "hole.nc", missing="keep")
    assert np.isnan(entries(tmp_path / "kept")).sum() == 8 + 2 - 1
    for i in range(2):
        np.save(tmp_path / "f8.npy", ROWS.astype(np.float64) + i)
        ingest(tmp_path / "small", tmp_path / "f8.npy", dtype="float32")
    assert open_matrix(str(tmp_path / "small")).dtype == np.float32
    fresh = ingest(tmp_path / "later", tmp_path / "f8.npy", settle=3600)
    assert (fresh.added, fresh.n_samples) == ((), 0)


def test_wrong_sources_are_told(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (tmp_path / "x.txt").write_text("1,2\n")
    (tmp_path / "broken.nc").write_bytes(b"CDF\x01 and no more")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "bare.csv").write_text("1.0,2.0\n3.0,4.0\n")
    (tmp_path / "text.csv").write_text("a,city\n1,Ulm\n")
    (tmp_path / "empty.csv").write_text("a,b\n")
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.arange(3.0))
    for name, message in {
        "nothing.nc": "does not exist",
        "x.txt": "none of the known formats",
        "broken.nc": "cannot be read as .nc",
        "broken.parquet": "cannot be read as .parquet",
        "bare.csv": "no header",
        "text.csv": "column 'city' holds",
        "empty.csv": "holds no samples",
        "pickle.npy": "cannot be read as .npy",
        "flat.npy": "at least two dims",
    }.items():
        with pytest.raises(InputError, match=message):
            ingest(store, tmp_path / name)
        assert not store.exists()
    np.save(tmp_path / "good.npy", ROWS)
    for options in ({"missing": "no"}, {"dtype": "text"}, {"chunk_rows": 0}, {"variable": "x"}, {"sample_dim": "t"}):
        with pytest.raises(InputError):
            ingest(store, tmp_path / "good.npy", **options)  # type: ignore[arg-type]
    for elsewhere in ("https://host/x.zarr", f"icechunk:{tmp_path}/x"):
        with pytest.raises(InputError, match="local disk, or in an object store"):
            ingest(elsewhere, tmp_path / "good.npy")
    zarr.create_array(tmp_path / "foreign", shape=(3, 3), dtype="f8")
    for place, kind in (("foreign", InputError), ("x.txt", StoreError)):
        with pytest.raises(kind, match="another place"):
            ingest(tmp_path / place, tmp_path / "good.npy")
    assert set(FORMATS) > set(WRITERS)


class Killed(BaseException):
    """What no code of ours catches."""


def test_killed_anywhere_the_store_is_whole_and_the_rerun_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every second rename in turn: readers see the old rows or the new ones."""
    replace, kills = os.replace, 0
    for i, (a, b) in enumerate(CUTS[:2]):
        field(a, b).to_netcdf(tmp_path / f"{i}.nc")
    ingest(tmp_path / "old", tmp_path / "0.nc", chunk_rows=8)
    for at in range(1, 100, 2):
        store = tmp_path / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(tmp_path / "old", store)
        left = at

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return replace(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", counted)
            patched.setattr(shutil, "rmtree", lambda *_, **__: None)
            try:
                ingest(store, tmp_path / "1.nc")
            except Killed:
                kills += 1
        n = open_matrix(str(store)).shape[0]
        assert n in (30, 37)
        np.testing.assert_array_equal(entries(store)[:, 1:], ROWS[:n, 1:])
        if left > 0:
            break
        assert ingest(store, tmp_path / "1.nc").n_samples == 37
        np.testing.assert_array_equal(entries(store)[:, 1:], ROWS[:37, 1:])
        assert zarr.open_array(store / "sst").shape[0] == 37
        assert not list(tmp_path.glob(".store.*.partial"))
    assert kills > 4


def test_a_writer_thought_dead_cannot_commit(tmp_path: Path) -> None:
    for i, (a, b) in enumerate(CUTS):
        np.save(tmp_path / f"{i}.npy", ROWS[a:b])
    store = tmp_path / "store"
    ingest(store, tmp_path / "0.npy", chunk_rows=8)
    with growing(store) as asleep:
        rows = xr.Dataset({"data": (("sample", "feature"), np.full((40, 6), 7, np.float32))})
        rows.to_zarr(asleep.folder, append_dim="sample", consolidated=False)
        assert ingest(store, tmp_path / "1.npy").n_samples == 37
        with pytest.raises(ConflictError, match="run it again"):
            asleep.publish(Batch("0" * 32, "late", "", 30, 70))
    ingest(store, tmp_path / "2.npy")
    np.testing.assert_array_equal(entries(store), ROWS)
    with growing(tmp_path / "new") as asleep:
        ingest(tmp_path / "new", tmp_path / "0.npy")
        rows.to_zarr(asleep.folder, mode="a", zarr_format=3, consolidated=False)
        with pytest.raises(ConflictError):
            asleep.publish(Batch("0" * 32, "late", "", 0, 40))
    assert open_matrix(str(tmp_path / "new")).shape[0] == 30


@pytest.mark.parametrize("suffix", [".nc", ".h5ad"])
def test_a_store_in_s3_grows_too(suffix: str, bucket: Buckets, tmp_path: Path) -> None:
    import obstore

    store, model, k = bucket("moto"), tmp_path / "model", 6 - (suffix == ".nc")  # without land
    for i, (a, b) in enumerate(CUTS):
        WRITERS[suffix](tmp_path / f"{i}{suffix}", a, b)
        found = ingest(store, tmp_path / f"{i}{suffix}", chunk_rows=None if suffix == ".h5ad" else 8)
        assert [(x.start, x.stop) for x in found.added] == [(a, b)]
        if i == 0:
            PCA(k).fit(store).subspace_.save(model)
    np.testing.assert_array_equal(entries(store), TRUTH[suffix])
    assert ingest(store, [tmp_path / f"{i}{suffix}" for i in range(3)]).known == 3
    assert update_model(str(model), store).rows == 40
    assert update_model(str(model), store).rows == 0
    assert load(model).distance(PCA(k).fit(store).subspace_).max() < 1e-5
    WRITERS[suffix](tmp_path / f"wrong{suffix}", 60, 70)
    with pytest.raises(InputError, match="10 of its 10 samples are in s3"):
        ingest(store, tmp_path / f"wrong{suffix}")
    taken = bucket("moto")
    obstore.put(open_store(taken, read_only=False).store, "mine", b"not a store")
    with pytest.raises(StoreError, match="another place"):
        ingest(taken, tmp_path / f"0{suffix}")


def whole_batches(store: str) -> list[tuple[int, int]]:
    """Which rows are there, batch by batch; each holds what its file held."""
    rows, cuts = entries(store), []
    for batch in batches_of(store):
        a, b = CUTS[int(Path(batch.name).stem)]
        np.testing.assert_array_equal(rows[batch.start : batch.stop], ROWS[a:b])
        cuts.append((a, b))
    assert sum(b - a for a, b in cuts) == len(rows)
    return cuts


def test_killed_or_overtaken_at_any_request_to_s3(
    bucket: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every second one in turn a writer dies, or sleeps while another one adds a batch; nothing is lost or mixed."""
    import obstore

    real, done = obstore.put, set()
    files = [tmp_path / f"{i}.npy" for i in range(3)]
    for path, (a, b) in zip(files, CUTS, strict=True):
        np.save(path, ROWS[a:b])
    for at, dies in product(range(1, 100, 2), (True, False)):
        if (dies, "all") in done:
            continue
        store, left = bucket("moto"), at
        ingest(store, files[0], chunk_rows=8)

        def late(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and dies:  # noqa: B023
                raise Killed
            if left == 0:
                assert ingest(store, files[2]).n_samples in (63, 70)  # noqa: B023
            return real(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(obstore, "put", late)
            try:
                ingest(store, files[1])
                done.add((dies, "all" if left > 0 else "completed"))
            except (Killed, ConflictError) as error:
                done.add((dies, type(error).__name__))
        assert whole_batches(store)[0] == CUTS[0]
        assert ingest(store, files).n_samples == 70
        assert sorted(whole_batches(store)) == list(CUTS)
        assert not [key for key in keys_of(store) if key.startswith(".batches") and dies is False]
    assert done == {(True, "Killed"), (True, "all"), (False, "ConflictError"), (False, "completed"), (False, "all")}


def test_readers_keep_what_they_have_opened(tmp_path: Path) -> None:
    for i, (a, b) in enumerate(CUTS):
        np.save(tmp_path / f"{i}.npy", ROWS[a:b])
    ingest(tmp_path / "store", tmp_path / "0.npy", chunk_rows=8)
    opened, lazy = open_matrix(str(tmp_path / "store")), xr.open_zarr(tmp_path / "store", chunks=None)
    ingest(tmp_path / "store", tmp_path / "1.npy")
    np.testing.assert_array_equal(np.concatenate([opened.read(i) for i in range(opened.n_blocks)]), ROWS[:30])
    np.testing.assert_array_equal(lazy["data"].values, ROWS[:30])


def test_a_model_follows(tmp_path: Path) -> None:
    """New rows are read once; the same batch is one version."""
    store, model = tmp_path / "store", tmp_path / "model"
    np.save(tmp_path / "0.npy", ROWS[:30])
    ingest(store, tmp_path / "0.npy", chunk_rows=8)
    PCA(6).fit(str(store)).subspace_.save(model)
    np.save(tmp_path / "1.npy", ROWS[30:])
    done = CliRunner().invoke(main, ["--quiet", "ingest", str(tmp_path / "1.npy"), "--out", str(store)])
    assert (done.exit_code, done.stdout.strip()) == (0, str(store))
    assert update_model(str(model), str(store)).rows == 40
    assert ingest(store, [tmp_path / "0.npy", tmp_path / "1.npy"]).known == 2
    assert update_model(str(model), str(store)).rows == 0
    assert len(history(model).versions) == len(batches_of(store)) == 2
    assert load(model).distance(PCA(6).fit(ROWS).subspace_).max() < 1e-5
    wrong = CliRunner().invoke(main, ["ingest", str(tmp_path / "none.npy"), "--out", str(store)])
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
