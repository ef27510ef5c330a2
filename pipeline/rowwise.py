"""A function of rows applied to a whole matrix: gathered in memory, left lazy, or written block by block."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
import zarr

from pipeline.errors import InputError, NonfiniteError, StoreError
from pipeline.kernels.blocks import working_dtype
from pipeline.labels import Coord, Labels
from pipeline.matrix import Matrix
from pipeline.sources import ROWS
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
    across: Labels | None = None
    """What the columns of the result are, where they are not modes."""
    infinite: bool = False
    """Whether infinity is a result as good as any; the function then refuses entries that are no numbers itself."""

    def filled(self, rows: np.ndarray) -> np.ndarray:
        """Rows as the function gets them."""
        if self.fill is None or rows.dtype.kind != "f":
            return rows
        return np.where(np.isnan(rows), self.fill.astype(rows.dtype), rows)

    def checked(self, rows: np.ndarray) -> np.ndarray:
        """Apply; raises NonfiniteError where the result is NaN or Inf, as it is wherever a row is."""
        with np.errstate(invalid="ignore", over="ignore"):
            result = self.apply(self.filled(rows))
        if not (self.infinite or np.isfinite(result).all()):
            raise NonfiniteError("NaN or Inf among the entries")
        return result


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
    side: int = ROWS

    def block(self, x: np.ndarray, at: tuple[int, int], held: int | None, scratch: dict[str, Any]) -> int:
        result = self.function.checked(x)
        slab = prod(self.inner)
        self.target[at[0] // slab : at[1] // slab] = result.reshape(-1, *self.inner, *self.outer)
        return (held or 0) + len(x)

    def combine(self, a: int, b: int) -> int:
        return a + b


def gathered(X: Matrix, function: RowFunction) -> np.ndarray:
    """The function of all rows as one array (n, width) or (n,)."""
    parts, _ = walk(X, _Gather(function, X.work_dtype))
    parts.sort(key=lambda part: part[0])
    return np.concatenate([result for _, result in parts]).astype(X.work_dtype, copy=False)


def lazy(array: Any, function: RowFunction, sample_axes: tuple[int, ...], feature_axes: tuple[int, ...]) -> Any:
    """The function of the rows of a Dask array, as a lazy Dask array; numbers of rows may be unknown."""
    axes = sample_axes + feature_axes
    x = array if axes == tuple(range(array.ndim)) else da.transpose(array, axes)  # sparse blocks cannot be transposed
    samples, features = tuple(range(len(sample_axes))), tuple(range(len(sample_axes), x.ndim))
    last, new = ((x.ndim,), {x.ndim: function.width}) if function.width else ((), None)
    dtype = working_dtype(array.dtype)
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
    x = x.toarray() if hasattr(x, "toarray") else x.todense() if hasattr(x, "todense") else np.asarray(x)
    shape = x.shape[:n_samples]
    rows = x.reshape(prod(shape), prod(x.shape[n_samples:]))
    try:
        result = function.checked(rows)
    except NonfiniteError:
        raise InputError(_place(function.filled(rows), function.present)) from None
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
    """
    if not isinstance(out, str | PathLike) or "://" in fspath(out):
        raise InputError(f"out={out!r}: give a path on a local disk")
    path = Path(fspath(out))
    if path.exists() and not overwrite:
        raise StoreError(f"{path} exists: pass overwrite=True (--overwrite) or choose another path")
    if path.exists() and not (path / "zarr.json").exists():
        raise StoreError(f"{path} is not a Zarr store, so it is not replaced: choose another path")
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fill(X, function, fresh)
        if path.exists():
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex}.old")
            path.rename(old)
            fresh.rename(path)
            shutil.rmtree(old)
        else:
            fresh.rename(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror or error}): choose another path") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return xr.open_zarr(path, chunks=None, consolidated=False)[function.name]


def _fill(X: Matrix, function: RowFunction, path: Path) -> None:
    samples, across = X.samples, function.across or _modes(function)
    coords: dict[str, Any] = {**samples.xarray_coords(), **across.xarray_coords()}
    shape, dims = (*samples.sizes, *across.sizes), (*samples.dims, *across.dims)
    if X.source.collections:  # chunks of Dask arrays come as they are: results are gathered, and written at once
        values = gathered(X, function).reshape(shape)
        xr.Dataset({function.name: (dims, values)}, coords).to_zarr(path, consolidated=False)
        return
    xr.Dataset(coords=coords).to_zarr(path, consolidated=False)
    inner = samples.sizes[1:]
    height = max(1, X.block_height // max(prod(inner), 1))
    target = zarr.open_group(path, mode="r+").create_array(
        function.name,
        shape=shape,
        chunks=(min(height, max(shape[0], 1)), *shape[1:]),
        dtype=X.work_dtype,
        dimension_names=dims,
        fill_value=np.nan,
    )
    walk(X.cut_at(height * prod(inner)), _Write(function, X.work_dtype, target, inner, across.sizes))


def _modes(function: RowFunction) -> Labels:
    """The columns of scores: numbered modes, or none."""
    if not function.width:
        return Labels((), ())
    return Labels(("mode",), (function.width,), {"mode": Coord(("mode",), np.arange(1, function.width + 1), {})})
