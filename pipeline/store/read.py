"""Reading a stored model: every chunk is checked against the record before it is decoded."""

from __future__ import annotations

import fcntl
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import numpy as np
import xarray as xr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from pipeline.errors import InputError, StoreError
from pipeline.store.dataset import from_dataset
from pipeline.store.head import ROOT, Chunk, Head
from pipeline.subspace import Subspace

__all__ = ["Place", "check_inside", "is_icechunk", "is_objects", "load", "locate", "open_store", "read_root", "sound"]

Place = str | os.PathLike[str] | Store
_ATTEMPTS = 5
_LARGEST_CHUNK, _LARGEST_ROOT = 64 << 20, 64 << 20  # bytes; we write 16 MB
# All that we write: none of them runs code that comes with the data, as pickle does, and none holds other codecs.
_CODECS = {"bytes", "crc32c", "vlen-bytes", "vlen-utf8", "zstd"}
_ZSTD = b"\x28\xb5\x2f\xfd"
RETRIES: dict[str, Any] = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}  # of a request, with pauses
OBJECTS = ("s3", "s3a", "gs", "az", "abfs", "abfss")


def load(store: Place, version: int | str | None = None) -> Subspace:
    """Read a model from a store.

    Parameters
    ----------
    store : str, PathLike, zarr Store
        A path, a URL, or an open store.
    version : int or str, optional
        A number, a tag, or the first digits of an id, as `pipeline log` tells them; default: the head.

    Raises
    ------
    StoreError
        When nothing is there, it is not a model, it has no such version, or a part of it is missing or damaged: the
        part is named.
    """
    located, place = locate(store), str(store)
    if isinstance(located, Path) and not os.path.lexists(located):
        raise StoreError(f"{place} does not exist")
    if is_icechunk(located):
        from pipeline.store.icechunk import Repository

        return Repository(located).load(version)
    opened = open_store(located)
    try:
        for _ in range(_ATTEMPTS):
            raw = read_root(opened, place)
            head = Head.parse(raw, place)
            try:
                return _load(opened, head, place, version)
            except StoreError:
                # Replaced while it was read, so that its chunks went away: the next version is whole.
                if read_root(opened, place) == raw:
                    raise
    except OSError as error:
        raise StoreError(f"{place} cannot be read: {error.strerror or error}") from error
    raise StoreError(f"{place} is replaced faster than it can be read: try again")


def _load(store: Store, head: Head, place: str, version: int | str | None) -> Subspace:
    entry = head.entry if version is None else head.find(version, place)
    if entry is None or (entry.id == head.id and head.members):  # the head itself lies in the root
        return _decode(store, head, place)
    check_inside(store, f"{entry.path}/{ROOT}", place)
    with _held(store, entry.path):
        beside = f"{place}/{entry.path}"
        raw = read_root(store, place, entry.path)
        return _decode(store, Head.parse(raw, beside), beside, entry.path)


@contextmanager
def _held(store: Store, path: str) -> Iterator[None]:
    """While inside, no writer on this machine removes a version."""
    root = getattr(store, "root", None)
    try:
        file = None if root is None else open(Path(root) / path / ROOT, "rb")  # noqa: SIM115
    except FileNotFoundError as error:
        raise StoreError(f"{path}/{ROOT} is missing: the version has expired, or restore it from a copy") from error
    if file is None:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def sound(folder: Path, place: str) -> Head:
    """The version in a folder, all of whose chunks are there and fit their checksums."""
    if not folder.is_dir():
        raise StoreError(f"{place} is missing: restore it from a copy")
    store = LocalStore(folder, read_only=True)
    head = Head.parse(read_root(store, place), place)
    _check_layout(head, place)
    checked = Checked(store, head, place)
    for key in head.chunks:
        sync(checked.get(key, default_buffer_prototype()))
    return head


def is_icechunk(place: Path | str | Any) -> bool:
    """Whether a place is an Icechunk repository: one by its URL, its folders, or an open one."""
    if isinstance(place, Path):
        return all((place / name).is_dir() for name in ("refs", "snapshots")) and not (place / ROOT).exists()
    if isinstance(place, str):
        return place.startswith("icechunk:")
    return type(place).__module__.split(".")[0] == "icechunk"


def locate(store: Place) -> Path | str | Store:
    """Where a store lies: a path with links resolved when it is on a local disk, else the URL or the store itself."""
    if isinstance(store, LocalStore):
        return Path(os.path.realpath(store.root))
    if isinstance(store, Store):
        return store
    if is_icechunk(store):
        return store  # type: ignore[return-value]
    text = os.fspath(store)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    return text if "://" in text or is_icechunk(text) else Path(os.path.realpath(text))


def is_objects(place: Any) -> bool:
    """Whether a place is the URL of an object store, and `obstore` (the extra `s3`) is there to open it."""
    return isinstance(place, str) and urlsplit(place).scheme in OBJECTS and find_spec("obstore") is not None


def open_store(place: Path | str | Store, read_only: bool = True) -> Store:
    """The Zarr store at a place; raises StoreError when its URL is not known."""
    if isinstance(place, Store):
        return place
    if isinstance(place, Path):
        return LocalStore(place, read_only=read_only)
    try:
        if is_objects(place):
            return open_objects(place, read_only=read_only)
        return FsspecStore.from_url(place, read_only=read_only)
    except (ImportError, ValueError, OSError) as error:
        raise StoreError(f"{place} cannot be opened: {error}") from error


def open_objects(url: str, read_only: bool = True) -> Store:
    """An object store by its URL, through `obstore`; keys, region and endpoint come from the environment (AWS_…)."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url
    from zarr.storage import ObjectStore

    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    options: Any = {"allow_http": True} if plain else None
    try:
        return ObjectStore(from_url(url, client_options=options, retry_config=cast(Any, RETRIES)), read_only=read_only)
    except BaseError as error:
        raise ValueError(str(error).splitlines()[0]) from error


def read_root(store: Store, place: str, path: str = "") -> bytes | None:
    """The bytes of the root `zarr.json` (of a group inside), if there is one; StoreError for one of many megabytes."""
    key = f"{path}/{ROOT}" if path else ROOT
    check_inside(store, key, place)
    root = getattr(store, "root", None)
    if root is not None and (Path(root) / key).exists() and (Path(root) / key).stat().st_size > _LARGEST_ROOT:
        raise StoreError(f"{place} cannot be trusted: {key} is larger than {_LARGEST_ROOT >> 20} MB")
    data = sync(store.get(key, prototype=default_buffer_prototype()))
    return None if data is None else data.to_bytes()


def check_inside(store: Store, key: str, place: str) -> None:
    """Refuse a link that leads out of a store on a local disk."""
    root = getattr(store, "root", None)
    if root is None:
        return
    inside, path = os.path.realpath(root), os.path.realpath(Path(root) / key)
    if os.path.commonpath([inside, path]) != inside:
        raise StoreError(f"{place} cannot be trusted: {key} is a link that leads out of it; save the model again")


def _decode(store: Store, head: Head, place: str, path: str = "") -> Subspace:
    _check_layout(head, place)
    try:
        checked = Checked(store, head, place, path)
        ds = xr.open_zarr(checked, consolidated=True, decode_cf=False, chunks=None).load()
        return from_dataset(ds)
    except StoreError:
        raise
    except InputError as error:
        raise StoreError(f"{place} is not a model: {error}") from error
    except Exception as error:  # bytes of unknown origin: a decoder may raise anything
        raise StoreError(f"{place} cannot be decoded ({error}): save the model again") from error


class Checked(WrapperStore[Store]):
    """A store that gives out one version's root and those of its chunks that are what the record says."""

    def __init__(self, store: Store, head: Head, place: str, path: str = "") -> None:
        super().__init__(store)
        self._head, self._place, self._path, self._root = head, place, path, head.dump()

    def _with_store(self, store: Store) -> Checked:
        return type(self)(store, self._head, self._place, self._path)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The root, a checked chunk, or None; chunks are always read whole."""
        if key == ROOT:
            return prototype.buffer.from_bytes(self._root)
        if key not in self._head.chunks:
            return None
        where = f"{self._path}/{key}" if self._path else key
        self._check_size(key, where)
        data = await self._store.get(where, prototype)
        self._check(key, None if data is None else data.to_bytes())
        return data

    def _check_size(self, key: str, where: str) -> None:
        """On a local disk: what is too large, or a link that leads elsewhere, is not even opened."""
        check_inside(self._store, where, self._place)
        root = getattr(self._store, "root", None)
        path = None if root is None else Path(root) / where
        if path is not None and path.exists() and path.stat().st_size != self._head.chunks[key].size:
            raise self._damaged(key, f"has {path.stat().st_size} bytes instead of {self._head.chunks[key].size}")

    def _check(self, key: str, data: bytes | None) -> None:
        known = self._head.chunks[key]
        if data is None:
            fault = "is missing"
        elif len(data) != known.size:
            fault = f"has {len(data)} bytes instead of {known.size}"
        elif Chunk.of(data) != known:
            fault = "does not fit its checksum"
        elif data[:4] == _ZSTD and _frame_size(data) > _LARGEST_CHUNK:
            fault = "unpacks to more than was ever written"
        else:
            return
        raise self._damaged(key, fault)

    def _damaged(self, key: str, fault: str) -> StoreError:
        return StoreError(
            f"{self._place} is damaged: chunk {key} {fault}; restore it from a copy or save the model again"
        )


def _check_layout(head: Head, place: str) -> None:
    """Refuse, before any chunk is read, what we would not have written."""
    try:
        for name, meta in head.members.items():
            unknown = sorted({str(codec["name"]) for codec in meta["codecs"]} - _CODECS)
            if unknown:
                raise StoreError(f"array {name} needs the codec {', '.join(unknown)}, which is not read here")
            shape = meta["chunk_grid"]["configuration"]["chunk_shape"]
            if min([*shape, *meta["shape"], 0]) < 0 or math.prod(shape) * _itemsize(meta) > _LARGEST_CHUNK:
                raise StoreError(f"array {name} declares chunks of {math.prod(shape)} values")
        if head.expected() != set(head.chunks):
            raise StoreError(f"the record in {ROOT} has other chunks than the arrays ask for")
    except StoreError as error:
        raise StoreError(f"{place} cannot be trusted: {error}; save the model again") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise StoreError(f"{place} is damaged: {ROOT} describes no arrays; save the model again") from error


def _itemsize(meta: Mapping[str, Any]) -> int:
    """Bytes of an entry; those of text are known only when it is read."""
    kind = meta["data_type"]
    if isinstance(kind, Mapping):
        return int(kind.get("configuration", {}).get("length_bytes", 8))
    return 1 if kind in ("string", "bytes", "variable_length_bytes") else np.dtype(kind).itemsize


def _frame_size(data: bytes) -> int:
    """What a Zstandard frame says it unpacks to (RFC 8878, 3.1.1.1); endless where it does not say."""
    descriptor = data[4]
    single, dictionary, width = descriptor >> 5 & 1, (0, 1, 2, 4)[descriptor & 3], (0, 2, 4, 8)[descriptor >> 6]
    if width == 0:
        width = single
    start = 5 + (not single) + dictionary
    if width == 0:
        return sys.maxsize
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)
