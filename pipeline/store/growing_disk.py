"""`Disk`: a store that grows on a local disk, under a lock: new chunks are put in place, then the root is renamed."""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

from pipeline.errors import StoreError
from pipeline.store.growing import Batch, Growth, Home, batches_in, members_of, outline
from pipeline.store.head import ROOT
from pipeline.store.lock import OWNER, only_writer, sweep_beside
from pipeline.store.publish import parents_of, settle, synced

__all__ = ["Disk"]


@dataclass(frozen=True)
class Disk(Home):
    """A path on a local disk."""

    path: Path

    def root(self) -> bytes | None:
        found = _root(self.path)
        if found is None and os.path.lexists(self.path):
            raise StoreError(f"{self.path} is no Zarr v3 group: choose another place")
        return found

    def tend(self) -> None:
        if _root(self.path) is not None:
            with only_writer(self.path, "is appending to"):
                _tend(self.path)

    @contextmanager
    def growing(self) -> Iterator[Growth]:
        path = self.path
        batches_in(self.root(), path)  # before anything is made
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
                    copied = () if before is None else outline(before, folder, partial(self._copy, folder))
                    yield _OnDisk(path, folder, before, frozenset(folder / key for key in copied))
                finally:
                    owner.close()
                    shutil.rmtree(place, ignore_errors=True)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror or error}; it is as it was") from error

    def _copy(self, folder: Path, key: str) -> Iterator[str]:
        at = self.path / key
        for source in [at] if at.is_file() else sorted(p for p in at.rglob("*") if p.is_file()):
            found = source.relative_to(self.path).as_posix()
            (folder / found).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / found)
            yield found


@dataclass(frozen=True)
class _OnDisk(Growth):
    copied: frozenset[Path]
    """Files of the folder that are copies."""

    def publish(self, batch: Batch) -> Batch:
        batch = self.recorded(batch)
        fresh = [p for p in self.folder.rglob("*") if p.is_file() and p.name != ROOT]
        fresh = [p for p in fresh if p not in self.copied or not filecmp.cmp(p, self._target(p), shallow=False)]
        for path in (*fresh, self.folder / ROOT):
            synced(path)
        with only_writer(self.place, "is appending to"):
            now = _root(self.place)
            if now != self.before or (now is None and os.path.lexists(self.place)):
                raise self.overtaken(batch)
            if self.before is None:
                os.rename(self.folder, self.place)
            else:
                self._put_in_place(fresh)
            synced(self.place.parent)
        return batch

    def _put_in_place(self, fresh: list[Path]) -> None:
        folders: set[Path] = set()
        for path in fresh:
            target = self._target(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            folders.update(p for p in target.parents if self.place in p.parents)
        for folder in folders:
            synced(folder)
        os.replace(self.folder / ROOT, self.place / ROOT)
        synced(self.place)
        _tidy(self.place)

    def _target(self, path: Path) -> Path:
        return Path(self.place) / path.relative_to(self.folder)


def _tend(path: Path) -> None:
    sweep_beside(path)
    if _root(path) is not None:
        _tidy(path)


def _tidy(path: Path) -> None:
    """Bring the metadata of the arrays in line with the root."""
    settle(path, {name: meta for name, meta in members_of((path / ROOT).read_bytes()).items() if name})


def _root(path: Path) -> bytes | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        return (path / ROOT).read_bytes()
    return None
