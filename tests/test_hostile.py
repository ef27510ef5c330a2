"""Stores of unknown origin: no code runs, nothing outside of them is read, and what is refused is refused at once."""

from __future__ import annotations

import json
import os
import pickle
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr

from pipeline import PCA, open_matrix
from pipeline.errors import PipelineError, StoreError
from pipeline.store import load, rollback, save
from pipeline.store.head import _checksum
from tests.test_store import of_version, subspace

SECRET = np.full((4, 3), 42.0)


class Evil:
    """What runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@contextmanager
def at_once() -> Iterator[None]:
    """Within a second and 100 MB."""
    tracemalloc.start()
    started = time.perf_counter()
    try:
        yield
        assert time.perf_counter() - started < 1.0
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def forged(model: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Change the arrays or the record of a model and make its checksum fit, as who wants to deceive would."""
    document = json.loads((model / "zarr.json").read_bytes())
    record = json.loads(document["attributes"]["publication"])
    change(document["consolidated_metadata"]["metadata"], record)
    document["attributes"]["publication"] = json.dumps(record)
    document["attributes"].pop("checksum")
    record_of = dict(document)
    document["attributes"]["checksum"] = _checksum(record_of)
    (model / "zarr.json").write_text(json.dumps(document))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    place = tmp_path / "m.zarr"
    save(of_version(1), place)
    save(of_version(2), place, overwrite=True)
    load(place)  # all that is imported on the way is not to count
    return place


PICKLE = {"name": "numcodecs.pickle", "configuration": {"protocol": 5}}
SHARDS = {
    "name": "sharding_indexed",
    "configuration": {"chunk_shape": [1], "codecs": [PICKLE], "index_codecs": [PICKLE]},
}
FORGERIES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "pickle": (lambda m, r: m["mean"].update(codecs=[PICKLE]), "mean needs the codec numcodecs.pickle"),
    "pickle after bytes": (lambda m, r: m["mean"]["codecs"].append(PICKLE), "mean needs the codec numcodecs.pickle"),
    "pickle in shards": (lambda m, r: m["mean"].update(codecs=[SHARDS]), "mean needs the codec sharding_indexed"),
    "a shape without end": (lambda m, r: m["mean"].update(shape=[2**60, 3]), "chunks"),
    "a chunk without end": (
        lambda m, r: m["mean"]["chunk_grid"]["configuration"].update(chunk_shape=[2**40, 3]),
        "mean",
    ),
    "a large chunk": (lambda m, r: m["mean"]["chunk_grid"]["configuration"].update(chunk_shape=[2**25, 3]), "mean"),
    "a negative shape": (lambda m, r: m["mean"].update(shape=[-2, 3]), "mean|chunks|arrays"),
    "an array elsewhere": (lambda m, r: m.update({"../x.zarr": m["mean"]}), "unreadable"),
    "an absolute array": (lambda m, r: m.update({"/etc/x": m["mean"]}), "unreadable"),
    "a chunk elsewhere": (lambda m, r: r["chunks"].update({"../x.zarr/c/0/0": [1, 1]}), "chunks"),
    "a version elsewhere": (lambda m, r: r["history"][0].__setitem__(5, "../x.zarr"), "unreadable"),
    "an id that leads elsewhere": (lambda m, r: r["history"][0].__setitem__(1, "../../x"), "unreadable"),
    "another format": (lambda m, r: r.update(format=99), "newer version"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_model_is_refused(model: Path, tmp_path: Path, forgery: str) -> None:
    change, words = FORGERIES[forgery]
    zarr.create_array(tmp_path / "x.zarr", data=SECRET)
    forged(model, change)
    for path in [p for p in model.rglob("c/**/*") if p.is_file()]:
        path.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    before = {p for p in tmp_path.rglob("*") if "x.zarr" in str(p)}
    with at_once(), pytest.raises(StoreError, match=words):
        load(model)
    assert not (tmp_path / "ran").exists()
    assert before == {p for p in tmp_path.rglob("*") if "x.zarr" in str(p)}


@pytest.mark.parametrize("what", ["chunk", "folder", "root", "version"])
def test_a_link_that_leads_out_is_not_followed(model: Path, tmp_path: Path, what: str) -> None:
    other = tmp_path / "other.zarr"
    save(of_version(2), other)
    record = json.loads(json.loads((model / "zarr.json").read_bytes())["attributes"]["publication"])
    chunk = model / next(key for key in record["chunks"] if key.startswith("mean/"))
    path = {
        "chunk": chunk,
        "folder": model / "mean",
        "root": model / "zarr.json",
        "version": next((model / "versions").iterdir()),
    }[what]
    aside = tmp_path / "aside"
    path.rename(aside)
    path.symlink_to(aside)
    with at_once(), pytest.raises(StoreError, match="is a link that leads out of it"):
        load(model, 1 if what == "version" else None)
    if what == "version":
        with pytest.raises(StoreError, match="leads out"):
            rollback(model, 1)


def test_a_chunk_that_unpacks_without_end(model: Path) -> None:
    bomb = numcodecs.Zstd(1).encode(bytes(300 << 20))
    data = bomb + int(google_crc32c.value(bomb)).to_bytes(4, "little")
    document = json.loads((model / "zarr.json").read_bytes())
    key = next(k for k in json.loads(document["attributes"]["publication"])["chunks"] if k.startswith("mean/"))
    (model / key).write_bytes(data)
    forged(model, lambda m, r: r["chunks"].update({key: [len(data), zlib.crc32(data)]}))
    with at_once(), pytest.raises(StoreError, match=f"chunk {key} unpacks to more"):
        load(model)


def test_a_root_without_end(model: Path) -> None:
    with open(model / "zarr.json", "r+b") as file:
        file.truncate(1 << 40)
    with at_once(), pytest.raises(StoreError, match="larger than"):
        load(model)


# Sources -------------------------------------------------------------------------------------------------------------


def v2(path: Path, **changes: Any) -> Path:
    path.mkdir()
    about = {"zarr_format": 2, "shape": [4, 3], "chunks": [2, 3], "dtype": "<f8", "fill_value": 0, "order": "C"}
    (path / ".zarray").write_text(json.dumps({**about, "compressor": None, "filters": None, **changes}))
    return path


def v3(path: Path, codecs: list[Any]) -> Path:
    zarr.create_array(path, data=SECRET, chunks=(2, 3))
    about = json.loads((path / "zarr.json").read_bytes())
    (path / "zarr.json").write_text(json.dumps({**about, "codecs": codecs}))
    return path


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
INNER = {
    "name": "sharding_indexed",
    "configuration": {"chunk_shape": [1, 3], "codecs": [BYTES, PICKLE], "index_codecs": [BYTES]},
}
SOURCES: dict[str, Callable[[Path], Path]] = {
    "v2 filter": lambda p: v2(p, filters=[{"id": "pickle"}]),
    "v2 compressor": lambda p: v2(p, compressor={"id": "pickle"}),
    "v2 behind another": lambda p: v2(p, filters=[{"id": "delta", "dtype": "<f8"}, {"id": "pickle"}]),
    "v2 objects": lambda p: v2(p, dtype="|O", filters=[{"id": "pickle"}], fill_value=None),
    "v3 codec": lambda p: v3(p, [BYTES, PICKLE]),
    "v3 inside of shards": lambda p: v3(p, [INNER]),
    "a shape without end": lambda p: v2(p, shape=[2**60, 3]),
    "a chunk without end": lambda p: v2(p, chunks=[2**40, 3]),
    "a square without end": lambda p: v2(p, shape=[2**62, 2**62]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_hostile_source_is_not_read(tmp_path: Path, source: str) -> None:
    open_matrix(SECRET)
    place = SOURCES[source](tmp_path / "s.zarr")
    for name in ("0.0", "1.0", "c/0/0", "c/1/0"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    words = "pickle" if "out end" not in source else "declares"
    with at_once(), pytest.raises(PipelineError, match=f"s.zarr.*{words}"):
        open_matrix(str(place))
    assert not (tmp_path / "ran").exists()


def test_a_coordinate_with_a_pickle_codec(tmp_path: Path) -> None:
    import xarray as xr

    place = tmp_path / "g.zarr"
    xr.Dataset({"a": (("t", "x"), SECRET)}, {"x": np.arange(3.0)}).to_zarr(place, zarr_format=3, consolidated=False)
    about = json.loads((place / "x" / "zarr.json").read_bytes())
    (place / "x" / "zarr.json").write_text(json.dumps({**about, "codecs": [BYTES, PICKLE]}))
    (place / "x" / "c" / "0").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(PipelineError):
        open_matrix(str(place), variable="a")
    assert not (tmp_path / "ran").exists()


def test_a_member_that_leads_out_of_the_group(tmp_path: Path) -> None:
    place = tmp_path / "g.zarr"
    zarr.create_array(tmp_path / "secret.zarr", data=SECRET)
    zarr.create_group(place).create_array("a", data=SECRET)
    zarr.consolidate_metadata(place)
    root = json.loads((place / "zarr.json").read_bytes())
    members = root["consolidated_metadata"]["metadata"]
    members["../secret.zarr"] = members["a"]
    (place / "zarr.json").write_text(json.dumps(root))
    for variable in (None, "../secret.zarr"):
        with pytest.raises(PipelineError):
            open_matrix(str(place), variable=variable)


def test_attributes_may_say_what_they_like(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", data=SECRET + np.arange(3), attributes={"name": "pickled herring"})
    assert PCA(1).fit(open_matrix(str(tmp_path / "a.zarr"))).n_components_ == 1
    assert array.attrs["name"] == "pickled herring"


def test_the_words_name_the_key(tmp_path: Path) -> None:
    save(subspace(k=1, d=3), tmp_path / "m.zarr")
    forged(tmp_path / "m.zarr", lambda m, r: m["singular_values"]["codecs"].append(PICKLE))
    with pytest.raises(StoreError, match="array singular_values needs the codec"):
        load(tmp_path / "m.zarr")
