"""`probe`: what a place allows this process to do, tried with a small file that is removed again."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.store.read import OBJECTS, Place, locate, open_store

__all__ = ["ABILITIES", "PROBE", "probe"]

ABILITIES = ("read", "write", "conditional write")
PROBE = ".probe-"
"""What the names of all files begin with that are written to try a place."""


def probe(place: Place) -> dict[str, str]:
    """Try to read, to write, and to write on condition that nobody else did.

    Parameters
    ----------
    place : path, URL or zarr Store

    Returns
    -------
    dict
        Each of `ABILITIES` to '' where it works, else why it does not; a place that is empty counts as readable.

    Examples
    --------
    >>> import tempfile
    >>> probe(tempfile.mkdtemp())
    {'read': '', 'write': '', 'conditional write': ''}
    """
    located = locate(place)
    acts: Any = _Folder(located) if isinstance(located, Path) else None
    told = {}
    try:
        if acts is None:
            objects = str(located).split("://")[0] in OBJECTS
            store = open_store(located.removeprefix("icechunk:") if isinstance(located, str) else located, False)
            acts = _Objects(store) if objects and hasattr(store, "store") else _Other(store)
    except Exception as error:
        return dict.fromkeys(ABILITIES, _why(error))
    try:
        for ability, act in zip(ABILITIES, (acts.read, acts.write, acts.condition), strict=True):
            try:
                told[ability] = act() or ""
            except Exception as error:  # whatever the storage below raises is what is to be told
                told[ability] = _why(error)
    finally:
        acts.tidy()
    return told


class _Folder:
    """A folder on a disk, or the one above it that is there: models are published under a lock, by a rename."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path if path.is_dir() else next(p for p in path.parents if p.exists())
        self.file = self.folder / f"{PROBE}{uuid4().hex}"

    def read(self) -> str | None:
        if self.path.exists() and not self.path.is_dir():
            return "it is a file, not a store"
        os.listdir(self.folder)
        return None

    def write(self) -> None:
        fresh = self.file.with_name(self.file.name + ".new")
        try:
            with fresh.open("wb") as file:
                file.write(b"x")
                os.fsync(file.fileno())
            os.replace(fresh, self.file)
        finally:
            fresh.unlink(missing_ok=True)

    def condition(self) -> str | None:
        if not self.file.exists():
            return "nothing can be written"
        with self.file.open("rb") as mine, self.file.open("rb") as theirs:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return None
                raise
        return "a lock does not keep others out"

    def tidy(self) -> None:
        self.file.unlink(missing_ok=True)


class _Objects:
    """An object store: the head of a model is replaced on condition that it is what was read."""

    def __init__(self, store: Any) -> None:
        self.store, self.key = store.store, f"{PROBE}{uuid4().hex}"

    def read(self) -> None:
        import obstore

        next(iter(obstore.list(self.store, chunk_size=1)), None)

    def write(self) -> None:
        import obstore

        obstore.put(self.store, self.key, b"x", mode="overwrite")

    def condition(self) -> str | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            obstore.put(self.store, self.key, b"y", mode="create")
        except (AlreadyExistsError, PreconditionError, FileExistsError):
            return None
        return "what is there is overwritten all the same: two writers could lose a version"

    def tidy(self) -> None:
        import obstore

        try:
            obstore.delete(self.store, self.key)
        except Exception:  # it was never written
            return


class _Other:
    """A store that Zarr reaches by other means: models need a disk or an object store to be published in."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def read(self) -> None:
        from zarr.core.sync import sync

        async def first() -> None:
            async for _ in self.store.list_dir(""):
                return

        sync(first())

    def write(self) -> str | None:
        return None if self.store.supports_writes and not self.store.read_only else "it is read only"

    def condition(self) -> str:
        return "it is known of disks and object stores (with the extra s3) only"

    def tidy(self) -> None:
        return


def _why(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:200]
