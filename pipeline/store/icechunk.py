"""Versions in an Icechunk repository: each is a commit. It is an extra: `pip install 'subspace-pipeline[icechunk]'`.

A repository on a local disk can lose one of two commits that happen at once (icechunk issue 804): there a lock lets one
writer in at a time.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import xarray as xr

from pipeline.errors import ConflictError, InputError, StoreError
from pipeline.store.dataset import from_dataset
from pipeline.store.head import Version
from pipeline.store.lock import only_writer
from pipeline.subspace import Subspace

if TYPE_CHECKING:
    from pipeline.store.history import History

__all__ = ["Repository"]

_BRANCH = "main"


class Repository:
    """A model in an Icechunk repository.

    Parameters
    ----------
    place : path, 'icechunk:' and a path or URL, or an open icechunk.Repository
    """

    def __init__(self, place: Any) -> None:
        self._place = str(place).removeprefix("icechunk:") if isinstance(place, str | os.PathLike) else str(place)
        self._open = None if isinstance(place, str | os.PathLike) else place
        local = self._open is None and "://" not in self._place
        self._path = Path(os.path.realpath(self._place)) if local else None

    def commit(self, ds: xr.Dataset, overwrite: bool, parent: str | None, kind: str) -> Version:
        before = self._head(missing=True)
        with self._written(), only_writer(self._path) if self._path else nullcontext():
            repo = self._repository(create=True)
            head = self._head(missing=True)
            if head is not None and not overwrite:
                raise StoreError(f"{self._place} exists: pass overwrite=True (--overwrite) or choose another path")
            expected = parent or (before.id if before else None)
            if (head.id if head else None) != expected:
                raise self._overtaken(head)
            number = 1 + max((v.number for v in self.history().versions), default=0) if head else 1
            facts = {"id": uuid4().hex, "number": number, "parent": head.id if head else None, "kind": kind}
            session = repo.writable_session(_BRANCH)
            _write(ds, session.store)
            session.commit(f"version {number}: {kind}", metadata=facts)
            return next(v for v in self.history().versions if v.id == facts["id"])

    def load(self, version: int | str | None) -> Subspace:
        entry = self._find(version)
        with self._read():
            session = self._repository().readonly_session(snapshot_id=entry.path)
            ds = xr.open_zarr(session.store, consolidated=False, decode_cf=False, chunks=None).load()
        try:
            return from_dataset(ds)
        except InputError as error:
            raise StoreError(f"{self._place} is not a model: {error}") from error

    def history(self) -> History:
        from pipeline.store.history import History

        with self._read():
            repo = self._repository()
            heads = {repo.lookup_branch(_BRANCH), *(repo.lookup_tag(name) for name in repo.list_tags())}
            heads |= {repo.lookup_branch(name) for name in repo.list_branches()}
            found = {s.id: s for id in heads for s in repo.ancestry(snapshot_id=id) if "number" in (s.metadata or {})}
            known = {s.id: _entry(s) for s in found.values()}
            tags = {
                name: known[repo.lookup_tag(name)].id for name in repo.list_tags() if repo.lookup_tag(name) in known
            }
            here = known.get(repo.lookup_branch(_BRANCH))
        if here is None:
            raise StoreError(f"{self._place} is not a model: its branch {_BRANCH} holds none")
        shown = {name: id for name, id in tags.items() if not name.startswith(_KEPT)}
        return History(tuple(sorted(known.values(), key=lambda v: v.number)), here.id, shown)

    def document(self, version: Version) -> Mapping[str, Any]:
        with self._read():
            session = self._repository().readonly_session(snapshot_id=version.path)
            return dict(xr.open_zarr(session.store, consolidated=False, chunks=None, decode_cf=False).attrs)

    def rollback(self, version: int | str) -> Version:
        entry = self._find(version)
        with self._written(), only_writer(self._path) if self._path else nullcontext():
            repo, head = self._repository(), self._head()
            assert head is not None
            if head.path != entry.path:
                repo.create_tag(f"{_KEPT}{head.number}-{uuid4().hex[:8]}", head.path)  # what no branch leads to is lost
                repo.reset_branch(_BRANCH, entry.path)
        return entry

    def tag(self, name: str, version: int | str | None, forward: bool) -> Version:
        entry = self._find(version)
        with self._written():
            repo = self._repository()
            if name in repo.list_tags():
                raise StoreError(
                    f"{self._place} has a tag {name!r} already, and Icechunk never moves one: choose another"
                )
            repo.create_tag(name, entry.path)
        return entry

    def expire(self, keep: int, grace: float) -> list[Version]:
        before = self.history()
        kept = before.versions[-keep:]
        with self._written(), only_writer(self._path) if self._path else nullcontext():
            repo = self._repository()
            oldest = min(datetime.fromisoformat(v.created) for v in kept)
            newest = max(datetime.fromisoformat(v.created) for v in before.versions)
            # Nobody sees who reads here: what expires now is collected by the next call.
            repo.garbage_collect(min(oldest, newest, datetime.now(UTC) - timedelta(seconds=grace)))
            repo.expire_snapshots(oldest)
            for name in repo.list_tags():
                if name.startswith(_KEPT) and repo.lookup_tag(name) not in {v.path for v in kept}:
                    repo.delete_tag(name)
        after = {v.id for v in self.history().versions}
        return [v for v in before.versions if v.id not in after]

    def _find(self, version: int | str | None) -> Version:
        told = self.history()
        if version is None:
            return next(v for v in told.versions if v.id == told.head)
        return told.find(version, self._place)

    def _head(self, missing: bool = False) -> Version | None:
        try:
            return self._find(None)
        except StoreError:
            if missing:
                return None
            raise

    def _repository(self, create: bool = False) -> Any:
        icechunk = _library()
        if self._open is not None:
            return self._open
        storage = _storage(icechunk, self._place)
        if icechunk.Repository.exists(storage):
            return icechunk.Repository.open(storage)
        if not create:
            raise StoreError(f"{self._place} is no Icechunk repository")
        if self._path is not None and self._path.exists() and any(self._path.iterdir()):
            raise StoreError(f"{self._place} is not empty and no Icechunk repository: choose another place")
        return icechunk.Repository.create(storage)

    @contextmanager
    def _read(self) -> Iterator[None]:
        icechunk = _library()
        try:
            yield
        except icechunk.IcechunkError as error:
            raise StoreError(f"{self._place} cannot be read: {_first_line(error)}") from error

    @contextmanager
    def _written(self) -> Iterator[None]:
        icechunk = _library()
        try:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            yield
        except icechunk.ConflictError as error:
            raise self._overtaken(None) from error
        except (icechunk.IcechunkError, OSError) as error:
            raise StoreError(
                f"{self._place} cannot be written: {_first_line(error)}; what was stored before is as it was"
            ) from error

    def _overtaken(self, now: Version | None) -> ConflictError:
        what = f": version {now.number} is there now" if now else ""
        return ConflictError(f"{self._place} was changed by somebody else meanwhile{what}; start from that")


_KEPT = "kept-"


def _entry(snapshot: Any) -> Version:
    facts = snapshot.metadata
    created = snapshot.written_at.isoformat(timespec="microseconds")
    return Version(int(facts["number"]), facts["id"], facts["parent"], created, facts["kind"], snapshot.id)


def _write(ds: xr.Dataset, store: Any) -> None:
    texts = {name: v.astype(object) for name, v in ds.variables.items() if v.dtype.kind == "U"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ds.assign_coords(texts).to_zarr(store, mode="w", consolidated=False, zarr_format=3)
        except (TypeError, ValueError) as error:
            raise InputError(f"the model cannot be stored as it is: {error}") from error


def _storage(icechunk: Any, place: str) -> Any:
    if "://" not in place:
        return icechunk.local_filesystem_storage(place)
    url = urlsplit(place)
    if url.scheme != "s3":
        raise StoreError(f"{place}: Icechunk repositories are opened here on a local disk or in s3://")
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    return icechunk.s3_storage(
        bucket=url.netloc,
        prefix=url.path.strip("/"),
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        endpoint_url=endpoint,
        allow_http=bool(endpoint and endpoint.startswith("http://")),
        force_path_style=bool(endpoint),
        from_env=True,
    )


def _library() -> Any:
    os.environ.setdefault("ICECHUNK_LOG", "error")  # its warnings would go to stdout, which is for data
    try:
        import icechunk
    except ImportError as error:
        raise StoreError("Icechunk is not installed: pip install 'subspace-pipeline[icechunk]'") from error
    return icechunk


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
