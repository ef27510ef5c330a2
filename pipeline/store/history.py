"""Versions of a model: published, told, tagged, gone back to, expired; the same words wherever they are kept."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import xarray as xr

from pipeline.errors import ConflictError, InputError, StoreError
from pipeline.store.head import Head, Version, found
from pipeline.store.objects import Objects
from pipeline.store.publish import commit_local, commit_once, reroot, restore
from pipeline.store.read import Place, is_icechunk, locate, open_store, read_root

__all__ = ["GRACE", "History", "commit", "expire", "history", "provenance_of", "rollback", "tag"]

GRACE = 60.0
"""Seconds for which the files of an expired version stay after it ceased to be the head."""


@dataclass(frozen=True)
class History:
    """All versions of a model, oldest first; the id of the head; tag to id."""

    versions: tuple[Version, ...]
    head: str
    tags: Mapping[str, str]

    def find(self, version: int | str, place: str = "the model") -> Version:
        """A version by its number, a tag, or the first digits of its id; raises StoreError when there is none."""
        return found(version, self.versions, self.tags, place)

    def tags_of(self, version: Version) -> list[str]:
        """The tags of a version."""
        return [name for name, id in self.tags.items() if id == version.id]


class Keeper(Protocol):
    """What keeps versions somewhere; each method raises StoreError where it cannot."""

    def commit(self, ds: xr.Dataset, overwrite: bool, parent: str | None, kind: str) -> Version: ...
    def history(self) -> History: ...
    def document(self, version: Version) -> Mapping[str, Any]: ...
    def rollback(self, version: int | str) -> Version: ...
    def tag(self, name: str, version: int | str | None, forward: bool) -> Version: ...
    def expire(self, keep: int, grace: float) -> list[Version]: ...


def commit(
    ds: xr.Dataset, store: Place, overwrite: bool = False, *, parent: str | None = None, kind: str = "fit"
) -> Version:
    """Make a Dataset the head of a store; whoever opens the store meanwhile gets the old version or the new one.

    Parameters
    ----------
    ds : Dataset
        What is stored.
    store : str, PathLike, zarr Store, Icechunk repository
        On a local disk, in an object store or in Icechunk versions follow each other; elsewhere there is only one.
    overwrite : bool
        Whether there may be a head already; it stays in the history.
    parent : str, optional
        Id of the version that must be the head still; default: the one that is the head now.
    kind : str
        What made the version: 'fit', 'update', …

    Raises
    ------
    ConflictError
        When somebody else has published meanwhile.
    StoreError
        When something is there that may not be replaced, or writing fails: what was there before stays as it was.
    """
    try:
        return _keeper(store).commit(ds, overwrite, parent, kind)
    except OSError as error:
        raise StoreError(
            f"{store} cannot be written: {error.strerror or error}; what was stored before is as it was"
        ) from error


def history(store: Place) -> History:
    """The versions of a model; raises StoreError where there is none."""
    return _keeper(store).history()


def provenance_of(store: Place, version: Version) -> dict[str, Any]:
    """The story of one version's making; raises StoreError when it cannot be read."""
    return dict(json.loads(_keeper(store).document(version).get("provenance", "{}")))


def rollback(store: Place, version: int | str) -> Version:
    """Make an earlier version (number, tag or id) the head again; all others stay in the history."""
    return _keeper(store).rollback(version)


def tag(store: Place, name: str, version: int | str | None = None, *, forward: bool = False) -> Version:
    """Give a version (the head by default) a name, which is taken from the one that had it; it never expires then.

    Raises InputError for names that could be taken for numbers, or hold other than letters, digits and `._-`, and with
    `forward` ConflictError where a newer version has the name.
    """
    if not re.fullmatch(r"[A-Za-z_][\w.\-]*", name, re.ASCII):
        raise InputError(f"{name!r} cannot be a tag: begin with a letter, go on with letters, digits, '.', '_' or '-'")
    return _keeper(store).tag(name, version, forward)


def expire(store: Place, keep: int, grace: float = GRACE) -> list[Version]:
    """Let all versions but the newest ones, the head and those with a tag go.

    Parameters
    ----------
    store : Place
    keep : int
        How many of the newest stay.
    grace : float
        Seconds for which the files of a version that was the head a moment ago are left to their readers.

    Returns
    -------
    list of Version
        Those that left the history. Their files go with them, or with a later commit if they are being read.
    """
    if keep < 1:
        raise InputError(f"keep={keep}: at least one version must stay")
    return _keeper(store).expire(keep, grace)


def _keeper(store: Place) -> Keeper:
    located, place = locate(store), str(store)
    if is_icechunk(located):
        from pipeline.store.icechunk import Repository  # an extra, only where it is asked for

        return Repository(located)
    if isinstance(located, Path):
        return _Local(located, place)
    opened = open_store(located, read_only=False)
    return Objects(opened, place) if type(opened).__name__ == "ObjectStore" else _Once(opened, place)


@dataclass(frozen=True)
class _Local:
    """A directory on a local disk."""

    model: Path
    place: str

    def commit(self, ds: xr.Dataset, overwrite: bool, parent: str | None, kind: str) -> Version:
        return commit_local(ds, self.model, overwrite, parent, kind)

    def history(self) -> History:
        return _told(self._head())

    def document(self, version: Version) -> Mapping[str, Any]:
        head = self._head()
        if head.id == version.id:
            return head.document["attributes"]
        raw = read_root(open_store(self.model), self.place, version.path)
        return Head.parse(raw, f"{self.place}/{version.path}").document["attributes"]

    def rollback(self, version: int | str) -> Version:
        self._head()
        return self._written(lambda: restore(self.model, version))

    def tag(self, name: str, version: int | str | None, forward: bool) -> Version:
        self._head()
        head = self._written(lambda: reroot(self.model, lambda head: tagged(head, name, version, self.place, forward)))
        return head.find(name, self.place)

    def expire(self, keep: int, grace: float) -> list[Version]:
        gone: list[Version] = []

        def change(head: Head) -> Head:
            left, gone[:] = expired(head, keep, grace)
            return left

        self._head()
        self._written(lambda: reroot(self.model, change))
        return gone

    def _head(self) -> Head:
        if not self.model.exists():
            raise StoreError(f"{self.place} does not exist")
        return Head.parse(read_root(open_store(self.model), self.place), self.place)

    def _written(self, write: Any) -> Any:
        try:
            return write()
        except OSError as error:
            raise StoreError(f"{self.place} cannot be written: {error.strerror or error}; it is as it was") from error


@dataclass(frozen=True)
class _Once:
    """A store that can hold one version only, as it cannot tell whether somebody else has written meanwhile."""

    store: Any
    place: str

    def commit(self, ds: xr.Dataset, overwrite: bool, parent: str | None, kind: str) -> Version:
        return commit_once(ds, self.store, self.place, overwrite, parent, kind)

    def history(self) -> History:
        return _told(Head.parse(read_root(self.store, self.place), self.place))

    def document(self, version: Version) -> Mapping[str, Any]:
        return Head.parse(read_root(self.store, self.place), self.place).document["attributes"]

    def rollback(self, version: int | str) -> Version:
        return Head.parse(read_root(self.store, self.place), self.place).find(version, self.place)

    def tag(self, name: str, version: int | str | None, forward: bool) -> Version:
        raise StoreError(f"{self.place} holds a single version: tags need a local disk, an object store or Icechunk")

    def expire(self, keep: int, grace: float) -> list[Version]:
        return []


def _told(head: Head) -> History:
    return History(head.history, head.id, head.tags)


def tagged(head: Head, name: str, version: int | str | None, place: str, forward: bool) -> Head:
    """The head with one tag more."""
    entry = head.entry if version is None else head.find(version, place)
    if entry is None:
        raise StoreError(f"{place} has no history: save the model again")
    before = next((v for v in head.history if v.id == head.tags.get(name)), entry)
    if forward and before.number > entry.number:
        raise ConflictError(
            f"{place}: {name!r} is version {before.number}, which is newer than {entry.number}: it stays"
        )
    return replace(head, tags={**head.tags, name: entry.id})


def expired(head: Head, keep: int, grace: float) -> tuple[Head, list[Version]]:
    """The head with a shorter history, and what has left it."""
    newest = {v.id for v in sorted(head.history, key=lambda v: v.number)[-keep:]}
    stay = newest | {head.id} | set(head.tags.values())
    gone = [v for v in head.history if v.id not in stay]
    now = time.time()
    waiting = {path: until for path, until in head.gone.items() if now < until}
    waiting |= {v.path: _followed(v, head, now) + grace for v in gone}
    return replace(head, history=tuple(v for v in head.history if v.id in stay), gone=waiting), gone


def _followed(version: Version, head: Head, now: float) -> float:
    """When a version ceased to be the head, as far as the history tells."""
    after = [datetime.fromisoformat(v.created).timestamp() for v in head.history if v.parent == version.id]
    return min(after, default=now)
