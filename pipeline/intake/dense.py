"""`Dense`: a store of named arrays whose first dim is that of the samples, as xarray writes and reads them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from zarr.abc.store import Store

from pipeline.errors import InputError

__all__ = ["Dense", "castable"]

_CHUNK, _WIDEST = 8 << 20, 64 << 20  # bytes of a chunk of whole rows; of a row that is not cut
_LABELS = 1 << 14  # labels of samples in a chunk
_CLOSE = 1e-6  # relative, of coordinates that were rounded on their way


@dataclass(frozen=True, eq=False)
class Dense:
    """What every slab must be like.

    Parameters
    ----------
    template : Dataset
        The variables without a sample, the coordinates of the features.
    land : mapping of str to array of bool
        Features of each variable that are NaN in all samples; left out where NaN may be anywhere.
    chunk_rows : int, optional
        Of a new store.
    """

    template: xr.Dataset
    land: Mapping[str, np.ndarray]
    chunk_rows: int | None = None
    rounded: bool = False
    """Whether float64 may become the float32 of the store."""

    @classmethod
    def of_store(cls, store: Store, missing: str, rounded: bool = False) -> Dense:
        """That of a store which is there."""
        with xr.open_zarr(store, chunks=None) as ds:
            dim = str(next(iter(ds.data_vars.values())).dims[0])
            land = _land(ds.isel({dim: slice(0, 1)}).load()) if missing == "error" else {}
            return cls(ds.isel({dim: slice(0, 0)}).load(), land, None, rounded)

    @classmethod
    def of_slab(cls, slab: xr.Dataset, dtype: Any, missing: str, chunk_rows: int | None) -> Dense:
        """That of a store which begins with a slab."""
        dim = str(next(iter(slab.data_vars.values())).dims[0])
        plain = {n: (a.dims, _plain(a.values), _attributes(a)) for n, a in slab.data_vars.items()}
        plain = {n: (dims, values.astype(dtype or values.dtype), attrs) for n, (dims, values, attrs) in plain.items()}
        coords = {n: (c.dims, _plain(c.values), _attributes(c)) for n, c in slab.coords.items()}
        new = xr.Dataset(plain, coords, _attributes(slab))
        land = _land(new.isel({dim: slice(0, 1)})) if missing == "error" else {}
        return cls(new.isel({dim: slice(0, 0)}), land, chunk_rows, dtype is not None)

    @property
    def dim(self) -> str:
        """That of the samples."""
        return str(next(iter(self.template.data_vars.values())).dims[0])

    def fitted(self, slab: Any, name: str) -> xr.Dataset:
        """A slab with the order, dims and dtypes of the store; raises InputError where it does not fit."""
        if not isinstance(slab, xr.Dataset):
            raise InputError(f"{name} is sparse, the store is dense: ingest it to a store of its own")
        known, dim = self.template, self.dim
        _same({str(n) for n in slab.data_vars}, {str(n) for n in known.data_vars}, "variable", name)
        if dim not in slab.dims:
            raise InputError(
                f"{name} has no dim {dim!r}, that of the samples: its dims are {', '.join(map(str, slab.sizes))}"
            )
        slab = self._by_name(slab, name)
        arrays: dict[Hashable, Any] = {}
        for n, like in known.variables.items():
            if dim not in like.dims:
                continue
            if n not in slab.variables:
                raise InputError(f"{name} has no {n!r}, which labels the samples of the store")
            found = slab.variables[n]
            if set(found.dims) != set(like.dims) or any(found.sizes[d] != like.sizes[d] for d in like.dims if d != dim):
                have, want = (", ".join(f"{d}={v.sizes[d]}" for d in v.dims if d != dim) for v in (found, like))
                raise InputError(f"{name}: {n} has the dims {have} beside {dim}, in the store it has {want}")
            if "units" in like.attrs and found.attrs.get("units", like.attrs["units"]) != like.attrs["units"]:
                raise InputError(f"{name}: {n} is in {found.attrs['units']}, in the store in {like.attrs['units']}")
            values = _plain(found.transpose(*like.dims).values)
            arrays[n] = like.dims, _cast(values, like.dtype, f"{name}: {n}", self.rounded), dict(like.attrs)
        data = {n: v for n, v in arrays.items() if n in known.data_vars}
        return xr.Dataset(data, {n: v for n, v in arrays.items() if n not in known.data_vars})

    def check(self, slab: xr.Dataset, start: int, name: str) -> None:
        """Raise InputError where entries are infinite, or missing where they are not in the rest of the store."""
        for n, array in slab.data_vars.items():
            values = array.values.reshape(array.shape[0], -1)
            if values.dtype.kind not in "fc":
                continue
            wrong = np.isinf(values)
            if str(n) in self.land:
                wrong |= np.isnan(values) != self.land[str(n)].reshape(-1)
            if wrong.any():
                row, feature = np.argwhere(wrong)[0]
                place = np.unravel_index(feature, array.shape[1:])
                where = ", ".join(f"{d}={i}" for d, i in zip(array.dims[1:], place, strict=True))
                value = values[row, feature]
                told = f"is {value}" if not np.isfinite(value) else "has a value, where all samples before have none"
                way_out = "mend it, or allow it with missing='keep'" if np.isnan(value) else "mend it"
                raise InputError(f"{name}: {n} at sample {start + row}, {where} {told}: {way_out}")

    def feed(self, slab: xr.Dataset, digests: dict[str, Any]) -> None:
        """Add what a slab holds to a digest for each variable and label."""
        for n in sorted(map(str, slab.variables)):
            values = slab.variables[n].values
            if values.dtype == object:
                digests[n].update("\0".join(map(str, values.ravel())).encode() + b"\0")
            else:
                digests[n].update(np.ascontiguousarray(values).tobytes())

    def labels(self, slab: xr.Dataset) -> np.ndarray | None:
        """What the samples of a slab are called."""
        return slab[self.dim].values if self.dim in slab.coords else None

    def stored_labels(self, store: Store) -> np.ndarray | None:
        """What the samples of the store are called."""
        with xr.open_zarr(store, chunks=None) as ds:
            return ds[self.dim].values if self.dim in ds.coords else None

    def put(self, slab: xr.Dataset, folder: Path, first: bool) -> int:
        """Append a slab to the group in a folder; the number of its samples."""
        if first:
            features = {n: c.variable for n, c in self.template.coords.items() if self.dim not in c.dims}
            whole = slab.assign_coords(features).assign_attrs(self.template.attrs)
            encoding = {n: self._encoding(v) for n, v in whole.variables.items()}
            whole.to_zarr(folder, mode="a", zarr_format=3, consolidated=False, encoding=encoding)
        else:
            slab.to_zarr(folder, append_dim=self.dim, consolidated=False)
        return int(slab.sizes[self.dim])

    def _by_name(self, slab: xr.Dataset, name: str) -> xr.Dataset:
        """The slab with its features in the order of the store, where they have names."""
        known, dim = self.template, self.dim
        named = {d for d in known.dims if d != dim and d in known.coords}
        for d in [d for d in known.dims if d != dim]:
            if (d in named) != (d in slab.coords):
                who, other = (name, "the store") if d in named else ("the store", name)
                raise InputError(f"{who} does not name its {d}s, {other} does: they cannot be told apart")
        for d in named:
            if d not in slab.dims:
                raise InputError(f"{name} has no dim {d!r}: its dims are {', '.join(map(str, slab.sizes))}")
            have, want = slab[d].values, known[d].values
            if have.shape == want.shape and _equal(have, want):
                continue
            _same(set(have.tolist()), set(want.tolist()), str(d), name)
            if have.size != want.size:
                raise InputError(f"{name} has the same {d} more than once")
            slab = slab.isel({d: slab.get_index(d).get_indexer(pd.Index(want))})
        for n, coord in known.coords.items():
            if dim in coord.dims or n in named:
                continue
            if n not in slab.coords or not _equal(slab[n].transpose(*coord.dims).values, coord.values):
                raise InputError(f"{name}: the coordinate {n!r} of the features differs from that of the store")
        return slab

    def _encoding(self, variable: xr.Variable) -> dict[str, Any]:
        if self.dim not in variable.dims:
            return {}
        row = variable.dtype.itemsize * prod(variable.shape[1:])
        if variable.ndim == 1:
            chunks: tuple[int, ...] = (_LABELS,)
        else:
            height = self.chunk_rows or max(1, _CHUNK // max(row, 1))
            pieces = -(-row // _WIDEST)  # of a row that is very long, along its first dim
            chunks = (height, max(1, -(-variable.shape[1] // pieces)), *variable.shape[2:])
        if variable.dtype.kind in "mM":
            units = "nanoseconds since 1970-01-01" if variable.dtype.kind == "M" else "nanoseconds"
            return {"chunks": chunks, "units": units, "dtype": "int64"}
        if variable.dtype == object and hasattr(variable.values.flat[0], "calendar"):  # times of a model's own calendar
            return {"chunks": chunks, "units": "microseconds since 1970-01-01", "dtype": "int64"}
        return {"chunks": chunks}


def _land(first: xr.Dataset) -> dict[str, np.ndarray]:
    return {str(n): np.isnan(a.values[0]) for n, a in first.data_vars.items() if a.dtype.kind in "fc"}


def _attributes(found: Any) -> dict[str, Any]:
    """What is told of a variable, without what told how it was stored."""
    return {k: v for k, v in found.attrs.items() if k not in ("batches", "grid_mapping", "bounds", "coordinates")}


def _plain(values: np.ndarray) -> np.ndarray:
    """Texts of any length, times in nanoseconds, numbers in the byte order of this machine."""
    if values.dtype.kind in "UST":
        return values.astype(object)
    if values.dtype.kind in "mM":
        return values.astype(f"{values.dtype.kind}8[ns]")
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def _same(have: set[Any], want: set[Any], what: str, name: str) -> None:
    if have != want:
        lacking, more = sorted(map(str, want - have)), sorted(map(str, have - want))
        told = f"has no {what} {lacking[0]!r}" if lacking else f"has a {what} {more[0]!r}"
        other = "which the store has" if lacking else "which the store does not have"
        raise InputError(f"{name} {told}, {other}: ingest it to a store of its own")


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind == b.dtype.kind == "f":
        return bool(np.allclose(a, b, rtol=_CLOSE, atol=0, equal_nan=True))
    return bool(np.array_equal(a, b))


def _cast(values: np.ndarray, dtype: np.dtype[Any], name: str, rounded: bool) -> np.ndarray:
    """Values in the dtype of the store; raises InputError where something might be lost."""
    if values.dtype == dtype or dtype.kind in "OT":
        return values
    if values.dtype.kind == dtype.kind == "M" or castable(values.dtype, dtype, rounded):
        with np.errstate(over="ignore"):  # infinite entries are found when they are checked
            return values.astype(dtype)
    raise InputError(
        f"{name} holds {values.dtype}, the store {dtype}: convert it, or say dtype={dtype.name} to round it"
    )


def castable(have: np.dtype[Any], want: np.dtype[Any], rounded: bool) -> bool:
    """Whether numbers fit a dtype, rounded if need be."""
    return np.can_cast(have, want, "same_kind" if rounded and want.kind in "fc" else "safe")
