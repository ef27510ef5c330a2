"""A Zarr group on a local disk that grows along its samples, a batch at a time: each is there whole or not at all.

The root `zarr.json` holds the metadata of every array (consolidated, which Zarr and xarray read first) and the record
of all batches; swapping it is the commit. New chunks are written to a folder beside the store, put in place, where no
shape reaches them yet, and then the root is swapped. The last chunk of before is replaced by one that begins with the
same rows, so that readers of the old shapes and of the new ones find theirs. Of two writers one wins; one that was
thought dead finds another root than it began from, and is refused.
"""

from __future__ import annotations

import fcntl
import filecmp
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import zarr

from pipeline.errors import ConflictError, InputError, StoreError
from pipeline.store.head import ROOT
from pipeline.store.lock import OWNER, only_writer, sweep_beside
from pipeline.store.publish import parents_of, settle, synced

__all__ = ["Batch", "Growth", "batches_of", "growing", "tend"]

_RECORD = "batches"


@dataclass(frozen=True)
class Batch:
    """Samples [start, stop) of a store, added in one step.

    Parameters
    ----------
    id : str
        32 hex digits of what they hold.
    name, stamp : str
        Where they came from; size and time of writing of that file, '' where it has none.
    start, stop : int
    created : str
        UTC time, ISO 8601.
    """

    id: str
    name: str
    stamp: str
    start: int
    stop: int
    created: str = ""


@dataclass(frozen=True)
class Growth:
    """What is being added: `folder` is a Zarr group as the store will be, of whose chunks only the last are there."""

    path: Path
    folder: Path
    before: bytes | None
    """The root that it begins from."""
    copied: frozenset[Path]
    """Files of the folder that are copies."""

    @property
    def batches(self) -> tuple[Batch, ...]:
        """Those that the store holds."""
        return () if self.before is None else _parsed(self.before, self.path)

    @property
    def n_samples(self) -> int:
        """How many the store holds."""
        return max((b.stop for b in self.batches), default=0)

    def publish(self, batch: Batch) -> Batch:
        """Make what was written to the folder part of the store; raises ConflictError when somebody was faster."""
        batch = replace(batch, created=datetime.now(UTC).isoformat(timespec="milliseconds"))
        group = zarr.open_group(self.folder, mode="r+", use_consolidated=False)
        group.attrs[_RECORD] = json.dumps([asdict(b) for b in (*self.batches, batch)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata")  # which Zarr and xarray read, for all that
            zarr.consolidate_metadata(self.folder, zarr_format=3)
        fresh = [p for p in self.folder.rglob("*") if p.is_file() and p.name != ROOT]
        fresh = [p for p in fresh if p not in self.copied or not filecmp.cmp(p, self._target(p), shallow=False)]
        for path in (*fresh, self.folder / ROOT):
            synced(path)
        with only_writer(self.path, "is appending to"):
            now = _root(self.path)
            if now != self.before or (now is None and os.path.lexists(self.path)):
                raise ConflictError(
                    f"{self.path} was changed by somebody else meanwhile, nothing of {batch.name} was added: "
                    "run it again"
                )
            if self.before is None:
                os.rename(self.folder, self.path)
            else:
                self._put_in_place(fresh)
            synced(self.path.parent)
        return batch

    def _put_in_place(self, fresh: list[Path]) -> None:
        folders: set[Path] = set()
        for path in fresh:
            target = self._target(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            folders.update(p for p in target.parents if self.path in p.parents)
        for folder in folders:
            synced(folder)
        os.replace(self.folder / ROOT, self.path / ROOT)
        synced(self.path)
        _tidy(self.path)

    def _target(self, path: Path) -> Path:
        return self.path / path.relative_to(self.folder)


def batches_of(store: Path) -> tuple[Batch, ...]:
    """The batches that a store is made of, in their order; none where there is no store.

    Raises StoreError where something else is.
    """
    root = _root(store)
    if root is None and os.path.lexists(store):
        raise StoreError(f"{store} is no Zarr v3 group: choose another place")
    return () if root is None else _parsed(root, store)


def tend(store: Path) -> None:
    """Clear up after writers that were killed, so that a store is as it would be without them."""
    if _root(store) is not None:
        with only_writer(store, "is appending to"):
            _tend(store)


@contextmanager
def growing(path: Path) -> Iterator[Growth]:
    """A folder to write the next batch to; what is not published inside is thrown away.

    Raises StoreError where something is that does not grow in this way, or cannot be written.
    """
    batches_of(path)  # before anything is made
    try:
        with parents_of(path):
            place = path.with_name(f".{path.name}.{uuid4().hex}.partial")
            folder = place / "group"
            with only_writer(path, "is appending to"):
                _tend(path)
                place.mkdir()
                owner = open(place / OWNER, "wb")  # noqa: SIM115
                fcntl.flock(owner, fcntl.LOCK_EX)
                before = _root(path)
                folder.mkdir()
            try:
                yield Growth(path, folder, before, frozenset() if before is None else _outline(path, folder, before))
            finally:
                owner.close()
                shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}; it is as it was") from error


def _outline(path: Path, folder: Path, root: bytes) -> frozenset[Path]:
    """Write the metadata of all arrays, and copy the chunks at their ends; the copies."""
    copied = set()
    for name, meta in _members(root).items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / ROOT).write_text(json.dumps(meta))
        if meta["node_type"] != "array" or not meta["shape"]:
            continue
        height = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
        last = f"c/{meta['shape'][0] // height}"
        if meta["shape"][0] % height == 0:
            continue
        ends = path / name / last
        for source in [ends] if ends.is_file() else sorted(p for p in ends.rglob("*") if p.is_file()):
            target = folder / source.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied.add(target)
    return frozenset(copied)


def _tend(path: Path) -> None:
    sweep_beside(path)
    if _root(path) is not None:
        _tidy(path)


def _tidy(path: Path) -> None:
    """Bring the metadata of the arrays in line with the root."""
    members = _members((path / ROOT).read_bytes())
    settle(path, {name: meta for name, meta in members.items() if name})


def _members(root: bytes) -> dict[str, Any]:
    """The metadata of every group and array, as they lie with them; '' is the root itself."""
    document = json.loads(root)
    members = {"": document, **document["consolidated_metadata"]["metadata"]}
    return {
        name: {key: part for key, part in meta.items() if key != "consolidated_metadata"}
        for name, meta in members.items()
    }


def _root(path: Path) -> bytes | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        return (path / ROOT).read_bytes()
    return None


def _parsed(root: bytes, path: Path) -> tuple[Batch, ...]:
    try:
        document = json.loads(root)
        record = document["attributes"][_RECORD]
        members = document["consolidated_metadata"]["metadata"]
        if any(part in ("", ".", "..") for name in members for part in name.split("/")):
            raise ValueError("a name that leads elsewhere")
        return tuple(Batch(**entry) for entry in json.loads(record))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} was not made by ingest, so that nothing is appended to it: choose another place, and ingest what "
            "it holds there"
        ) from error
