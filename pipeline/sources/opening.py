"""From named arrays to a `Source` with the labels of its samples and features: what is cut out, and how it is laid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import xarray as xr
import zarr

from pipeline.errors import InputError
from pipeline.kernels.sparse import as_scipy
from pipeline.labels import Coord, Labels
from pipeline.sources.anndata import StoredSparse
from pipeline.sources.dasked import Dasked, is_dasked
from pipeline.sources.fields import Field, Names, check_numeric, fields_of
from pipeline.sources.grid import Decoded, Grid
from pipeline.sources.joined import Joined
from pipeline.sources.operator import Operator, is_operator
from pipeline.sources.picked import Picked
from pipeline.sources.source import Source
from pipeline.sources.sparse import Sparse

__all__ = ["Opened", "open_source"]


@dataclass(frozen=True)
class Opened:
    """A source, what its two sides are called, and where it came from."""

    source: Source
    samples: Labels
    features: Labels
    name: str


def open_source(
    source: Any,
    variable: Names | None = None,
    sample_dims: Names | None = None,
    select: Mapping[str, Any] | None = None,
) -> Opened:
    """Open anything that `open_matrix` takes; see there."""
    if is_operator(source):
        if select or variable or sample_dims:
            raise InputError("an operator has no names, and cannot be cut: leave variable, sample_dims and select out")
        operator = Operator.of(source)
        check_numeric(operator.dtype, "the operator")
        return Opened(operator, *_plain(operator.shape), type(source).__name__)
    fields, name = fields_of(source, variable)
    dims = _sample_dims(fields[0], sample_dims)
    opened = []
    for f in fields:
        missing = [d for d in dims if d not in f.dims]
        if missing:
            raise InputError(f"{f.name} has no dim {missing[0]!r}: its dims are {', '.join(map(str, f.dims))}")
        opened.append(_open_field(f, dims, select or {}, name))
    return opened[0] if len(opened) == 1 else _join(opened, [f.name for f in fields], name)


def _plain(shape: Sequence[int]) -> tuple[Labels, Labels]:
    return Labels.plain("sample", shape[0]), Labels.plain("feature", shape[1])


def _sample_dims(field: Field, sample_dims: Names | None) -> tuple[str, ...]:
    if len(field.dims) < 2:
        raise InputError(
            f"{field.name} has {len(field.dims)} dim(s): a matrix needs samples and features, so at least two. "
            "Reshape your data, either with reshape(-1, 1) or reshape(1, -1)"
        )
    if sample_dims is None:
        return field.dims[:1]
    dims = (sample_dims,) if isinstance(sample_dims, str) else tuple(sample_dims)
    for dim in dims:
        if dim not in field.dims:
            raise InputError(f"{field.name} has no dim {dim!r}: its dims are {', '.join(field.dims)}")
    if not dims or len(set(dims)) < len(dims) or len(dims) == len(field.dims):
        raise InputError(f"sample_dims={dims}: name at least one of {', '.join(field.dims)}, each once, and leave one")
    return dims


def _open_field(field: Field, sample_dims: tuple[str, ...], select: Mapping[str, Any], name: str) -> Opened:
    array, dims = field.array, field.dims
    check_numeric(array.dtype, field.name)
    # anndata's own names of the two sides are understood too.
    select = {{"obs": "sample", "var": "feature"}.get(d, d) if d not in dims else d: i for d, i in select.items()}
    for dim in select:
        if dim not in dims:
            raise InputError(f"select: {field.name} has no dim {dim!r}: its dims are {', '.join(dims)}")
    index = tuple(_index(dim, n, select.get(dim), field.coords) for dim, n in field.sizes.items())
    features = tuple(d for d in dims if d not in sample_dims)
    axes = tuple(dims.index(d) for d in sample_dims), tuple(dims.index(d) for d in features)
    where = dict(zip(dims, index, strict=True))
    source: Source
    if hasattr(array, "to_scipy_sparse"):
        flat = array.transpose(axes[0] + axes[1]).reshape((prod(array.shape[a] for a in axes[0]), -1))
        if any(not isinstance(i, slice) or i != slice(0, n) for i, n in zip(index, array.shape, strict=True)):
            raise InputError(f"select: {field.name} is sparse and of several dims: select from it before it is opened")
        source = Sparse(as_scipy(flat))
    elif isinstance(array, Sparse | StoredSparse):
        source = _sparse_source(array, axes, index)
    elif is_dasked(array):
        taken = array
        for axis, i in enumerate(index):  # one axis at a time: Dask has no orthogonal indexing by several arrays
            if not isinstance(i, slice) or i != slice(0, array.shape[axis]):
                taken = taken[(slice(None),) * axis + (i,)]
        source = Dasked(taken, axes)
    else:
        source = Grid(array, axes, index, _stored_chunks(array))
    rows, cols = (_side_labels(field, side, where) for side in (sample_dims, features))
    return Opened(source, rows, cols, name)


def _sparse_source(
    array: Sparse | StoredSparse, axes: tuple[tuple[int, ...], tuple[int, ...]], index: tuple[Any, ...]
) -> Source:
    base = array if axes == ((0,), (1,)) else array.T
    rows, cols = index[axes[0][0]], index[axes[1][0]]
    if all(isinstance(i, slice) and i == slice(0, n) for i, n in zip((rows, cols), base.shape, strict=True)):
        return base
    return Picked(base, (rows, cols))


def _stored_chunks(array: Any) -> tuple[int, ...]:
    array = array.stored if isinstance(array, Decoded) else array
    if isinstance(array, zarr.Array):
        return tuple(array.shards or array.chunks)
    preferred = getattr(array, "encoding", {}).get("preferred_chunks", {})
    dims = getattr(array, "dims", (None,) * len(array.shape))
    return tuple(max(1, preferred.get(d, 1)) for d in dims)  # 1: not in chunks


def _side_labels(field: Field, dims: Sequence[str], where: Mapping[str, Any]) -> Labels:
    coords = {
        name: Coord(c.dims, _orthogonal(c.values, [where[d] for d in c.dims]), c.attrs)
        for name, c in field.coords.items()
        if c.dims and set(c.dims) <= set(dims)
    }
    sizes = tuple(w.stop - w.start if isinstance(w, slice) else len(w) for w in (where[d] for d in dims))
    return Labels(tuple(dims), sizes, coords, {**field.attrs, "name": field.name})


def _orthogonal(values: np.ndarray, where: Sequence[Any]) -> np.ndarray:
    for axis, w in enumerate(where):
        values = values[(slice(None),) * axis + (w,)]
    return values


def _index(dim: str, size: int, wanted: Any, coords: Mapping[str, Coord]) -> slice | np.ndarray:
    """What is selected along one dim, as a plain slice or increasing or other positions."""
    if wanted is None:
        return slice(0, size)
    if isinstance(wanted, slice):
        if all(isinstance(v, int | np.integer | None) for v in (wanted.start, wanted.stop, wanted.step)):
            positions = range(*wanted.indices(size))
            if positions.step == 1:
                return slice(positions.start, max(positions.start, positions.stop))
            return np.arange(positions.start, positions.stop, positions.step)
        found = _by_label(dim, wanted, coords)
        if isinstance(found, np.ndarray):
            return found
        return slice(int(found.start or 0), size if found.stop is None else int(found.stop))
    at = np.atleast_1d(np.asarray(wanted))
    if at.dtype == bool:
        if at.shape != (size,):
            raise InputError(f"select: the mask for {dim!r} has shape {at.shape}, the dim has {size} positions")
        if not at.any():
            raise InputError(f"select: the mask for {dim!r} is False everywhere: nothing is left")
        return np.flatnonzero(at)
    if at.dtype.kind not in "iu":
        raise InputError(f"select: {dim!r} takes a slice, positions or a boolean mask, not {at.dtype}")
    if at.size and (at.min() < -size or at.max() >= size):
        raise InputError(f"select: position {at[np.argmax(np.abs(at))]} of {dim!r} is outside its {size} positions")
    return np.where(at < 0, at + size, at)


def _by_label(dim: str, wanted: slice, coords: Mapping[str, Coord]) -> Any:
    if dim not in coords:
        raise InputError(
            f"select: {dim!r} has no coordinate, so it takes positions, not {wanted.start!r} to {wanted.stop!r}"
        )
    try:
        return (
            xr.DataArray(coords[dim].values, dims=dim).to_index().slice_indexer(wanted.start, wanted.stop, wanted.step)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"select: {wanted.start!r} to {wanted.stop!r} cannot be found along {dim!r}: {error}"
        ) from error


def _join(opened: list[Opened], names: list[str], name: str) -> Opened:
    first = opened[0]
    for other, other_name in zip(opened[1:], names[1:], strict=True):
        if other.samples.dims != first.samples.dims or other.samples.sizes != first.samples.sizes:
            raise InputError(
                f"{other_name} has other samples than {names[0]}: {other.samples.sizes}, {first.samples.sizes}"
            )
    parts: list[Source] = [o.source for o in opened]
    lead = next((p for p in parts if isinstance(p, Dasked)), None)
    if lead is not None:  # chunks of Dask arrays are taken whole, so all must be cut alike along the samples
        chunks = {a: lead.array.chunks[b] for a, b in zip(lead.axes[0], lead.axes[0], strict=True)}
        parts = [
            replace(p, array=p.array.rechunk(dict(zip(p.axes[0], chunks.values(), strict=True))))
            if isinstance(p, Dasked)
            else p
            for p in parts
        ]
    return Opened(Joined(tuple(parts)), first.samples, _joined_labels([o.features for o in opened], names), name)


def _joined_labels(parts: list[Labels], names: list[str]) -> Labels:
    variables = np.asarray(names)
    if all(p.equals(parts[0]) for p in parts[1:]) and "variable" not in parts[0].dims:
        coords = {"variable": Coord(("variable",), variables, {}), **parts[0].coords}
        return Labels(("variable", *parts[0].dims), (len(parts), *parts[0].sizes), coords)
    flat = [p.flattened("feature") for p in parts]
    shared = set.intersection(*(set(f.coords) for f in flat))
    coords = {
        n: Coord(("feature",), np.concatenate([f.coords[n].values for f in flat]), flat[0].coords[n].attrs)
        for n in flat[0].coords
        if n in shared
    }
    coords["variable"] = Coord(("feature",), np.repeat(variables, [p.size for p in parts]), {})
    return Labels(("feature",), (sum(p.size for p in parts),), coords)
