"""`stamp`: what changes when the files of a source do, without reading them."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import zarr
from zarr.storage import LocalStore

from pipeline.sources.grid import Grid
from pipeline.sources.joined import Joined
from pipeline.sources.source import Source
from pipeline.sources.window import Window

__all__ = ["stamp"]


def stamp(source: Source) -> str | None:
    """A digest of what is selected and of the names, sizes and times of its files; None where it is not in local files.

    Two equal stamps mean the same entries, as far as the file system can tell.
    """
    folders = _folders(source)
    if folders is None:
        return None
    files = sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for f in folders for p in f.rglob("*"))
    return hashlib.sha256(pickle.dumps((source, files))).hexdigest()


def _folders(source: Source) -> list[Path] | None:
    if isinstance(source, Window):
        return _folders(source.base)
    if isinstance(source, Joined):
        parts = [_folders(p) for p in source.parts]
        return None if None in parts else [f for part in parts for f in part or ()]
    if isinstance(source, Grid) and isinstance(source.array, zarr.Array) and isinstance(source.array.store, LocalStore):
        return [source.array.store.root / source.array.path]
    return None
