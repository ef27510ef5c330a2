"""`Messages`: bytes under names in a Zarr store, each a one-dimensional array of one chunk that is stored as it is.

Whoever opens the store with Zarr sees plain arrays of bytes; here their chunk is read as a file, of a size that is
known before, and no codec runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from pipeline.errors import StoreError
from pipeline.store.read import Place, locate, open_store

__all__ = ["Messages"]


class Messages:
    """Named bytes in a folder, an object store (by URL) or an open Zarr store.

    Examples
    --------
    >>> from zarr.storage import MemoryStore
    >>> box = Messages(MemoryStore())
    >>> box.put("a/1", b"hello")
    >>> box.names("a"), box.get("a/1"), box.get("a/2")
    (['1'], b'hello', None)
    """

    def __init__(self, store: Place) -> None:
        self.place = str(store)
        where = locate(store)
        self._store = open_store(where, read_only=False)
        if not isinstance(where, Path) or where.exists():  # a folder that is looked into by Zarr is there afterwards
            self._check_ours()

    def _check_ours(self) -> None:
        """Raise StoreError where something else lies in the store: a model, an array, files."""
        try:  # in this order, as another party may begin at this moment
            there = [name for name in self.names("") if not name.startswith(".")]
            root = sync(self._store.get("zarr.json", default_buffer_prototype()))
        except OSError as error:
            raise StoreError(f"{self.place} cannot be used: {error.strerror or error}") from error
        if root.to_bytes() != _group() if root is not None else there:
            raise StoreError(f"{self.place} holds something else than messages: choose another place")

    def put(self, name: str, data: bytes) -> None:
        """Write bytes; what was there under the name is replaced in one step."""
        parts = name.split("/")
        try:
            for depth in range(len(parts)):
                self._set("/".join([*parts[:depth], "zarr.json"]), _group())
            self._set(f"{name}/c/0", data)
            self._set(f"{name}/zarr.json", _array(len(data)))
        except OSError as error:
            raise StoreError(f"{self.place} cannot be written: {error.strerror or error}") from error

    def get(self, name: str, largest: int = 2**31) -> bytes | None:
        """The bytes under a name, None where there are none; raises StoreError for more than `largest` bytes."""
        key = f"{name}/c/0"
        try:
            size = sync(self._store.getsize(key))
            if size > largest:
                raise StoreError(f"{name} in {self.place} has {size} bytes, more than the {largest} that are read")
            data = sync(self._store.get(key, default_buffer_prototype()))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.place} cannot be read: {error.strerror or error}") from error
        return None if data is None else data.to_bytes()

    def names(self, prefix: str) -> list[str]:
        """What there is under a prefix, in order."""

        async def listed() -> list[str]:
            return [name async for name in self._store.list_dir(prefix)]

        try:
            found = sync(listed())
        except (FileNotFoundError, NotADirectoryError):
            return []
        named = {name.rstrip("/") for name in found} - {"", "zarr.json"}
        return sorted(name for name in named if not name.endswith(".partial"))  # Zarr writes beside, then renames

    def _set(self, key: str, data: bytes) -> None:
        sync(self._store.set(key, default_buffer_prototype().buffer.from_bytes(data)))


def _group() -> bytes:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()


def _array(size: int) -> bytes:
    meta: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [size],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(size, 1)]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": {},
    }
    return json.dumps(meta).encode()
