"""A function of rows applied to a whole matrix: gathered in memory, left lazy, or written block by block."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import dask
import numpy as np
import scipy.sparse
import xarray as xr
import zarr

from pipeline.errors import InputError, NonfiniteError, PipelineError, StoreError
from pipeline.folds.implicit import implicit_block
from pipeline.kernels.blocks import working_dtype
from pipeline.kernels.implicit import ImplicitBlock
from pipeline.kernels.sparse import SparseBlock, as_compressed
from pipeline.labels import Coord, Labels
from pipeline.matrix import Matrix
from pipeline.sources import ROWS, stamp
from pipeline.store.lock import only_writer
from pipeline.walk import walk

__all__ = ["RowFunction", "RowKernel", "gathered", "lazy", "written"]

RowKernel = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class RowFunction:
    """A pure function of a block of rows (m, d) and what it gives: (m, width), or (m,) where width is 0."""

    apply: RowKernel
    width: int
    name: str
    present: np.ndarray
    """(d,) bool: the features that it looks at."""
    fill: np.ndarray | None = None
    """(d,) what NaN is replaced by, if at all."""
    identity: str = ""
    """What tells it from others of its kind."""
    code: float | None = None
    """What stands for a missing entry beside NaN."""
    implicit: bool = False
    """Whether it takes blocks that are not dense."""
    complex: bool = False
    """Whether its results are complex for real rows too."""
    across: Labels | None = None
    """What the columns of the result are, where they are not modes."""
    infinite: bool = False
    """Whether infinity is a result as good as any; the function then refuses entries that are no numbers itself."""

    def dtype(self, rows: Any) -> np.dtype[Any]:
        """Of the results, for rows of a dtype."""
        dtype = working_dtype(rows)
        if not self.width:
            return np.dtype(dtype.type(0).real.dtype)
        return np.result_type(dtype, np.complex64) if self.complex else dtype

    def filled(self, rows: np.ndarray) -> np.ndarray:
        """Rows as the function gets them."""
        if self.code is not None:
            rows = np.where(rows == self.code, np.nan, rows)
        if self.fill is None or rows.dtype.kind not in "fc":
            return rows
        return np.where(np.isnan(rows), self.fill.astype(rows.dtype), rows)

    def checked(self, rows: Any) -> np.ndarray:
        """Apply; raises NonfiniteError where the result is NaN or Inf, as it is wherever a row is."""
        with np.errstate(invalid="ignore", over="ignore"):
            if isinstance(rows, np.ndarray):
                result = self.apply(self.filled(rows))
            elif self.implicit:
                result = self.apply(self._filled_implicit(rows))
            else:
                result = np.concatenate([self.apply(self.filled(slab)) for slab in rows.slabs()])
        if not (self.infinite or np.isfinite(result).all()):
            raise NonfiniteError("NaN or Inf among the entries")
        return result

    def _filled_implicit(self, rows: Any) -> Any:
        if isinstance(rows, SparseBlock):
            rows = rows if self.code is None else rows.marked(self.code)
            rows = rows if self.fill is None else rows.filled(self.fill)
        return rows


@dataclass(frozen=True, eq=False)
class _Gather:
    """Fold to the results of all rows."""

    function: RowFunction
    dtype: np.dtype[Any]
    side: int = ROWS

    def block(self, x: np.ndarray, at: tuple[int, int], held: list[Any] | None, scratch: dict[str, Any]) -> list[Any]:
        return [*(held or []), (at[0], self.function.checked(x))]

    def combine(self, a: list[Any], b: list[Any]) -> list[Any]:
        return a + b


@dataclass(frozen=True, eq=False)
class _Write:
    """Fold that writes results where they belong and sums up nothing; blocks are whole chunks of the target."""

    function: RowFunction
    dtype: np.dtype[Any]
    target: Any
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    done: frozenset[int]
    """Chunks along the first dim that an earlier run has written."""
    side: int = ROWS

    def skips(self, at: tuple[int, int]) -> bool:
        return at[0] // prod(self.inner) // self.target.chunks[0] in self.done

    def block(self, x: np.ndarray, at: tuple[int, int], held: int | None, scratch: dict[str, Any]) -> int:
        return (held or 0) + self.put(self.function.checked(x), at)

    def put(self, result: np.ndarray, at: tuple[int, int]) -> int:
        """Write the results of the rows `at`; their number."""
        slab = prod(self.inner)
        self.target[at[0] // slab : at[1] // slab] = result.reshape(-1, *self.inner, *self.outer)
        return len(result)

    def combine(self, a: int, b: int) -> int:
        return a + b


@implicit_block.register
def _gather(fold: _Gather, x: ImplicitBlock, at: tuple[int, int], held: list[Any] | None) -> list[Any]:
    return [*(held or []), (at[0], fold.function.checked(x))]


@implicit_block.register
def _write(fold: _Write, x: ImplicitBlock, at: tuple[int, int], held: int | None) -> int:
    return (held or 0) + fold.put(fold.function.checked(x), at)


def gathered(X: Matrix, function: RowFunction) -> np.ndarray:
    """The function of all rows as one array (n, width) or (n,)."""
    parts, _ = walk(X, _Gather(function, X.work_dtype))
    parts.sort(key=lambda part: part[0])
    return np.concatenate([result for _, result in parts]).astype(function.dtype(X.dtype), copy=False)


def lazy(array: Any, function: RowFunction, sample_axes: tuple[int, ...], feature_axes: tuple[int, ...]) -> Any:
    """The function of the rows of a Dask array, as a lazy Dask array; numbers of rows may be unknown."""
    import dask.array as da

    axes = sample_axes + feature_axes
    x = array if axes == tuple(range(array.ndim)) else da.transpose(array, axes)  # sparse blocks cannot be transposed
    samples, features = tuple(range(len(sample_axes))), tuple(range(len(sample_axes), x.ndim))
    last, new = ((x.ndim,), {x.ndim: function.width}) if function.width else ((), None)
    dtype = function.dtype(array.dtype)
    return da.blockwise(
        _block,
        (*samples, *last),
        x,
        (*samples, *features),
        new_axes=new,
        concatenate=True,
        align_arrays=False,
        meta=np.empty((0,) * len((*samples, *last)), dtype),
        function=dask.delayed(function, traverse=False),  # one task of its own: components may be large
        n_samples=len(samples),
        dtype_out=dtype,
    )


def _block(x: Any, function: RowFunction, n_samples: int, dtype_out: np.dtype[Any]) -> np.ndarray:
    sparse = scipy.sparse.issparse(x) or hasattr(x, "to_scipy_sparse")
    if sparse and not (x.ndim == 2 and n_samples == 1):
        x, sparse = x.todense(), False
    shape = x.shape[:n_samples]
    rows: Any = (
        SparseBlock(as_compressed(x)) if sparse else np.asarray(x).reshape(prod(shape), prod(x.shape[n_samples:]))
    )
    try:
        result = function.checked(rows)
    except NonfiniteError:
        raise InputError(_place(function.filled(rows.toarray() if sparse else rows), function.present)) from None
    return result.reshape(*shape, *result.shape[1:]).astype(dtype_out, copy=False)


def _place(rows: np.ndarray, present: np.ndarray) -> str:
    wrong = np.argwhere(~np.isfinite(rows) & present)
    if not len(wrong):
        return "the scores overflow: scale the data down"
    row, feature = wrong[0]
    return (
        f"the data hold {rows[row, feature]} at row {row} of a chunk, feature {feature}: "
        "fill such entries, or leave those samples or features out"
    )


def written(X: Matrix, function: RowFunction, out: str | PathLike[str], overwrite: bool = False) -> xr.DataArray:
    """Write the function of all rows to a Zarr store with the coordinates of the samples, in bounded memory.

    Parameters
    ----------
    X : Matrix
    function : RowFunction
    out : path
        A directory that does not exist yet, or is replaced with `overwrite`.

    Returns
    -------
    DataArray
        Lazily opened from the store: sample dims, then `mode`.

    Raises
    ------
    InputError
        When `out` is no path on a local disk.
    StoreError
        When it exists or cannot be written; nothing half-made is left.

    A run that was killed has left a hidden folder beside `out`: the same call goes on where it ended, except from Dask
    arrays, of which nobody knows without computing them whether they are the same.
    """
    if not isinstance(out, str | PathLike) or "://" in fspath(out):
        raise InputError(f"out={out!r}: give a path on a local disk")
    path = Path(fspath(out))
    if path.exists() and not overwrite:
        raise StoreError(f"{path} exists: pass overwrite=True (--overwrite) or choose another path")
    if path.exists() and not (path / "zarr.json").exists():
        raise StoreError(f"{path} is not a Zarr store, so it is not replaced: choose another path")
    begun = path.absolute().with_name(f".{path.name}.partial")  # workers may have another current directory
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(path):
            _fill(X, function, begun)
            if path.exists():
                old = path.with_name(f".{path.name}.{uuid.uuid4().hex}.old")
                path.rename(old)
                begun.rename(path)
                shutil.rmtree(old)
            else:
                begun.rename(path)
    except (OSError, PipelineError) as error:
        shutil.rmtree(begun, ignore_errors=True)  # what was killed goes on; what cannot work leaves nothing
        if isinstance(error, PipelineError):
            raise
        raise StoreError(f"{path} cannot be written ({error.strerror or error}): choose another path") from error
    return xr.open_zarr(path, chunks=None, consolidated=False)[function.name]


def _fill(X: Matrix, function: RowFunction, path: Path) -> None:
    """Write all blocks, or those that are missing where the same work was begun and killed."""
    samples, across = X.samples, function.across or _modes(function)
    coords: dict[str, Any] = {**samples.xarray_coords(), **across.xarray_coords()}
    shape, dims = (*samples.sizes, *across.sizes), (*samples.dims, *across.dims)
    inner = samples.sizes[1:]
    height = max(1, X.block_height // max(prod(inner), 1))
    if X.source.collections:  # whose chunks are taken whole
        even = getattr(X.source, "even", None)
        if even is None:  # a stretch of several sample dims
            shutil.rmtree(path, ignore_errors=True)
            values = gathered(X, function).reshape(shape)
            xr.Dataset({function.name: (dims, values)}, coords).to_zarr(path, consolidated=False)
            return
        X = replace(X, source=even(height))
    work = _work(X, function, height)
    target, done = _begun(path, function.name, work)
    if target is None:
        shutil.rmtree(path, ignore_errors=True)
        xr.Dataset(coords=coords).to_zarr(path, consolidated=False)
        target = zarr.open_group(path, mode="r+").create_array(
            function.name,
            shape=shape,
            chunks=(min(height, max(shape[0], 1)), *shape[1:]),
            dtype=function.dtype(X.dtype),
            dimension_names=dims,
            fill_value=np.nan,
            attributes={_WORK: work},
        )
    walk(X.cut_at(height * prod(inner)), _Write(function, X.work_dtype, target, inner, across.sizes, done))
    del target.attrs[_WORK]


_WORK = "unfinished_work"


def _begun(path: Path, name: str, work: str) -> tuple[Any, frozenset[int]]:
    """The target of a run that was killed in the middle of the same work, and the chunks that it has; or None."""
    try:
        target = zarr.open_group(path, mode="r+", use_consolidated=False)[name]
        if not isinstance(target, zarr.Array) or target.attrs.get(_WORK) != work:
            return None, frozenset()
    except (KeyError, OSError, ValueError):
        return None, frozenset()
    # A chunk is written under another name and renamed: one that is there is whole.
    width = prod(-(-n // c) for n, c in zip(target.shape[1:], target.chunks[1:], strict=True))
    root = path / name / "c"
    chunks = [p.relative_to(root) for p in root.rglob("*") if p.is_file() and not p.name.endswith(".partial")]
    found = Counter(int(chunk.parts[0]) for chunk in chunks)
    return target, frozenset(i for i, number in found.items() if number == width)


def _work(X: Matrix, function: RowFunction, height: int) -> str:
    """What tells whether two runs do the same: what is computed, from which entries, in which blocks."""
    entries = stamp(X.source) or uuid.uuid4().hex  # entries that may have changed meanwhile are read from the start
    fill = None if X.fill is None else X.fill.tobytes()
    return hashlib.sha256(repr((function.identity, entries, X.shape, height, fill)).encode()).hexdigest()


def _modes(function: RowFunction) -> Labels:
    """The columns of scores: numbered modes, or none."""
    if not function.width:
        return Labels((), ())
    return Labels(("mode",), (function.width,), {"mode": Coord(("mode",), np.arange(1, function.width + 1), {})})
