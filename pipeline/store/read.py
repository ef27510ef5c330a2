"""Reading a stored model: every chunk is checked against the record before it is decoded."""

from __future__ import annotations

import math
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import xarray as xr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from pipeline.errors import InputError, StoreError
from pipeline.store.dataset import from_dataset
from pipeline.store.head import ROOT, Chunk, Head
from pipeline.subspace import Subspace

__all__ = ["Place", "load", "locate", "open_store", "read_root"]

Place = str | os.PathLike[str] | Store
_ATTEMPTS = 5
_LARGEST_CHUNK = 2**28  # values; we write 16 MB
# All that we write and what Zarr's core has beside: none of them runs code that comes with the data, as pickle does.
_CODECS = {"blosc", "bytes", "crc32c", "gzip", "transpose", "vlen-bytes", "vlen-utf8", "zstd"}


def load(store: Place) -> Subspace:
    """Read a model from a store.

    Parameters
    ----------
    store : str, PathLike, zarr Store
        A path, a URL that fsspec knows, or an open store.

    Raises
    ------
    StoreError
        When nothing is there, it is not a model, or a part of it is missing or damaged: the part is named.
    """
    located, place = locate(store), str(store)
    if isinstance(located, Path) and not os.path.lexists(located):
        raise StoreError(f"{place} does not exist")
    opened = open_store(located)
    try:
        for _ in range(_ATTEMPTS):
            raw = read_root(opened)
            head = Head.parse(raw, place)
            try:
                return _decode(opened, head, place)
            except StoreError:
                # Replaced while it was read, so that its chunks went away: the next version is whole.
                if read_root(opened) == raw:
                    raise
    except OSError as error:
        raise StoreError(f"{place} cannot be read: {error.strerror or error}") from error
    raise StoreError(f"{place} is replaced faster than it can be read: try again")


def locate(store: Place) -> Path | str | Store:
    """Where a store lies: a path with links resolved when it is on a local disk, else the URL or the store itself."""
    if isinstance(store, LocalStore):
        return Path(os.path.realpath(store.root))
    if isinstance(store, Store):
        return store
    text = os.fspath(store)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    return text if "://" in text else Path(os.path.realpath(text))


def open_store(place: Path | str | Store, read_only: bool = True) -> Store:
    """The Zarr store at a place; raises StoreError when its URL is not known."""
    if isinstance(place, Store):
        return place
    if isinstance(place, Path):
        return LocalStore(place, read_only=read_only)
    try:
        return FsspecStore.from_url(place, read_only=read_only)
    except (ImportError, ValueError, OSError) as error:
        raise StoreError(f"{place} cannot be opened: {error}") from error


def read_root(store: Store) -> bytes | None:
    """The bytes of the root `zarr.json`, if there is one."""
    data = sync(store.get(ROOT, prototype=default_buffer_prototype()))
    return None if data is None else data.to_bytes()


def _decode(store: Store, head: Head, place: str) -> Subspace:
    _check_layout(head, place)
    try:
        ds = xr.open_zarr(Checked(store, head, place), consolidated=True, decode_cf=False, chunks=None).load()
        return from_dataset(ds)
    except StoreError:
        raise
    except InputError as error:
        raise StoreError(f"{place} is not a model: {error}") from error
    except Exception as error:  # bytes of unknown origin: a decoder may raise anything
        raise StoreError(f"{place} cannot be decoded ({error}): save the model again") from error


class Checked(WrapperStore[Store]):
    """A store that gives out one version's root and those of its chunks that are what the record says."""

    def __init__(self, store: Store, head: Head, place: str) -> None:
        super().__init__(store)
        self._head, self._place, self._root = head, place, head.dump()

    def _with_store(self, store: Store) -> Checked:
        return type(self)(store, self._head, self._place)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The root, a checked chunk, or None; chunks are always read whole."""
        if key == ROOT:
            return prototype.buffer.from_bytes(self._root)
        if key not in self._head.chunks:
            return None
        data = await self._store.get(key, prototype)
        self._check(key, None if data is None else data.to_bytes())
        return data

    def _check(self, key: str, data: bytes | None) -> None:
        known = self._head.chunks[key]
        if data is None:
            fault = "is missing"
        elif len(data) != known.size:
            fault = f"has {len(data)} bytes instead of {known.size}"
        elif Chunk.of(data) != known:
            fault = "does not fit its checksum"
        else:
            return
        raise StoreError(
            f"{self._place} is damaged: chunk {key} {fault}; restore it from a copy or save the model again"
        )


def _check_layout(head: Head, place: str) -> None:
    """Refuse, before any chunk is read, what we would not have written."""
    try:
        for name, meta in head.members.items():
            unknown = sorted({str(codec["name"]) for codec in meta["codecs"]} - _CODECS)
            if unknown:
                raise StoreError(f"array {name} needs the codec {', '.join(unknown)}, which is not read here")
            size = math.prod(meta["chunk_grid"]["configuration"]["chunk_shape"])
            if size > _LARGEST_CHUNK:
                raise StoreError(f"array {name} declares chunks of {size} values")
        if head.expected() != set(head.chunks):
            raise StoreError(f"the record in {ROOT} has other chunks than the arrays ask for")
    except StoreError as error:
        raise StoreError(f"{place} cannot be trusted: {error}; save the model again") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise StoreError(f"{place} is damaged: {ROOT} describes no arrays; save the model again") from error
