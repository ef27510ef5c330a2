"""A stamp of a source: changes when the stored data do, and is found without reading them.

Stored chunks are known by their names, sizes and times of writing (or tags, in object stores), arrays in memory by
their bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import singledispatch
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

from pipeline.sources.anndata import StoredSparse
from pipeline.sources.grid import Decoded, Grid
from pipeline.sources.joined import Joined
from pipeline.sources.source import Source
from pipeline.sources.sparse import Sparse
from pipeline.sources.window import Window

__all__ = ["likeness", "stamp", "stamp_of_rows", "view"]


@singledispatch
def stamp(source: Source) -> str | None:
    """32 hex digits that name the entries of a source as they are now; None where only reading would tell."""
    return None


@stamp.register
def _(source: Grid) -> str | None:
    array = _zarr(source.array)
    content: list[Any] | None = None if array is None else _stored(array)
    if isinstance(source.array, np.ndarray):
        content = [source.array]
    where = [i if isinstance(i, np.ndarray) else (i.start, i.stop) for i in source.index]
    if content is None:
        return None
    return _digest(source.array.shape, str(source.array.dtype), source.axes, *where, *content)


@stamp.register
def _(source: Sparse) -> str | None:
    return _digest(source.shape, source.array.format, source.array.data, source.array.indices, source.array.indptr)


@stamp.register
def _(source: StoredSparse) -> str | None:
    parts = [_stored(part) for part in (source.data, source.indices, source.indptr)]
    return None if None in parts else _digest(source.form, source.shape, *parts)


@stamp.register
def _(source: Joined) -> str | None:
    parts = [stamp(part) for part in source.parts]
    return None if None in parts else _digest(*parts)


@stamp.register
def _(source: Window) -> str | None:
    base = stamp(source.base)
    return base and _digest(base, source.start, source.stop)


def likeness(source: Source) -> str:
    """The stamp, or where there is none 32 hex digits of a few rows and, for Dask arrays, of their names."""
    rows = sorted({0, source.shape[0] // 2, max(source.shape[0] - 1, 0)})
    known = stamp(source)
    if known is not None:
        return known
    parts = [source.read((i, i + 1), (0, source.shape[1])) for i in rows if i < source.shape[0]]
    return _digest(type(source).__name__, source.shape, [c.name for c in source.collections], *parts)


def stamp_of_rows(source: Source, stop: int) -> str:
    """A stamp of the stored chunks that hold nothing but the first `stop` rows; '' where nothing is known of them."""
    if isinstance(source, Joined):
        parts: list[Any] = [stamp_of_rows(part, stop) or None for part in source.parts]
    elif isinstance(source, StoredSparse) and source.form == "csr":
        entries = int(np.asarray(source.indptr[stop]))
        whole = ((source.indptr, stop), (source.data, entries), (source.indices, entries))
        parts = [_before(array, 0, end) for array, end in whole]
    elif isinstance(source, Grid) and (array := _zarr(source.array)) is not None:
        first = source.axes[0][0]
        index = source.index[first]
        if not isinstance(index, slice):
            return ""
        parts = [_before(array, first, index.start + stop // prod(source.sizes[0][1:]))]
    else:
        return ""
    return "" if None in parts else _digest(*parts)


def _before(array: Any, axis: int, stop: int) -> list[Any] | None:
    """What tells the state of the stored chunks that end before `stop` along an axis."""
    whole, kept = stop // (array.shards or array.chunks)[axis], []
    held = _held(array)
    if held is None:
        return None
    for name, *state in held:
        place = [int(part) for part in name.replace("/", ".").split(".") if part.isdecimal()]
        if len(place) == array.ndim and place[axis] < whole:
            kept.append((name, *state))
    return [whole, kept]


def view(source: Source) -> str:
    """Which part of what is stored a source shows, but for where its rows end."""
    if isinstance(source, Joined):
        return _digest(*(view(part) for part in source.parts))
    if isinstance(source, StoredSparse):
        return _digest(source.form, source.data.path)
    if not isinstance(source, Grid):
        return type(source).__name__
    first = source.axes[0][0]
    where = [
        (i.start, None if axis == first else i.stop) if isinstance(i, slice) else _digest(i)
        for axis, i in enumerate(source.index)
    ]
    return _digest(getattr(_zarr(source.array), "path", ""), source.axes, where)


def _zarr(array: Any) -> zarr.Array[Any] | None:
    """The stored array that holds the entries of another."""
    array = array.stored if isinstance(array, Decoded) else array
    return array if isinstance(array, zarr.Array) else None


def _stored(array: zarr.Array[Any]) -> list[Any] | None:
    """What tells the stored state of an array, or None where its store tells nothing without reading."""
    held = _held(array)
    return None if held is None else [json.dumps(array.metadata.to_dict(), default=str, sort_keys=True), *held]


def _held(array: zarr.Array[Any]) -> list[tuple[Any, ...]] | None:
    """What its store tells of each of its files: the name inside the array first, and what changes when it does."""
    store, prefix = array.store, f"{array.path}/" if array.path else ""
    while isinstance(store, WrapperStore):
        store = store._store
    if isinstance(store, LocalStore):
        return list(_files(Path(store.root) / array.path))
    if isinstance(store, MemoryStore):
        held = sorted((k, v.to_bytes()) for k, v in store._store_dict.items() if k.startswith(prefix))
        return [(name.removeprefix(prefix), state) for name, state in held]
    if isinstance(store, FsspecStore):
        root = f"{store.path}/{array.path}".rstrip("/")
        found = store.fs.fs.find(root, detail=True) if hasattr(store.fs, "fs") else _found(store.fs, root)
        return [(k.removeprefix(f"{root}/"), _tag(v)) for k, v in sorted(found.items())]
    objects = getattr(store, "store", None)
    if type(store).__name__ == "ObjectStore" and objects is not None:
        import obstore

        found = [o for batch in obstore.list(objects, array.path or None) for o in batch]
        states = sorted((o["path"], o["size"], str(o["e_tag"] or o["last_modified"])) for o in found)
        return [(name.removeprefix(prefix), *state) for name, *state in states]
    return None


def _found(fs: Any, root: str) -> dict[str, Any]:
    from fsspec.asyn import sync as wait

    return dict(wait(fs.loop, fs._find, root, detail=True)) if fs.async_impl else dict(fs.find(root, detail=True))


def _tag(info: dict[str, Any]) -> str:
    known = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "created")
    return json.dumps({k: info[k] for k in known if k in info}, default=str)


def _files(root: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of writing of every file below a folder, in the order of their names."""
    found: list[tuple[str, int, int]] = []
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(Path(entry.path))
                else:
                    info = entry.stat()
                    found.append((os.path.relpath(entry.path, root), info.st_size, info.st_mtime_ns))
    return sorted(found)


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in _flattened(parts):
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            rows = part if part.flags.c_contiguous else np.ascontiguousarray(part)
            digest.update(rows.view(np.uint8).data if part.dtype.kind in "biufc" and part.size else rows.tobytes())
        else:
            digest.update(part if isinstance(part, bytes) else f"{part!r};".encode())
    return digest.hexdigest()[:32]


def _flattened(parts: Iterable[Any]) -> Iterable[Any]:
    for part in parts:
        if isinstance(part, tuple | list):
            yield from _flattened(part)
        else:
            yield part
