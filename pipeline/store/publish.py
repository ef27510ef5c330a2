"""The commit: a Dataset becomes the head of a store, whole or not at all.

MODEL is a directory whose root `zarr.json` is the pointer: it holds the metadata of all arrays and is replaced in one
rename, as the last step. The chunks of a new version lie under keys that the head and the version before it do not
use, so that whoever has opened an old version, and reads its chunks later, still finds them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import xarray as xr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from pipeline.errors import InputError, StoreError
from pipeline.store.head import ROOT, SLOTS, Chunk, Head
from pipeline.store.lock import only_writer
from pipeline.store.read import Place, locate, open_store

__all__ = ["commit"]

_CHUNK_BYTES = 16 * 2**20


def commit(ds: xr.Dataset, store: Place, overwrite: bool = False) -> None:
    """Make a Dataset the head of a store; whoever opens the store meanwhile gets the old version or the new one.

    Parameters
    ----------
    ds : Dataset
        What is stored.
    store : str, PathLike, zarr Store
        On a local disk a model can be replaced; elsewhere only a new one be written.
    overwrite : bool
        Replace the model that is there.

    Raises
    ------
    StoreError
        When something is there that may not be replaced, or writing fails: what was there before stays as it was.
    """
    place = locate(store)
    try:
        if isinstance(place, Path):
            _commit_local(ds, place, overwrite)
        else:
            _upload(ds, open_store(place, read_only=False), str(store), overwrite)
    except OSError as error:
        raise StoreError(
            f"{store} cannot be written: {error.strerror or error}; what was stored before is as it was"
        ) from error


def _commit_local(ds: xr.Dataset, model: Path, overwrite: bool) -> None:
    _current(model, overwrite)  # before a lock file or a folder is made
    with _folder(model.parent), only_writer(model):
        head = _current(model, overwrite)
        for stale in model.parent.glob(f".{_literal(model.name)}.*.partial"):
            shutil.rmtree(stale, ignore_errors=True)  # its writer is dead: we hold the lock
        staged = model.with_name(f".{model.name}.{uuid4().hex}.partial")
        try:
            new = _stage(ds, staged, head)
            if head is None:
                _install(staged, model, new)
            else:
                _replace(staged, model, head, new)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
            _tidy_if_model(model)


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


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """The folder exists while inside; what had to be made for it goes again after a failure."""
    made = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody else uses it by now
                folder.rmdir()
        raise


def _stage(ds: xr.Dataset, folder: Path, head: Head | None) -> Head:
    """Write the Dataset to a folder of its own, safe on disk, and record its chunks."""
    slot = head.next_slot if head else 0
    _write(ds, folder, slot)
    chunks = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name != ROOT:
            chunks[path.relative_to(folder).as_posix()] = Chunk.of(path.read_bytes())
        _sync(path)
    version = head.version + 1 if head else 1
    return Head(json.loads((folder / ROOT).read_bytes()), uuid4().hex, chunks, version, slot)


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


def _seal(folder: Path, head: Head) -> None:
    (folder / ROOT).write_bytes(head.dump())
    _sync(folder / ROOT)


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
    _seal(staged, new)
    for folder in (staged, *(p for p in staged.rglob("*") if p.is_dir())):
        _sync(folder)
    try:
        os.rename(staged, model)
    except OSError as error:
        if os.path.lexists(model):
            raise StoreError(
                f"{model} was made by somebody else meanwhile: choose another path or try again"
            ) from error
        raise
    _sync(model.parent)


def _replace(staged: Path, model: Path, head: Head, new: Head) -> None:
    """A later version: chunks under free keys, then each array's metadata, and the root last."""
    time.sleep(head.wait(time.time()))
    _tidy(model, head, now=math.inf)
    keys = [*new.chunks, *(f"{name}/{ROOT}" for name in new.members)]
    for key in keys:
        (model / key).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / key, model / key)
    folders = {model / folder for key in keys for folder in Path(key).parents}
    for folder in sorted(folders, reverse=True):
        _sync(folder)
    _seal(staged, replace(new, earlier=head.succession(time.time())))
    os.replace(staged / ROOT, model / ROOT)
    _sync(model)


def _tidy_if_model(model: Path) -> None:
    # After the commit, or on the way out of a failure: what cannot be tidied now is tidied before the next commit.
    with suppress(OSError, StoreError):
        _tidy(model, Head.parse((model / ROOT).read_bytes(), str(model)), now=time.time())


def _tidy(model: Path, head: Head, now: float) -> None:
    """Bring the arrays in line with the root, and remove what no version needs: the leavings of dead writers too."""
    for name, meta in head.members.items():
        path = model / name / ROOT
        text = json.dumps(meta, indent=2).encode()
        if not path.exists() or path.read_bytes() != text:
            path.parent.mkdir(exist_ok=True)
            part = path.with_name(f".{ROOT}.partial")
            part.write_bytes(text)
            os.replace(part, path)
    kept = head.kept(now) | {f"{name}/{ROOT}" for name in head.members}
    for folder in (p for p in model.iterdir() if p.is_dir() and not p.is_symlink()):
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir():
                with suppress(OSError):  # not empty
                    path.rmdir()
            elif path.relative_to(model).as_posix() not in kept:
                path.unlink()
        with suppress(OSError):
            folder.rmdir()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _literal(name: str) -> str:
    """A file name as a glob pattern that matches only itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _upload(ds: xr.Dataset, store: Store, place: str, overwrite: bool) -> None:
    """A first version in a store that is not on a local disk: the root goes last."""
    if not sync(store.is_empty("")):
        way_out = "replacing is only possible on a local disk: choose another place" if overwrite else "choose another"
        raise StoreError(f"{place} is not empty: {way_out}")
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "model"
        new = _stage(ds, staged, None)
        _seal(staged, new)
        for key in [*new.chunks, *(f"{name}/{ROOT}" for name in new.members), ROOT]:
            data = default_buffer_prototype().buffer.from_bytes((staged / key).read_bytes())
            sync(store.set(key, data))
