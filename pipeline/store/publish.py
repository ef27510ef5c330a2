"""The commit: a Dataset becomes the head of a store, whole or not at all.

MODEL is a directory whose root `zarr.json` is the pointer: it holds the metadata of all arrays and is replaced in one
rename, as the last step. The chunks of a new version lie under keys that the head and the version before it do not
use, so that whoever has opened an old head, and reads its chunks later, still finds them. A version that is replaced
gets a folder of its own first (`versions/NUMBER-ID`, a Zarr group, by hard links) and stays there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import xarray as xr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from pipeline.errors import ConflictError, InputError, StoreError
from pipeline.store.head import ROOT, SLOTS, VERSIONS, Chunk, Head, Version
from pipeline.store.lock import only_writer, sweep_beside
from pipeline.store.read import check_inside, sound

__all__ = ["commit_local", "commit_once", "parents_of", "reroot", "restore", "settle", "staged_version", "synced"]

_CHUNK_BYTES = 16 * 2**20
_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


def commit_local(ds: xr.Dataset, model: Path, overwrite: bool, parent: str | None, kind: str) -> Version:
    """Make a Dataset the head of a directory; raises as `pipeline.store.commit` does."""
    before = _current(model, overwrite)  # before a lock file or a folder is made
    if parent is not None and (before is None or before.id != parent):
        raise _overtaken(model, before)
    with parents_of(model), only_writer(model):
        head = _unmoved(model, before)
        sweep_beside(model)
        staged = model.with_name(f".{model.name}.{uuid4().hex}.partial")
        try:
            new = _stage(ds, staged, head, kind)
            if head is None:
                _install(staged, model, new)
            else:
                _replace(staged, model, head, new)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
            _tidy_if_model(model)
    return new.history[-1]


def restore(model: Path, version: int | str) -> Version:
    """Make an earlier version the head again; its files are checked first."""
    with _writing(model) as head:
        entry = head.find(version, str(model))
        if entry.id == head.id:
            return entry
        source = model / entry.path
        check_inside(LocalStore(model), f"{entry.path}/{ROOT}", str(model))
        kept = sound(source, str(model / entry.path))
        moved, renamed = kept.in_slot(head.next_slot)
        new = replace(moved, history=head.history, tags=head.tags, gone=head.gone)
        staged = model.with_name(f".{model.name}.{uuid4().hex}.partial")
        try:
            for old, key in renamed.items():
                _link(source / old, staged / key)
            for name, meta in new.members.items():
                _put(staged / name / ROOT, json.dumps(meta, indent=2).encode())
            _replace(staged, model, head, new)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
            _tidy_if_model(model)
    return entry


def reroot(model: Path, change: Callable[[Head], Head]) -> Head:
    """Replace what the root says beside the head: tags, the history."""
    with _writing(model) as head:
        new = change(head)
        part = model.with_name(f".{model.name}.{uuid4().hex}.partial")
        try:
            _put(part, new.dump())
            os.replace(part, model / ROOT)
            synced(model)
        finally:
            part.unlink(missing_ok=True)
        _tidy_if_model(model)
    return new


@contextmanager
def _writing(model: Path) -> Iterator[Head]:
    """The head, which nobody else replaces while inside."""
    Head.parse((model / ROOT).read_bytes() if (model / ROOT).exists() else None, str(model))
    with only_writer(model):
        sweep_beside(model)
        yield Head.parse((model / ROOT).read_bytes(), str(model))


def _current(model: Path, overwrite: bool) -> Head | None:
    """The head that is to be replaced; None where nothing is."""
    if not os.path.lexists(model):
        return None
    if not overwrite:
        raise StoreError(f"{model} exists: pass overwrite=True (--overwrite) or choose another path")
    try:
        return Head.parse((model / ROOT).read_bytes() if (model / ROOT).exists() else None, str(model))
    except StoreError as error:
        raise StoreError(f"cannot replace what is there: {error}; remove it or choose another path") from error


def _unmoved(model: Path, before: Head | None) -> Head | None:
    """The head, now that nobody else writes; raises ConflictError when it is another than before."""
    if before is None and os.path.lexists(model):
        raise ConflictError(f"{model} was made by somebody else meanwhile: choose another path or try again")
    now = None if before is None else _current(model, overwrite=True)
    if now is not None and before is not None and now.id != before.id:
        raise _overtaken(model, now)
    return now


def _overtaken(model: Path | str, now: Head | None) -> ConflictError:
    what = "nothing" if now is None else f"version {now.version}"
    return ConflictError(f"{model} was changed by somebody else meanwhile: {what} is there now; start from that")


@contextmanager
def parents_of(path: Path) -> Iterator[None]:
    """The folder of a path exists while inside; what had to be made for it goes again after a failure."""
    made = [p for p in path.parents if not p.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody else uses it by now
                folder.rmdir()
        raise


def staged_version(ds: xr.Dataset, folder: Path, head: Head | None, kind: str) -> Head:
    """Write a Dataset to a folder of its own as the version after `head`, ready to be stored beside it."""
    new = _stage(ds, folder, head, kind)
    _put(folder / ROOT, new.alone.dump())
    return new


def _stage(ds: xr.Dataset, folder: Path, head: Head | None, kind: str) -> Head:
    """Write the Dataset to a folder of its own, safe on disk, and record its chunks."""
    slot = head.next_slot if head else 0
    _write(ds, folder, slot)
    chunks = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name != ROOT:
            chunks[path.relative_to(folder).as_posix()] = Chunk.of(path.read_bytes())
        synced(path)
    entry = Version.after(head, kind)
    document = json.loads((folder / ROOT).read_bytes())
    past = (*head.history, entry) if head else (entry,)
    new = Head(document, entry.id, chunks, entry.number, slot, history=past)
    return replace(new, tags=head.tags, gone=head.gone) if head else new


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk knows no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
        synced(target)


def _put(path: Path, data: bytes) -> None:
    """A file, safe on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    synced(path)


def _write(ds: xr.Dataset, folder: Path, slot: int) -> None:
    texts = {name: v.astype(object) for name, v in ds.variables.items() if v.dtype.kind == "U"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", "The data type .* does not have a Zarr V3 specification")
        try:
            # Fixed-width text has no place in the specification of Zarr v3; text of any length has.
            ds = ds.assign_coords(texts)
            ds.to_zarr(folder, mode="w-", zarr_format=3, consolidated=True, encoding=_encoding(ds, slot))
        except (TypeError, ValueError) as error:
            raise InputError(f"the model cannot be stored as it is: {error}") from error


def _encoding(ds: xr.Dataset, slot: int) -> dict[str, dict[str, object]]:
    encoding: dict[str, dict[str, object]] = {}
    for name, variable in ds.variables.items():
        common = {"chunk_key_encoding": SLOTS[slot], "compressors": [ZstdCodec(), Crc32cCodec()]}
        if variable.shape:
            chunks = _chunk_shape(variable.shape, variable.dtype.itemsize)
            encoding[str(name)] = {**variable.encoding, **common, "chunks": chunks, "write_empty_chunks": True}
        else:
            # A lone value has one key in two of the slots: it lives in the metadata instead, as the fill value of
            # a chunk that is not there.
            value = xr.conventions.encode_cf_variable(variable).values.item()
            encoding[str(name)] = {**variable.encoding, **common, "fill_value": value, "write_empty_chunks": False}
    return encoding


def _chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Whole inner dims as far as 16 MB go: first the modes are parted, then the first feature dim, and so on."""
    chunk = [max(n, 1) for n in shape]
    for axis in range(len(chunk)):
        inner = itemsize * math.prod(chunk[axis + 1 :])
        chunk[axis] = min(chunk[axis], max(_CHUNK_BYTES // inner, 1))
    return tuple(chunk)


def _install(staged: Path, model: Path, new: Head) -> None:
    """The first version: one rename, which fails if something has come to lie there meanwhile."""
    _put(staged / ROOT, new.dump())
    _sync_folders(staged)
    try:
        os.rename(staged, model)
    except OSError as error:
        if os.path.lexists(model):
            raise ConflictError(
                f"{model} was made by somebody else meanwhile: choose another path or try again"
            ) from error
        raise
    _confirm(model.parent, model, new)


def _replace(staged: Path, model: Path, head: Head, new: Head) -> None:
    """A later version: itself beside, chunks under free keys, then each array's metadata, and the root last."""
    time.sleep(head.wait(time.time()))
    _tidy(model, head, now=math.inf)
    _sync_folders(staged)
    _set_aside(staged / "old", model, head)
    keys = [*new.chunks, *(f"{name}/{ROOT}" for name in new.members)]
    for key in keys:
        (model / key).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / key, model / key)
    folders = {model / folder for key in keys for folder in Path(key).parents}
    for folder in sorted(folders, reverse=True):
        synced(folder)
    _put(staged / ROOT, replace(new, earlier=head.succession(time.time())).dump())
    os.replace(staged / ROOT, model / ROOT)
    _confirm(model, model, new)


def _set_aside(folder: Path, model: Path, head: Head) -> None:
    """Give the head, which is about to be replaced, a folder of its own among the versions, by way of another one."""
    entry = head.entry
    if entry is None or (model / entry.path).exists():
        return
    for key in head.chunks:
        if (model / key).exists():  # what is missing is missed by who reads that version
            _link(model / key, folder / key)
    for name, meta in head.members.items():
        _put(folder / name / ROOT, json.dumps(meta, indent=2).encode())
    _put(folder / ROOT, head.alone.dump())
    _sync_folders(folder)
    (model / VERSIONS).mkdir(exist_ok=True)
    os.rename(folder, model / entry.path)
    synced(model / VERSIONS)


def _confirm(folder: Path, model: Path, new: Head) -> None:
    """Wait for the disk; where it gives no answer the version is there, and may be gone after a power cut."""
    try:
        synced(folder)
    except OSError as error:
        raise StoreError(
            f"version {new.version} of {model} ({new.id}) is published, but the disk does not confirm it "
            f"({error.strerror}): look with `pipeline log` before doing it again"
        ) from error


def _sync_folders(folder: Path) -> None:
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        synced(path)


def _tidy_if_model(model: Path) -> None:
    # After the commit, or on the way out of a failure: what cannot be tidied now is tidied before the next commit.
    with suppress(OSError, StoreError):
        _tidy(model, Head.parse((model / ROOT).read_bytes(), str(model)), now=time.time())


def _tidy(model: Path, head: Head, now: float) -> None:
    """Bring the arrays in line with the root, and remove what no version needs: the leavings of dead writers too."""
    settle(model, head.members)
    kept = head.kept(now) | {f"{name}/{ROOT}" for name in head.members}
    _tidy_versions(model, head)
    for folder in (p for p in model.iterdir() if p.is_dir() and not p.is_symlink() and p.name != VERSIONS):
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir():
                with suppress(OSError):  # not empty
                    path.rmdir()
            elif path.relative_to(model).as_posix() not in kept:
                path.unlink()
        with suppress(OSError):
            folder.rmdir()


def settle(store: Path, members: Mapping[str, Mapping[str, Any]]) -> None:
    """Bring the metadata that lie with the arrays in line with those in the root."""
    for name, meta in members.items():
        path = store / name / ROOT
        text = json.dumps(meta, indent=2).encode()
        if not path.exists() or path.read_bytes() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{ROOT}.partial")
            part.write_bytes(text)
            os.replace(part, path)


def _tidy_versions(model: Path, head: Head) -> None:
    """Remove versions that no history knows, unless somebody reads them just now."""
    known = {v.path for v in head.history} | {path for path, until in head.gone.items() if time.time() < until}
    folders = (model / VERSIONS).iterdir() if (model / VERSIONS).is_dir() else ()
    for folder in folders:
        if f"{VERSIONS}/{folder.name}" not in known:
            _remove_unread(folder)


def _remove_unread(folder: Path) -> None:
    root = folder / ROOT
    if not root.exists():  # half written, or half removed
        shutil.rmtree(folder, ignore_errors=True)
        return
    with open(root, "rb") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # readers hold a shared lock
        root.unlink()  # from here on nobody can open it
        shutil.rmtree(folder, ignore_errors=True)


def synced(path: Path) -> None:
    """Wait until a file or folder is safe on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_once(ds: xr.Dataset, store: Store, place: str, overwrite: bool, parent: str | None, kind: str) -> Version:
    """A first and only version in a store of whatever kind: the root goes last."""
    if parent is not None or not sync(store.is_empty("")):
        way_out = "replacing needs a local disk, an object store or Icechunk: choose another place"
        raise StoreError(f"{place} is not empty: {way_out if overwrite else 'choose another'}")
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "model"
        new = _stage(ds, staged, None, kind)
        new = replace(new, history=(replace(new.history[0], path=""),))
        _put(staged / ROOT, new.dump())
        for key in [*new.chunks, *(f"{name}/{ROOT}" for name in new.members), ROOT]:
            data = default_buffer_prototype().buffer.from_bytes((staged / key).read_bytes())
            sync(store.set(key, data))
    return new.history[0]
