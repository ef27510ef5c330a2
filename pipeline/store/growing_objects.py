"""`Remote`: a store that grows in an object store, without locks: a batch is decided on first and put in place then.

1. What is new goes to keys that nobody else knows (`.batches/ID/…`), with a list of where it belongs.
2. The root is replaced on condition that nobody did (If-Match): it says that batch ID is the next. From here on the
   batch will be part of the store, and nothing else before it: who dies leaves the rest to whoever comes next.
3. Each object is put in place on condition that it is as it was in step 1: not there, or the last chunk of before. One
   that is not has been put there by somebody else, from the same list. So a writer that was thought dead, and goes on
   here, changes nothing.
4. The root is replaced by that with the new shapes, on condition that it is the one of step 2.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.errors import StoreError
from pipeline.store.bucket import Bucket, Moved
from pipeline.store.growing import Batch, Growth, Home, batches_in, outline
from pipeline.store.head import ROOT
from pipeline.store.probe import PROBE

__all__ = ["Remote"]

_NEXT = "next"  # attribute of the root: the batch that is being put in place
_BATCHES, _LIST = ".batches", "list.json"
_FOLDER = re.compile(r"\.batches/[0-9a-f]{32}")
_EMPTY: dict[str, Any] = {
    "zarr_format": 3,
    "node_type": "group",
    "attributes": {"batches": "[]"},
    "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": {}},
}
_ABANDONED = timedelta(days=1)  # after which batches that nobody decided on are swept


@dataclass(frozen=True)
class Remote(Home, Bucket):
    """A place in an object store."""

    def root(self) -> bytes | None:
        raw, _ = self.get(ROOT)
        if raw is None and any(not o["path"].startswith((f"{_BATCHES}/", PROBE)) for o in self.listed(None)):
            raise StoreError(f"{self.place} is no Zarr v3 group: choose another place")
        return raw

    def tend(self) -> None:
        raw, _ = self.settled()
        known = None if raw is None else _next(raw)
        for folder, written in self.last_written(_BATCHES).items():
            if folder != known and datetime.now(UTC) - written > _ABANDONED:
                self.delete(folder)

    @contextmanager
    def growing(self) -> Iterator[Growth]:
        batches_in(self.root(), self.place)
        before, stamp = self.settled()
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "group"
            folder.mkdir()
            copied = {key: (folder / key).read_bytes() for key in self._outline(before, folder)}
            yield _InRemote(self.place, folder, before, self, stamp, copied)

    def _outline(self, before: bytes | None, folder: Path) -> Iterator[str]:
        return iter(()) if before is None else outline(before, folder, partial(self._copy, folder))

    def _copy(self, folder: Path, key: str) -> Iterator[str]:
        for found in [key, *(o["path"] for o in self.listed(key))]:
            data, _ = self.get(found)
            if data is not None:
                (folder / found).parent.mkdir(parents=True, exist_ok=True)
                (folder / found).write_bytes(data)
                yield found

    def settled(self) -> tuple[bytes | None, Any]:
        """The root and its stamp, after the batch that somebody has decided on and not put in place is in its place."""
        while True:
            raw, stamp = self.get(ROOT)
            folder = None if raw is None else _next(raw)
            if folder is None:
                return raw, stamp
            self.put_in_place(folder, stamp, partial(self._part, folder))

    def _part(self, folder: str, key: str) -> bytes | None:
        return self.get(f"{folder}/{key}")[0]

    def put_in_place(self, folder: str, stamp: Any, fetch: Callable[[str], bytes | None]) -> None:
        """Steps 3 and 4 for a batch that was decided on; does nothing where somebody else has done them."""
        belongs, root = fetch(_LIST), fetch(ROOT)
        if belongs is not None and root is not None and self._all_moved(json.loads(belongs), fetch):
            self._move(ROOT, root, stamp)
        now, _ = self.get(ROOT)
        if now is None or _next(now) == folder:
            raise StoreError(
                f"{self.place} is damaged: {folder}, which is to be added, lacks a part: restore it from a copy"
            )
        self.delete(folder)

    def _all_moved(self, belongs: dict[str, Any], fetch: Callable[[str], bytes | None]) -> bool:
        for key, was in belongs.items():
            data = fetch(key)
            if data is None:
                return False
            self._move(key, data, was)
        return True

    def _move(self, key: str, data: bytes, stamp: Any) -> None:
        with suppress(Moved):  # somebody else has put it there
            self.swap(key, data, stamp, key)


@dataclass(frozen=True)
class _InRemote(Growth):
    home: Remote
    stamp: Any
    copied: dict[str, bytes]

    def publish(self, batch: Batch) -> Batch:
        batch = self.recorded(batch)
        paths = {p.relative_to(self.folder).as_posix(): p for p in self.folder.rglob("*") if p.is_file()}
        root = paths.pop(ROOT)
        fresh = [key for key, path in paths.items() if self.copied.get(key) != path.read_bytes()]
        fresh.sort(key=lambda key: key.endswith(ROOT))  # chunks first
        belongs = {key: self.home.stamp(key) for key in fresh}
        folder = f"{_BATCHES}/{uuid4().hex}"
        local = {**{key: paths[key] for key in fresh}, ROOT: root, _LIST: self.folder / _LIST}
        local[_LIST].write_text(json.dumps(belongs))
        for key, path in local.items():
            self.home.put(f"{folder}/{key}", path.read_bytes())
        self._decide(folder, batch)
        raw, stamp = self.home.get(ROOT)
        if raw is not None and _next(raw) == folder:  # else somebody else was faster to put it in place
            self.home.put_in_place(folder, stamp, lambda key: local[key].read_bytes())
        return batch

    def _decide(self, folder: str, batch: Batch) -> None:
        now = _EMPTY if self.before is None else json.loads(self.before)
        asked = {**now, "attributes": {**now["attributes"], _NEXT: folder}}
        try:
            self.home.swap(ROOT, json.dumps(asked).encode(), self.stamp, f"batch {batch.id[:8]}")
        except Moved as error:
            raw, _ = self.home.get(ROOT)
            if raw is not None and (_next(raw) == folder or any(b == batch for b in batches_in(raw, self.place))):
                return  # it was ours: the answer was lost
            self.home.delete(folder)
            raise self.overtaken(batch) from error


def _next(root: bytes) -> str | None:
    """The folder of the batch that is being put in place."""
    found = json.loads(root)["attributes"].get(_NEXT)
    if found is not None and not _FOLDER.fullmatch(str(found)):
        raise StoreError(f"a store of which {str(found)[:60]!r} comes next cannot be trusted: ingest to another place")
    return found
