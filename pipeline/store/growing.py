"""A Zarr group that grows along its samples, a batch at a time: each is there whole or not at all.

The root `zarr.json` holds the metadata of every array (consolidated, which Zarr and xarray read first) and the record
of all batches; swapping it is the commit. New chunks are written to a folder of their own, put in place, where no
shape reaches them yet, and then the root is swapped. The last chunk of before is replaced by one that begins with the
same rows, so that readers of the old shapes and of the new ones find theirs. Of two writers one wins; one that was
thought dead finds another root than it began from, and is refused. How that is done on a local disk is told in
`growing_disk`, in an object store in `growing_objects`.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast

import zarr

from pipeline.errors import ConflictError, InputError
from pipeline.store.head import ROOT
from pipeline.store.read import is_icechunk, is_objects, locate, open_store

__all__ = [
    "Batch",
    "Growth",
    "Home",
    "batches_in",
    "batches_of",
    "growing",
    "home_of",
    "members_of",
    "outline",
    "place_of",
    "tend",
]

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
class Growth(ABC):
    """What is being added: `folder` is a Zarr group as the store will be, of whose chunks only the last are there."""

    place: Any
    folder: Path
    before: bytes | None
    """The root that it begins from."""

    @property
    def batches(self) -> tuple[Batch, ...]:
        """Those that the store holds."""
        return batches_in(self.before, self.place)

    @property
    def n_samples(self) -> int:
        """How many the store holds."""
        return max((b.stop for b in self.batches), default=0)

    @abstractmethod
    def publish(self, batch: Batch) -> Batch:
        """Make what was written to the folder part of the store; raises ConflictError when somebody was faster."""

    def recorded(self, batch: Batch) -> Batch:
        """Complete the folder: the record of batches with this one, and all metadata in the root."""
        batch = replace(batch, created=datetime.now(UTC).isoformat(timespec="milliseconds"))
        group = zarr.open_group(self.folder, mode="r+", use_consolidated=False)
        group.attrs[_RECORD] = json.dumps([asdict(b) for b in (*self.batches, batch)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata")  # which Zarr and xarray read, for all that
            zarr.consolidate_metadata(self.folder, zarr_format=3)
        return batch

    def overtaken(self, batch: Batch) -> ConflictError:
        """What a writer is told who comes too late."""
        return ConflictError(
            f"{self.place} was changed by somebody else meanwhile, nothing of {batch.name} was added: run it again"
        )


class Home(ABC):
    """Where a store that grows lies."""

    @abstractmethod
    def root(self) -> bytes | None:
        """Its root; None where nothing is. Raises StoreError where something else is."""

    @abstractmethod
    def tend(self) -> None:
        """Clear up after writers that were killed."""

    @abstractmethod
    def growing(self) -> AbstractContextManager[Growth]:
        """A folder to write the next batch to."""


def place_of(store: str | PathLike[str]) -> Path | str:
    """A path on a local disk, as it was given, or a URL."""
    name = fspath(store)
    return cast(Path | str, locate(name)) if "://" in name or is_icechunk(name) else Path(name)


def home_of(store: str | PathLike[str]) -> Home:
    """The home of a store: a local disk, or an object store by its URL.

    Raises InputError where none can grow.
    """
    from pipeline.store.growing_disk import Disk
    from pipeline.store.growing_objects import Remote

    name, found = fspath(store), place_of(store)
    if isinstance(found, Path):
        return Disk(found)
    opened = open_store(found, read_only=False) if is_objects(found) else None
    if type(opened).__name__ != "ObjectStore":
        raise InputError(
            f"{name}: a store that grows lies on a local disk, or in an object store that obeys conditional writes "
            "(s3://…, with pip install 'subspace-pipeline[s3]')"
        )
    return Remote(opened, name)


def batches_of(store: str | PathLike[str]) -> tuple[Batch, ...]:
    """The batches that a store is made of, in their order; none where there is no store.

    Raises StoreError where something else is.
    """
    return batches_in(home_of(store).root(), store)


def tend(store: str | PathLike[str]) -> tuple[Batch, ...]:
    """Clear up after writers that were killed, so that a store is as it would be without them; its batches."""
    home = home_of(store)
    batches_in(home.root(), store)
    home.tend()
    return batches_in(home.root(), store)


def growing(store: str | PathLike[str]) -> AbstractContextManager[Growth]:
    """A folder to write the next batch to; what is not published inside is thrown away.

    Raises StoreError where something is that does not grow in this way, or cannot be written.
    """
    return home_of(store).growing()


def batches_in(root: bytes | None, place: Any) -> tuple[Batch, ...]:
    """The batches that a root tells of; raises InputError where it was not made here."""
    if root is None:
        return ()
    try:
        document = json.loads(root)
        record = document["attributes"][_RECORD]
        members = document["consolidated_metadata"]["metadata"]
        if any(part in ("", ".", "..") for name in members for part in name.split("/")):
            raise ValueError("a name that leads elsewhere")
        return tuple(Batch(**entry) for entry in json.loads(record))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{place} was not made by ingest, so that nothing is appended to it: choose another place, and ingest what "
            "it holds there"
        ) from error


def members_of(root: bytes) -> dict[str, Any]:
    """The metadata of every group and array, as they lie with them; '' is the root itself."""
    document = json.loads(root)
    members = {"": document, **document["consolidated_metadata"]["metadata"]}
    return {
        name: {key: part for key, part in meta.items() if key != "consolidated_metadata"}
        for name, meta in members.items()
    }


def outline(root: bytes, folder: Path, copy: Callable[[str], Iterable[str]]) -> Iterator[str]:
    """Write the metadata of all arrays to a folder, and the chunks at their ends, whose keys are yielded.

    `copy` copies all that lies at a key, or below it, to the folder, and gives the keys.
    """
    for name, meta in members_of(root).items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / ROOT).write_text(json.dumps(meta))
        if meta["node_type"] != "array" or not meta["shape"]:
            continue
        height = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
        if meta["shape"][0] % height:
            yield from copy(f"{name}/c/{meta['shape'][0] // height}")
