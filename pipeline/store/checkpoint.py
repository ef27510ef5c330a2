"""`Checkpoint`: how far a fit has come, in a Zarr store, so that the same command goes on where it was killed.

A state is written beside the one before, as one array of bytes, since many small files would cost more than the state;
the root `zarr.json` names it, says what lies where in it, with checksums, and is replaced last. What is killed on the
way leaves the state before as it was.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from pipeline.errors import ConvergenceError, InputError, StoreError
from pipeline.store.head import ROOT, Chunk
from pipeline.store.lock import only_writer
from pipeline.store.read import Place, locate, open_store
from pipeline.store.state import pack, unpack

__all__ = ["Checkpoint", "checkpoint_at"]

_FORMAT, _RECORD = 1, "checkpoint"
_SMALL = 1 << 20  # bytes: a state that is written whenever there is an occasion
_CHUNK = 1 << 28  # bytes: the last chunk may be shorter than Zarr wants it, which only we read
_SHARE = 4  # a larger one, when so many times its size has been read since the last


class Checkpoint:
    """The one place where a fit writes its state; made by `checkpoint_at`.

    Parameters
    ----------
    store : Store
    place : str
        What it is called in messages.
    """

    def __init__(self, store: Store, place: str) -> None:
        self._store, self._place = store, place

    def __str__(self) -> str:
        return self._place

    def read(self, about: dict[str, str]) -> Any:
        """The state that is kept, or None where none is.

        Parameters
        ----------
        about : dict
            What names the data and the settings of the fit: words that must be the same.

        Raises
        ------
        StoreError
            When the state is that of other data or other settings, or is damaged.
        """
        raw = self._get(ROOT)
        if raw is None:
            if not sync(self._store.is_empty("")):
                raise StoreError(f"{self._place} holds something that is no checkpoint: choose another place")
            return None
        record = self._record(raw)
        differing = [what for what in about if record["about"].get(what) != about[what]]
        if differing:
            raise StoreError(
                f"the checkpoint {self._place} belongs to a fit of other {' and other '.join(differing)}: "
                "remove it, choose another place, or go back to what it was begun with"
            )
        arrays = self._arrays(record)
        try:
            return unpack(record["tree"], arrays)
        except StoreError as error:
            raise self._damaged(str(error)) from error

    def write(self, about: dict[str, str], state: Any) -> None:
        """Keep a state in the place of the one before, whole or not at all."""
        tree, arrays = pack(state)
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
        folder, chunks = uuid4().hex, [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
        record = {
            "format": _FORMAT,
            "folder": folder,
            "about": about,
            "arrays": {name: (array.dtype.str, array.shape) for name, array in arrays.items()},
            "chunks": [(len(chunk), Chunk.of(chunk).crc) for chunk in chunks],
            "tree": tree,
        }
        text = json.dumps(record)
        attributes = {_RECORD: text, "checksum": Chunk.of(text.encode()).crc}
        try:
            for i, chunk in enumerate(chunks):
                self._set(f"{folder}/c/{i}", chunk)
            self._set(f"{folder}/{ROOT}", _described(len(data)))
            self._sync(folder)
            self._set(ROOT, json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}).encode())
            self._sync(".")
            self._sweep(folder)
        except OSError as error:
            raise StoreError(
                f"the checkpoint {self._place} cannot be written ({error.strerror or error}): make room, or choose "
                "another place; the state before is as it was"
            ) from error

    def remove(self) -> None:
        """The fit is done: nothing is left of its checkpoint."""
        root = getattr(self._store, "root", None)
        if root is not None:
            shutil.rmtree(root, ignore_errors=True)
            return
        sync(self._store.delete(ROOT))
        sync(self._store.delete_dir(""))

    @staticmethod
    def due(nbytes: int, read: int) -> bool:
        """Whether writing a state costs little beside the reading of so many bytes."""
        return nbytes <= _SMALL or _SHARE * nbytes <= read

    def _get(self, key: str) -> bytes | None:
        data = sync(self._store.get(key, prototype=default_buffer_prototype()))
        return None if data is None else data.to_bytes()

    def _set(self, key: str, data: bytes) -> None:
        sync(self._store.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    def _record(self, raw: bytes) -> dict[str, Any]:
        try:
            attributes = json.loads(raw)["attributes"]
            text = attributes[_RECORD]
            whole = Chunk.of(text.encode()).crc == attributes["checksum"]
            record = json.loads(text)
            if record["format"] != _FORMAT or not record["folder"].isalnum():
                raise ValueError("of another version")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise StoreError(
                f"{self._place} holds something that is no checkpoint ({ROOT}: {error}): choose another place"
            ) from error
        if not whole:
            raise self._damaged(f"{ROOT} does not fit its checksum")
        return dict(record)

    def _arrays(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        parts = []
        for i, (size, crc) in enumerate(record["chunks"]):
            key = f"{record['folder']}/c/{i}"
            raw = self._get(key)
            if raw is None or Chunk.of(raw) != Chunk(size, crc):
                raise self._damaged(f"{key} {'is missing' if raw is None else 'does not fit its checksum'}")
            parts.append(raw)
        data, at, arrays = b"".join(parts), 0, {}
        for name, (dtype, shape) in record["arrays"].items():
            count = math.prod(shape)
            arrays[name] = np.frombuffer(data, np.dtype(dtype), count, at).reshape(shape).copy()
            at += arrays[name].nbytes
        return arrays

    def _damaged(self, fault: str) -> StoreError:
        return StoreError(f"the checkpoint {self._place} is damaged: {fault}; remove it to begin anew")

    def _sync(self, folder: str) -> None:
        """On a local disk: what was written is safe before it is pointed to."""
        root = getattr(self._store, "root", None)
        if root is None:
            return
        place = Path(root) / folder
        files = [place / ROOT] if folder == "." else [p for p in place.rglob("*") if p.is_file()]
        for path in dict.fromkeys([*files, *(p.parent for p in files), Path(root)]):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _sweep(self, folder: str) -> None:
        """Remove the states before, and what dead writers left."""
        root = getattr(self._store, "root", None)
        if root is not None:
            for path in Path(root).iterdir():
                if path.name not in (ROOT, folder):
                    shutil.rmtree(path, ignore_errors=True)
            return

        async def names() -> list[str]:
            return [name async for name in self._store.list_dir("")]

        for name in sync(names()):
            if name.strip("/") not in (ROOT, folder):
                sync(self._store.delete_dir(name))


@contextmanager
def checkpoint_at(place: Place | Checkpoint | None) -> Iterator[Checkpoint | None]:
    """A checkpoint for the time of a fit, removed after it; one that is open already is its opener's to remove.

    Parameters
    ----------
    place : str, PathLike, zarr Store, Checkpoint or None
        A path, a URL that fsspec knows, or an open store, that is empty or holds the state of an unfinished fit.

    Raises
    ------
    StoreError
        When something else is there, or another run on this machine uses it.
    """
    if place is None or isinstance(place, Checkpoint):
        yield place
        return
    located = locate(place)
    local = located if isinstance(located, Path) else None
    if local is not None and local.exists() and not local.is_dir():
        raise StoreError(f"{place} is a file: choose another place for the checkpoint")
    try:
        if local is not None:
            local.parent.mkdir(parents=True, exist_ok=True)
        with nullcontext() if local is None else only_writer(local, "uses the checkpoint"):
            checkpoint = Checkpoint(open_store(located, read_only=False), str(place))
            try:
                yield checkpoint
            except (ConvergenceError, InputError):  # a verdict that going on would only repeat
                checkpoint.remove()
                raise
            checkpoint.remove()
    except OSError as error:
        if local is None or not str(error.filename or "").startswith(str(local.parent)):
            raise
        raise StoreError(f"the checkpoint {place} cannot be used ({error.strerror}): choose another place") from error


def _described(size: int) -> bytes:
    """The `zarr.json` of an array of bytes."""
    about = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [size],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(min(size, _CHUNK), 1)]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes"}],
        "fill_value": 0,
        "attributes": {},
    }
    return json.dumps(about).encode()
