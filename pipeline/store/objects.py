"""Versions in an object store: each beside the others, and one pointer that is replaced on condition that nobody did.

The root `zarr.json` is a group without arrays that names the head. It is written with a conditional request (If-Match
or If-None-Match): of two writers one wins, and the other is told so. When the answer to that request is lost, the
pointer is read again: a commit is found by its id.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from pipeline.errors import ConflictError, StoreError
from pipeline.store.bucket import Bucket, Moved
from pipeline.store.head import ROOT, VERSIONS, Head, Version
from pipeline.store.probe import PROBE
from pipeline.store.publish import staged_version

if TYPE_CHECKING:
    from pipeline.store.history import History

__all__ = ["Objects"]

_ATTEMPTS = 8
_ABANDONED = timedelta(days=1)  # after which files of a version that never became one are swept


@dataclass(frozen=True)
class Objects(Bucket):
    """A model in an object store."""

    def commit(self, ds: xr.Dataset, overwrite: bool, parent: str | None, kind: str) -> Version:
        head, _ = self._root()
        if head is None and self._occupied():
            raise StoreError(f"{self.place} is not empty and no model: choose another place")
        if head is not None and not overwrite:
            raise StoreError(f"{self.place} exists: pass overwrite=True (--overwrite) or choose another path")
        if parent is not None and (head is None or head.id != parent):
            raise self._overtaken(head)
        with tempfile.TemporaryDirectory() as folder:
            staged = Path(folder) / "model"
            new = staged_version(ds, staged, head, kind)
            entry = new.history[-1]
            try:
                for key in [*new.chunks, *(f"{name}/{ROOT}" for name in new.members), ROOT]:
                    self.put(f"{entry.path}/{key}", (staged / key).read_bytes())
            except StoreError:  # the pointer does not name them
                with suppress(StoreError):
                    self.delete(entry.path)
                raise
        before = head.id if head else None

        def follow(now: Head | None) -> Head:
            if (now.id if now else None) != before:
                raise self._overtaken(now)
            past = now or Head({}, "", {})
            return replace(new.pointer, history=(*past.history, entry), tags=past.tags, gone=past.gone)

        try:
            self._change(follow, entry.id)
        except ConflictError:  # certain: nobody knows these files
            with suppress(StoreError):
                self.delete(entry.path)
            raise
        return entry

    def history(self) -> History:
        from pipeline.store.history import History

        head = self._head()
        return History(head.history, head.id, head.tags)

    def document(self, version: Version) -> Mapping[str, Any]:
        raw, _ = self.get(f"{version.path}/{ROOT}")
        return Head.parse(raw, f"{self.place}/{version.path}").document["attributes"]

    def rollback(self, version: int | str) -> Version:
        def change(head: Head | None) -> Head:
            assert head is not None
            entry = head.find(version, self.place)
            return replace(head, id=entry.id, version=entry.number)

        self._head()
        return self._change(change).entry  # type: ignore[return-value]

    def tag(self, name: str, version: int | str | None, forward: bool) -> Version:
        from pipeline.store.history import tagged

        self._head()
        head = self._change(lambda head: tagged(head, name, version, self.place, forward))  # type: ignore[arg-type]
        return head.find(name, self.place)

    def expire(self, keep: int, grace: float) -> list[Version]:
        from pipeline.store.history import expired

        gone: list[Version] = []
        left: set[str] = set()

        def change(head: Head | None) -> Head:
            assert head is not None
            new, gone[:] = expired(head, keep, grace)
            # Nobody sees who reads here: whoever has begun has as long as the readers of a head.
            waiting = {**new.gone, **{v.path: time.time() + grace for v in gone}}
            left.update(head.gone, waiting)
            return replace(new, gone=waiting)

        self._head()
        self._sweep(self._change(change), left)
        return gone

    def _head(self) -> Head:
        head, _ = self._root()
        if head is None:
            raise StoreError(f"{self.place} is not a model: it has no {ROOT}")
        return head

    def _root(self) -> tuple[Head | None, Any]:
        raw, stamp = self.get(ROOT)
        return (None if raw is None else Head.parse(raw, self.place)), stamp

    def _change(self, change: Callable[[Head | None], Head], id: str | None = None) -> Head:
        """Replace the pointer by what `change` makes of it, as often as it takes."""
        for _ in range(_ATTEMPTS):
            head, stamp = self._root()
            if id is not None and head is not None and any(v.id == id for v in head.history):
                return head  # ours: the answer to an earlier request was lost
            new = change(head)
            try:
                self.swap(ROOT, new.dump(), stamp, f"version {new.version} ({new.id})")
            except Moved:
                continue
            return new
        raise ConflictError(f"{self.place} is changed all the time by others: try again")

    def _occupied(self) -> bool:
        """Whether something that is not ours is there; versions that never became one do not count."""
        return any(not o["path"].startswith((f"{VERSIONS}/", PROBE)) for o in self.listed(None))

    def _sweep(self, head: Head, left: set[str]) -> None:
        """Remove the files of versions that have left the history, and of those that were never published."""
        known = {v.path for v in head.history} | {path for path, until in head.gone.items() if time.time() < until}
        for path, written in self.last_written(VERSIONS).items():
            if path not in known and (path in left or datetime.now(UTC) - written > _ABANDONED):
                self.delete(path)

    def _overtaken(self, now: Head | None) -> ConflictError:
        what = "nothing" if now is None else f"version {now.version}"
        return ConflictError(
            f"{self.place} was changed by somebody else meanwhile: {what} is there now; start from that"
        )
