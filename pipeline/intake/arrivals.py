"""`ingest`: the samples of files are checked against a growing store and added to it, each file in one step."""

from __future__ import annotations

import glob
import hashlib
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from pipeline.errors import ConflictError, InputError, StoreError
from pipeline.intake.dense import Dense
from pipeline.intake.files import FORMATS, Reading, SparseRows, slabs, suffix_of
from pipeline.intake.sparse import Sparse
from pipeline.sources.anndata import is_anndata
from pipeline.store.growing import Batch, Growth, batches_of, growing, place_of, tend
from pipeline.store.read import open_store

__all__ = ["Ingested", "ingest"]

Source = str | PathLike[str]
Place = Path | str  # a local disk or a URL


@dataclass(frozen=True)
class Ingested:
    """What came in: the batches that were added, how many files held nothing new, and the samples there are now."""

    store: str
    added: tuple[Batch, ...]
    known: int
    n_samples: int

    def __str__(self) -> str:
        if not self.added:
            return f"nothing new: {self.store} stays at {self.n_samples} samples"
        rows = sum(b.stop - b.start for b in self.added)
        files = "1 file" if len(self.added) == 1 else f"{len(self.added)} files"
        return f"{rows} samples of {files} added: {self.store} has {self.n_samples} samples"


@dataclass(frozen=True)
class _Wanted:
    """How files are read, and what a new store is like."""

    reading: Reading
    dtype: Any
    missing: str
    chunk_rows: int | None


def ingest(
    store: Source,
    source: Source | Sequence[Source],
    *,
    variable: str | Sequence[str] | None = None,
    sample_dim: str | None = None,
    labels: str | None = None,
    dtype: str | None = None,
    missing: Literal["error", "keep"] = "error",
    chunk_rows: int | None = None,
    settle: float = 0.0,
) -> Ingested:
    """Append the samples of files to a chunked Zarr store.

    Each file is one batch: checked first, then there whole or not at all, whoever reads the store meanwhile. Batches
    are known by what they hold; the same one again, under whatever name, adds nothing. A run that was killed is
    completed by the same call.

    Parameters
    ----------
    store : path or URL
        On a local disk or in an object store (s3://…); made where nothing is. NetCDF, HDF5, Parquet, CSV, NPY and dense
        anndata make a Zarr v3 group of named arrays, sparse anndata one in anndata's own layout; `open_matrix` and
        xarray open both.
    source : path, pattern, folder, or several
        Files (.nc, .h5, .parquet, .csv, .npy, .h5ad, .zarr, …), in the order of their names.
    variable : str or list of str, optional
        Variables of a Dataset, a dataset of an HDF5 file, a matrix of anndata ('layers/counts'), columns of a table.
        Default: all that are numbers; anndata: X.
    sample_dim : str, optional
        The dim that grows; default: the first. What a table calls its rows.
    labels : str, optional
        The column of a table that names its samples.
    dtype : str, optional
        Of the store, to which entries are rounded; default: that of the first batch (float64 for tables), and batches
        that would be rounded are refused.
    missing : {'error', 'keep'}
        Whether NaN may be anywhere, or only in features that are NaN in all samples (land).
    chunk_rows : int, optional
        Height of the chunks of a new store; default: 8 MB of whole rows.
    settle : float
        Files that were written to in the last so many seconds are left for the next call.

    Raises
    ------
    InputError
        When a file cannot be read, or does not fit the store: names, dims, dtype, features, units, labels that are
        there already. The other files are added all the same.
    ConflictError
        When somebody else has added to the store meanwhile: run it again.
    StoreError
        When the store cannot be written, or was not made by `ingest`.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> np.save(folder / "monday.npy", np.arange(12.0).reshape(4, 3))
    >>> print(ingest(folder / "all.zarr", folder / "*.npy").n_samples)
    4
    >>> np.save(folder / "tuesday.npy", np.ones((2, 3)))
    >>> found = ingest(folder / "all.zarr", folder / "*.npy")
    >>> [(b.start, b.stop) for b in found.added], found.known, found.n_samples
    ([(4, 6)], 1, 6)
    """
    place = place_of(store)
    wanted = _Wanted(Reading(variable, sample_dim, labels), _dtype(dtype), missing, _height(chunk_rows))
    if missing not in ("error", "keep"):
        raise InputError(f"missing={missing!r}: expected 'error' or 'keep'")
    added, known, failed = [], 0, []
    files = _files(source, place, settle)
    seen = {(b.name, b.stamp) for b in tend(place)}
    for file in files:
        mark = str(file.resolve()), _stamp(file)
        if mark in seen and mark[1]:
            known += 1
            continue
        try:
            batch = _add(place, file, mark, wanted)
        except InputError as error:
            failed.append(error)
            continue
        if batch is None:
            known += 1
        else:
            added.append(batch)
    if failed:
        others = f" (and {len(failed) - 1} more files cannot)" if len(failed) > 1 else ""
        taken = f"; {len(added)} of {len(files)} files were added" if len(files) > 1 else ""
        raise InputError(f"{failed[0]}{others}{taken}")
    return Ingested(str(store), tuple(added), known, max((b.stop for b in batches_of(place)), default=0))


def _add(place: Place, file: Path, mark: tuple[str, str], wanted: _Wanted) -> Batch | None:
    """One file; None where the store has what it holds."""
    with growing(place) as growth:
        layout = None if growth.before is None else _layout(place, wanted)
        layout, id, n, labels = _survey(file, layout, wanted)
        if any(b.id == id for b in growth.batches):
            return None
        if labels is not None and growth.before is not None:
            _check_new(layout, place, labels, file)
        begun, copy = growth.before is None, _Digest(layout)
        for slab in slabs(file, wanted.reading):
            fitted = layout.fitted(slab, str(file))
            copy.feed(fitted)
            layout.put(fitted, growth.folder, begun)
            begun = False
        if copy.id != id:
            raise InputError(f"{file} has changed while it was read: run it again when it is complete")
        start = growth.n_samples
        return _publish(growth, Batch(id, *mark, start, start + n))


def _publish(growth: Growth, batch: Batch) -> Batch | None:
    try:
        return growth.publish(batch)
    except ConflictError:
        if any(b.id == batch.id for b in batches_of(growth.place)):
            return None  # somebody else has added the same
        raise


class _Digest:
    """What slabs hold, as 32 hex digits; the same however they are cut."""

    def __init__(self, layout: Any) -> None:
        self._layout = layout
        self._parts: dict[str, Any] = defaultdict(lambda: hashlib.blake2b(digest_size=16))

    def feed(self, slab: Any) -> None:
        self._layout.feed(slab, self._parts)

    @property
    def id(self) -> str:
        told = "".join(f"{name}:{part.hexdigest()};" for name, part in sorted(self._parts.items()))
        return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def _survey(file: Path, layout: Any, wanted: _Wanted) -> tuple[Any, str, int, np.ndarray | None]:
    """Check a whole file before anything is written: its layout, what it holds, its samples and their labels."""
    digest, n, labels = None, 0, []
    for slab in slabs(file, wanted.reading):
        if layout is None:
            layout = _new_layout(slab, wanted, str(file))
        digest = digest or _Digest(layout)
        fitted = layout.fitted(slab, str(file))
        layout.check(fitted, n, str(file))
        digest.feed(fitted)
        names = layout.labels(fitted)
        labels.append(names)
        n += fitted.rows.shape[0] if isinstance(fitted, SparseRows) else int(fitted.sizes[layout.dim])
    assert digest is not None
    return layout, digest.id, n, None if labels[0] is None else np.concatenate(labels)


def _layout(place: Place, wanted: _Wanted) -> Any:
    rounded, opened = wanted.dtype is not None, open_store(place)
    try:
        sparse = is_anndata(zarr.open_group(opened, mode="r"))
        return Sparse.of_store(opened, rounded) if sparse else Dense.of_store(opened, wanted.missing, rounded)
    except (KeyError, ValueError, OSError) as error:
        raise StoreError(f"{place} is damaged ({error}): restore it from a copy") from error


def _new_layout(slab: Any, wanted: _Wanted, name: str) -> Any:
    if isinstance(slab, SparseRows):
        return Sparse.of_slab(slab, wanted.dtype)
    return Dense.of_slab(slab, wanted.dtype, wanted.missing, wanted.chunk_rows)


def _check_new(layout: Any, place: Place, labels: np.ndarray, file: Path) -> None:
    """Samples that are there already under the same label are not added once more."""
    stored = layout.stored_labels(open_store(place))
    again = np.isin(labels, stored)
    if again.any():
        raise InputError(
            f"{file}: {np.count_nonzero(again)} of its {labels.size} samples are in {place} already (such as "
            f"{labels[np.argmax(again)]}), as part of another batch: samples are added, never replaced"
        )


def _dtype(name: str | None) -> np.dtype[Any] | None:
    try:
        found = None if name is None else np.dtype(name)
    except TypeError:
        found = np.dtype(object)
    if found is not None and found.kind not in "iufc":
        raise InputError(f"dtype={name!r}: give one of numbers, such as float32")
    return found


def _height(chunk_rows: int | None) -> int | None:
    if chunk_rows is not None and (isinstance(chunk_rows, bool) or chunk_rows < 1):
        raise InputError(f"chunk_rows={chunk_rows!r}: give a number of rows, at least 1")
    return chunk_rows


def _files(source: Source | Sequence[Source], store: Place, settle: float) -> list[Path]:
    """The files that are meant, in the order of their names, without those that are being written."""
    named = [source] if isinstance(source, str | PathLike) else list(source)
    found: list[Path] = []
    here = store.resolve() if isinstance(store, Path) else None
    for given in named:
        text, path = fspath(given), Path(given)
        if path.is_dir() and suffix_of(path) not in FORMATS:
            inside = [p for p in path.iterdir() if suffix_of(p) in FORMATS and not p.name.startswith(".")]
            found += sorted(p for p in inside if p.resolve() != here)
        elif path.exists():
            found.append(path)
        elif glob.has_magic(text):
            found += sorted(Path(p) for p in glob.glob(text) if Path(p).resolve() != here)
        else:
            raise InputError(f"{text} does not exist")
    latest = time.time() - settle
    return [p for p in dict.fromkeys(found) if settle <= 0 or p.stat().st_mtime <= latest]


def _stamp(file: Path) -> str:
    """Size and time of writing of a file; '' for a folder, which is known by what it holds."""
    info = file.stat()
    return "" if file.is_dir() else f"{info.st_size}-{info.st_mtime_ns}"
