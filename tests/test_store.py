"""The store: bit for bit, atomic, and honest about damage."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import multiprocessing
import os
import random
import shutil
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pipeline.store.head
import pipeline.store.publish as publishing
from pipeline.errors import InputError, PipelineError, StoreError
from pipeline.labels import Coord, Labels
from pipeline.store import from_dataset, load, save, to_dataset
from pipeline.store.head import Head
from pipeline.store.lock import only_writer
from pipeline.subspace import Subspace

VARIABLES = {
    "components",
    "mean",
    "singular_values",
    "explained_variance",
    "explained_variance_ratio",
    "residual",
    "angle_bound",
}


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here cuts the power, so that waiting for the disk would show nothing."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def subspace(value: float = 1.0, k: int = 2, labels: Labels | None = None, d: int = 6, **more: Any) -> Subspace:
    """Not a subspace of any data, but one whose every number tells its version `value`."""
    d = labels.size if labels else d
    return Subspace(
        **{
            "components": np.full((k, d), value, np.float32),
            "singular_values": np.full(k, value),
            "mean": np.full(d, value),
            "n_samples": value,
            "total_variance": value,
            "residual": np.full(k, value),
            "angle_bounds": np.full(k, value),
            "features": labels,
            "provenance": {"value": value},
            **more,
        }
    )


def of_version(version: int) -> Subspace:
    """Consecutive versions differ in shape and in members too."""
    scale = np.full(6, float(version)) if version % 2 else None
    return subspace(float(version), k=1 + version % 3, labels=grid(), scale=scale)


def check_whole(ds: xr.Dataset) -> float:
    """The version of a Dataset, all of whose numbers must tell the same."""
    value = ds.attrs["n_samples"]
    for name in VARIABLES - {"explained_variance", "explained_variance_ratio"}:
        assert ds[name].size
        assert (ds[name].values == value).all(), (name, value, ds[name].values)
    assert ds.sizes["mode"] == 1 + int(value) % 3
    assert ("scale" in ds) == bool(value % 2)
    return float(value)


def grid(**coords: Coord) -> Labels:
    both = {"lat": Coord(("lat",), np.array([-5.0, 5.0]), {"units": "degrees_north"}), **coords}
    return Labels(("lat", "lon"), (2, 3), both, {"units": "K", "long_name": "sea-surface temperature"})


def assert_same(a: Subspace, b: Subspace) -> None:
    assert dataclasses.replace(a, features=None) == dataclasses.replace(b, features=None)
    assert (a.features is None) == (b.features is None)
    if a.features is not None and b.features is not None:
        assert (a.features.dims, a.features.sizes) == (b.features.dims, b.features.sizes)
        assert list(a.features.coords) == list(b.features.coords)
        assert dict(a.features.attrs) == dict(b.features.attrs)
        for name, coord in a.features.coords.items():
            other = b.features.coords[name]
            assert (coord.dims, coord.values.dtype) == (other.dims, other.values.dtype), name
            assert dict(coord.attrs) == dict(other.attrs), name
            assert coord.values.tolist() == other.values.tolist() or coord.values.tobytes() == other.values.tobytes(), (
                name
            )


def no_litter(model: Path) -> None:
    assert [p.name for p in model.parent.iterdir()] == [model.name]


# Round trip ----------------------------------------------------------------------------------------------------------

KINDS = {
    "float64": np.array([0.1, -0.0]),
    "float32": np.array([0.1, np.nan], "f4"),
    "float16": np.array([0.1, np.inf], "f2"),
    "big-endian": np.array([0.1, 2.5], ">f4"),
    "int64": np.array([2**62, -1]),
    "uint8": np.array([255, 0], "u1"),
    "bool": np.array([True, False]),
    "text": np.array(["a", "élan"]),
    "text objects": np.array(["", "longer"], object),
    "bytes": np.array([b"rs1", b"rs22"]),
    "StringDType": np.array(["a", "bb"], np.dtypes.StringDType()),
    **{f"datetime64[{u}]": np.array(["2001-02-03", "NaT"], f"M8[{u}]") for u in ("Y", "D", "h", "s", "ms", "us", "ns")},
    "far datetimes": np.array(["9999-12-31", "0001-01-01"], "M8[s]"),
    **{f"timedelta64[{u}]": np.array([3, "NaT"], f"m8[{u}]") for u in ("D", "s", "ns")},
}


def test_every_kind_of_coordinate(tmp_path: Path) -> None:
    kinds = {kind.replace(" ", "-"): values for kind, values in KINDS.items()}
    kinds = {kind.replace(" ", "-"): values for kind, values in KINDS.items()}
    coords = {f"{kind}-beside": Coord(("lat",), values, {}) for kind, values in kinds.items()}
    coords |= {f"{kind}-alone": Coord((), np.array(values[0], values.dtype), {}) for kind, values in kinds.items()}
    S = subspace(labels=grid(**coords))
    assert_same(from_dataset(to_dataset(S)), S)
    save(S, tmp_path / "m.zarr")
    assert_same(load(tmp_path / "m.zarr"), S)
    ds = xr.open_zarr(tmp_path / "m.zarr", decode_times=False).load()
    assert set(coords) < set(ds.coords)
    assert ds["text-alone"].item() == "a"
    assert_same(from_dataset(ds), S)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_index(tmp_path: Path, kind: str) -> None:
    S = subspace(labels=Labels(("rs",), (2,), {"rs": Coord(("rs",), KINDS[kind], {"long_name": "variant"})}))
    assert_same(from_dataset(to_dataset(S)), S)
    save(S, tmp_path / "m.zarr")
    assert_same(load(tmp_path / "m.zarr"), S)


def test_round_trip_of_layouts_and_attributes(tmp_path: Path) -> None:
    attrs = {"units": "days since 2000-01-01", "scale_factor": 2.0, "coordinates": "x", "range": np.float32([1, 2])}
    coords = {
        "area": Coord(("lat", "lon"), np.arange(6.0).reshape(2, 3), {"units": "m2"}),
        "turned": Coord(("lon", "lat"), np.arange(6).reshape(3, 2), {}),
        "time": Coord((), np.array("2000-01-01", "M8[D]"), {"units": "taken", "calendar": "noleap"}),
        "odd": Coord(("lon",), np.arange(3), attrs),
    }
    S = subspace(labels=grid(**coords), weights=np.arange(6.0), scale=np.ones(6), centered=False, passes=3)
    save(S, tmp_path / "m.zarr")
    back = load(tmp_path / "m.zarr")
    assert back == S
    assert back.features is not None
    assert back.features.coords["odd"].attrs == {**attrs, "range": [1.0, 2.0]}
    assert back.features.coords["time"].attrs == coords["time"].attrs
    assert from_dataset(xr.open_zarr(tmp_path / "m.zarr", decode_times=False)) == S


@pytest.mark.parametrize(
    "labels", [None, Labels.plain("feature", 6), Labels((), ()), Labels(("a", "b", "c"), (1, 2, 3))]
)
def test_round_trip_without_coordinates(tmp_path: Path, labels: Labels | None) -> None:
    S = subspace(0.1, labels=labels)
    save(S, tmp_path / "m.zarr")
    assert_same(load(tmp_path / "m.zarr"), S)
    assert from_dataset(xr.open_zarr(tmp_path / "m.zarr")) == S


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_round_trip_of_any_numbers(tmp_path: Path, data: st.DataObject) -> None:
    k, d = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 9))
    dtype = data.draw(st.sampled_from([np.float64, np.float32, np.float16]))
    S = subspace(
        components=data.draw(hnp.arrays(dtype, (k, d))),
        mean=data.draw(hnp.arrays(np.float64, d)),
        singular_values=data.draw(hnp.arrays(dtype, k)),
        scale=data.draw(st.none() | hnp.arrays(np.float64, d)),
        residual=data.draw(hnp.arrays(np.float64, k)),
        angle_bounds=data.draw(hnp.arrays(np.float64, k)),
        total_variance=data.draw(st.floats(0, 1e300)),
        n_samples=data.draw(st.floats(2, 1e18)),
        d=d,
        provenance=data.draw(
            st.dictionaries(st.text(), st.recursive(st.none() | st.floats(allow_nan=False), st.lists))
        ),
    )
    with np.errstate(all="ignore"):
        save(S, tmp_path / "m.zarr", overwrite=(tmp_path / "m.zarr").exists())
        back = load(tmp_path / "m.zarr")
    assert back == S
    assert back.components.tobytes() == S.components.tobytes()
    shutil.rmtree(tmp_path / "m.zarr")


def test_plain_xarray_reads_it(tmp_path: Path) -> None:
    provenance = {"method": "PCA", "solver": "gram", "seed": 0, "versions": {"numpy": "2"}, "deep": [1, {"a": None}]}
    S = subspace(2.0, labels=grid(), provenance=provenance)
    save(S, tmp_path / "m.zarr")
    ds = xr.open_zarr(tmp_path / "m.zarr").load()
    assert set(ds.data_vars) == VARIABLES
    assert ds["components"].dims == ("mode", "lat", "lon")
    assert ds["components"].dtype == np.float32
    assert ds["mode"].values.tolist() == [1, 2]
    assert ds["lat"].attrs == {"units": "degrees_north"}
    assert ds["mean"].attrs["units"] == "K"
    assert all("long_name" in v.attrs for v in ds.data_vars.values())
    assert (ds.attrs["method"], ds.attrs["solver"], ds.attrs["seed"], ds.attrs["centered"]) == ("PCA", "gram", 0, 1)
    assert json.loads(ds.attrs["provenance"]) == provenance
    np.testing.assert_array_equal(ds["explained_variance"], S.explained_variance)
    ds.to_netcdf(tmp_path / "m.nc")
    assert_same(from_dataset(xr.open_dataset(tmp_path / "m.nc").load()), S)


def test_chunks_are_about_16_mb(tmp_path: Path) -> None:
    S = subspace(k=3, components=np.random.default_rng(0).normal(size=(3, 1_500_000)), d=1_500_000)
    save(S, tmp_path / "m.zarr")
    assert zarr.open_group(tmp_path / "m.zarr")["components"].chunks == (1, 1_500_000)
    assert publishing._chunk_shape((7, 4, 3_000_000), 8) == (1, 1, 2 * 2**20)
    assert load(tmp_path / "m.zarr") == S


@pytest.mark.parametrize("name", ["mode", "components", "mean", "angle_bound", "a/b", "", ".x", "__x", 3, "a\0b"])
def test_names_that_a_store_cannot_have(tmp_path: Path, name: Any) -> None:
    for labels in (Labels((name,), (6,)), grid(**{name: Coord(("lat",), np.zeros(2), {})}) if name != 3 else None):
        if labels is not None:
            with pytest.raises(InputError, match="rename"):
                save(subspace(labels=labels), tmp_path / "m.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("S", "words"),
    [
        (subspace(labels=grid(x=Coord(("lat",), np.array(["a", None], object), {}))), "not strings"),
        (subspace(labels=grid(x=Coord(("lat",), np.array([1, 2], "M8[ps]"), {}))), "finer unit"),
        (subspace(labels=grid(x=Coord(("nowhere",), np.zeros(2), {}))), "does not fit"),
        (subspace(labels=grid(x=Coord(("lat",), np.zeros(5), {}))), "does not fit"),
        (subspace(labels=grid(), components=np.zeros((1, 7)), mean=np.zeros(7)), "7 features"),
        (subspace(provenance={"a": (1, 2)}), "plain JSON"),
        (subspace(provenance={"a": object()}), "plain JSON"),
        (subspace(labels=grid(x=Coord(("lat",), np.zeros(2, np.longdouble), {}))), "cannot be stored"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_writing(tmp_path: Path, S: Subspace, words: str) -> None:
    with pytest.raises(InputError, match=words):
        save(S, tmp_path / "m.zarr")
    assert not list(tmp_path.iterdir())


def test_from_dataset_names_what_is_missing() -> None:
    ds = to_dataset(subspace())
    del ds.attrs["passes"], ds["mean"], ds["residual"]
    with pytest.raises(InputError, match="no mean, residual, passes"):
        from_dataset(ds)


# Replacing -----------------------------------------------------------------------------------------------------------


def test_overwrite(tmp_path: Path) -> None:
    model = tmp_path / "m.zarr"
    for version in range(1, 6):
        save(of_version(version), model, overwrite=version > 1)
        assert load(model) == of_version(version)
        assert check_whole(xr.open_zarr(model).load()) == version
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # folders in which only chunks of the version before are left
            assert check_whole(xr.open_zarr(model, consolidated=False).load()) == version
            assert set(zarr.open_group(model, use_consolidated=False)) == set(xr.open_zarr(model).variables)
        no_litter(model)
    with pytest.raises(StoreError, match="--overwrite"):
        save(of_version(9), model)
    assert load(model) == of_version(5)


def test_an_open_dataset_outlives_what_replaces_it(tmp_path: Path) -> None:
    model = tmp_path / "m.zarr"
    save(of_version(1), model)
    lazy = xr.open_zarr(model)
    for version in (2, 3):
        save(of_version(version), model, overwrite=True)
        assert check_whole(lazy.copy().load()) == 1
        assert check_whole(xr.open_zarr(model).load()) == version


def test_only_the_version_before_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.head.GRACE", 0.0)
    model = tmp_path / "m.zarr"
    for version in range(1, 8):
        save(of_version(3 * version), model, overwrite=version > 1)
        head = Head.parse((model / "zarr.json").read_bytes(), "m")
        assert head.version == version
        files = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}
        chunks = {f for f in files if not f.endswith("zarr.json") and not f.startswith("versions/")}
        assert len(chunks) == len(head.chunks) + (len(head.earlier[0].keys) if version > 1 else 0)


@pytest.mark.parametrize("what", ["file", "folder", "empty folder", "zarr group", "zarr array", "foreign model"])
def test_what_is_not_a_model_is_not_replaced(tmp_path: Path, what: str) -> None:
    place = tmp_path / "m.zarr"
    if what == "file":
        place.write_text("precious")
    elif "folder" in what:
        place.mkdir()
        if what == "folder":
            (place / "thesis.tex").write_text("precious")
    elif what == "zarr group":
        zarr.create_group(place).create_array("x", data=np.ones(3))
    elif what == "zarr array":
        zarr.create_array(place, data=np.ones(3))
    else:
        to_dataset(subspace()).to_zarr(place, zarr_format=3)
    before = {p: p.read_bytes() if p.is_file() else None for p in tmp_path.rglob("*")}
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="choose another path"):
            save(subspace(), place, overwrite=overwrite)
    with pytest.raises(StoreError, match="not a model"):
        load(place)
    assert before == {p: p.read_bytes() if p.is_file() else None for p in tmp_path.rglob("*")}


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    S = of_version(1)
    save(S, str(tmp_path / "made/on the way" / "m*[1].zarr"))
    assert load(f"file://{tmp_path}/made/on%20the%20way/m*[1].zarr") == S
    monkeypatch.chdir(tmp_path)
    save(S, "relative.zarr")
    os.symlink("relative.zarr", "link.zarr")
    save(of_version(2), "link.zarr", overwrite=True)
    assert Path("link.zarr").is_symlink()
    assert load("relative.zarr") == of_version(2)
    assert load(zarr.storage.LocalStore("relative.zarr")) == of_version(2)
    store = zarr.storage.MemoryStore()
    save(S, store)
    assert load(store) == S
    assert check_whole(xr.open_zarr(store).load()) == 1
    with pytest.raises(StoreError, match="needs a local disk"):
        save(S, store, overwrite=True)
    with pytest.raises(StoreError, match="opened"):
        load("nonsense://x")


@pytest.mark.parametrize("place", ["/proc/m.zarr", "/proc/a/b/m.zarr", "{tmp}/file/m.zarr", "{tmp}/" + 300 * "x"])
def test_what_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        save(subspace(), place.format(tmp=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(StoreError, match="cannot be written"):
        save(subspace(), tmp_path / "m.zarr")


@pytest.mark.parametrize("version", [1, 2])
def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    model = tmp_path / "deep" / "er" / "m.zarr"
    if version > 1:
        save(of_version(1), model)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zarr.storage._local._put", full)
    with pytest.raises(StoreError, match="No space left"):
        save(of_version(2), model, overwrite=True)
    if version == 1:
        assert not list(tmp_path.iterdir())
    else:
        no_litter(model)
        assert load(model) == of_version(1)


# Faults and crashes --------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No waiting for readers, and xarray writes each Dataset once a slot: the commit is what is tried."""
    monkeypatch.setattr("pipeline.store.head.GRACE", 0.0)
    write, cache = publishing._write, tmp_path_factory.mktemp("cache")

    def cached(ds: xr.Dataset, folder: Path, slot: int) -> None:
        kept = cache / f"{ds.attrs['n_samples']} {slot}"
        if not kept.exists():
            write(ds, kept, slot)
        shutil.copytree(kept, folder)

    monkeypatch.setattr(publishing, "_write", cached)


class Faulty:
    """An os function that fails at its n-th call."""

    def __init__(self, real: Callable[..., Any], n: int) -> None:
        self.real, self.n, self.calls = real, n, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.n:
            raise OSError(errno.EIO, "injected")
        return self.real(*args, **kwargs)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("version", [1, 4])
@pytest.mark.parametrize(
    ("call", "step"),
    [("replace", 1), ("rename", 1), ("fsync", 3), ("unlink", 1), ("open", 7), ("mkdir", 5), ("rmdir", 6)],
)
def test_a_fault_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, step: int, version: int
) -> None:
    before = tmp_path / "before.zarr"
    for v in range(1, version):
        save(subspace(float(v), k=1, d=1, scale=np.ones(1)), before, overwrite=True)
    old, new = subspace(version - 1.0, k=1, d=1, scale=np.ones(1)), subspace(float(version), k=1, d=1)
    for slot in range(3):  # fills the cache
        save(new, tmp_path / "new.zarr", overwrite=slot > 0)
    for n in itertools.count(1, step):
        model = tmp_path / f"at {n}" / "m.zarr"
        if version > 1:
            shutil.copytree(before, model)
        with monkeypatch.context() as patch:
            faulty = Faulty(getattr(os, call), n)
            patch.setattr(os, call, faulty)
            try:
                save(new, model, overwrite=True)
                failed = False
            except StoreError:
                failed = True
        if model.exists():
            assert load(model) in ([old, new] if failed and version > 1 else [new])
        else:
            assert failed
            assert version == 1
        save(new, model, overwrite=True)
        assert load(model) == new
        root = json.loads((model / "zarr.json").read_bytes())["consolidated_metadata"]["metadata"]
        assert {p.parent.name: json.loads(p.read_bytes()) for p in model.glob("*/zarr.json")} == root
        assert [p.name for p in model.parent.glob("*")] == ["m.zarr"]
        if faulty.calls < n:
            return


SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["hypothesis.extra.numpy", "pipeline.store", "pytest", "xarray", "zarr"])


def write_on(model: Path, begun: Any, step: int, grace: float) -> None:
    """What a writer's process does until it is killed."""
    pipeline.store.head.GRACE = grace
    while True:
        begun.value += step
        with suppress(StoreError):
            save(of_version(begun.value), model, overwrite=True)


@contextmanager
def writer(model: Path, last: int = 0, step: int = 1, grace: float = 0.0) -> Iterator[Any]:
    """A process that replaces the model again and again, and is killed at the end; gives the version it is at."""
    begun = SPAWN.Value("i", last, lock=False)
    process = SPAWN.Process(target=write_on, args=(model, begun, step, grace))
    process.start()
    try:
        deadline = time.monotonic() + 60
        while begun.value == last and time.monotonic() < deadline:
            time.sleep(0.001)
        yield begun
    finally:
        assert process.is_alive()
        process.kill()
        process.join()


def test_kill_at_any_moment(tmp_path: Path) -> None:
    model, chance, last, version = tmp_path / "m.zarr", random.Random(0), 0, 0
    for _ in range(6):
        before, there = last, version
        with writer(model, last) as begun:
            time.sleep(chance.uniform(0.0, 0.6))
        last = begun.value
        if model.exists():
            version = int(check_whole(xr.open_zarr(model).load()))
            # All but the last that this writer began it also ended; of its first nobody knows.
            assert (last - 1 if last > before + 1 else there) <= version <= last
            assert load(model) == of_version(version)
    save(of_version(last + 1), model, overwrite=True)
    assert load(model) == of_version(last + 1)
    assert check_whole(xr.open_zarr(model, consolidated=False).load()) == last + 1
    no_litter(model)


def test_readers_meet_only_whole_versions(tmp_path: Path) -> None:
    model, seen = tmp_path / "m.zarr", []
    save(of_version(1), model)
    with writer(model, 1, grace=1.0):
        end = time.monotonic() + 60
        while len(set(seen)) < 5 and time.monotonic() < end:
            seen.append(check_whole(xr.open_zarr(model).load()))
            S = load(model)
            assert of_version(int(S.n_samples)) == S
    assert seen == sorted(seen)
    assert len(set(seen)) > 4


def test_two_writers_at_once(tmp_path: Path) -> None:
    model = tmp_path / "m.zarr"
    with writer(model, 0, 2) as even, writer(model, 1, 2) as odd:
        end = time.monotonic() + 30
        while min(even.value, odd.value) < 6 and time.monotonic() < end:
            time.sleep(0.01)
    assert min(even.value, odd.value) >= 6
    version = check_whole(xr.open_zarr(model).load())
    assert load(model) == of_version(int(version))
    save(of_version(7), model, overwrite=True)
    no_litter(model)


def test_first_writers_at_once(tmp_path: Path) -> None:
    model, results = tmp_path / "new" / "m.zarr", []

    def write(version: int) -> None:
        with suppress(StoreError):
            save(of_version(version), model)
            results.append(version)

    threads = [threading.Thread(target=write, args=(v,)) for v in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 1
    assert load(model) == of_version(results[0])


def test_a_writer_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.lock._PATIENCE", 0.05)
    with only_writer(tmp_path / "m.zarr"), pytest.raises(StoreError, match="try again"):
        save(subspace(), tmp_path / "m.zarr")
    save(subspace(), tmp_path / "m.zarr")
    no_litter(tmp_path / "m.zarr")


# Damage --------------------------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        place = random.Random(len(data)).randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])


@pytest.mark.parametrize("how", ["removed", "cut", "empty", "flipped"])
def test_every_damaged_file_is_named(tmp_path: Path, how: str) -> None:
    model = tmp_path / "m.zarr"
    S = subspace(labels=grid(name=Coord(("lon",), np.array(["a", "b", "c"]), {})), components=np.zeros((2, 6)))
    save(S, model)
    for path in [p for p in model.rglob("*") if p.is_file()]:
        whole, key = path.read_bytes(), path.relative_to(model).as_posix()
        damage(path, how)
        if key.endswith("/zarr.json"):  # a copy of what the root says
            assert load(model) == S
        else:
            with pytest.raises(StoreError, match=r"zarr\.json" if key == "zarr.json" else key):
                load(model)
        path.write_bytes(whole)
    shutil.rmtree(model / "mean")
    save(S, model, overwrite=True)  # the way out that the message names
    assert load(model) == S


def test_every_flip_in_the_root_is_noticed(tmp_path: Path) -> None:
    model = tmp_path / "m.zarr"
    S = subspace(labels=grid())
    save(S, model)
    root = model / "zarr.json"
    whole = root.read_bytes()
    names = [whole.index(b'"%s"' % name) + 3 for name in (b"attributes", b"node_type", b"group", b"metadata")]
    for place in [*names, *random.Random(0).sample(range(len(whole)), 150)]:
        root.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        told = "zarr.json"
        try:
            assert load(model) == S
        except StoreError as error:
            told = str(error)
        assert "zarr.json" in told


def tampered(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the root and make its checksum fit again."""
    document = json.loads((model / "zarr.json").read_bytes())
    change(document["consolidated_metadata"]["metadata"])
    document["attributes"].pop("checksum")
    document["attributes"]["checksum"] = f"{zlib.crc32(json.dumps(document, sort_keys=True).encode()):08x}"
    (model / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["mean"]["codecs"].append({"name": "numcodecs.pickle"}), "numcodecs.pickle"),
        (lambda m: m["mean"].update(shape=[2**60, 3]), "chunks"),
        (lambda m: m["mean"]["chunk_grid"]["configuration"].update(chunk_shape=[2**40, 3]), "declares"),
        (lambda m: m["mean"]["chunk_key_encoding"].update(name="v2"), "other chunks"),
        (lambda m: m["mean"].update(shape=[5, 3], data_type="int8"), "chunks|decoded"),
        (lambda m: m["mean"].pop("codecs"), "describes no arrays"),
        (lambda m: m.pop("mean"), "chunks"),
        (lambda m: m["mean"].update(data_type="complex128"), "decoded"),
        (lambda m: m.update({"../mean": m["mean"]}), "unreadable"),
    ],
)
def test_hostile_metadata(tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    save(subspace(labels=grid()), tmp_path / "m.zarr")
    tampered(tmp_path / "m.zarr", change)
    with pytest.raises(StoreError, match=words):
        load(tmp_path / "m.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["m.zarr"]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nothing\.zarr does not exist"):
        load(tmp_path / "nothing.zarr")
    zarr.create_group(tmp_path / "g.zarr").create_array("mean", data=np.ones(3))
    zarr.consolidate_metadata(tmp_path / "g.zarr")
    with pytest.raises(StoreError, match="no components, singular_values"):
        load(tmp_path / "g.zarr")
    to_dataset(subspace()).to_zarr(tmp_path / "half.zarr", zarr_format=3)
    with pytest.raises(StoreError, match="half written"):
        load(tmp_path / "half.zarr")


def test_load_reads_again_when_a_version_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.store.read as reading

    model = tmp_path / "m.zarr"
    save(of_version(1), model)
    decode, turns = reading._decode, []

    def slow(store: Any, head: Head, place: str) -> Subspace:
        if not turns:
            turns.append(head.version)
            for path in [model / key for key in head.chunks]:
                path.unlink()
            save(of_version(2), model, overwrite=True)
        return decode(store, head, place)

    monkeypatch.setattr(reading, "_decode", slow)
    assert load(model) == of_version(2)
    assert turns == [1]


def test_errors_are_ours() -> None:
    assert issubclass(StoreError, PipelineError)
