"""From whatever users have to a `Source` with the labels of its samples and features."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast

import numpy as np
import scipy.sparse
import xarray as xr
import zarr
from dask.system import CPU_COUNT
from zarr.abc.store import Store

from pipeline.errors import InputError, PipelineError, StoreError
from pipeline.kernels.sparse import as_scipy
from pipeline.labels import Coord, Labels
from pipeline.sources.anndata import Part, StoredSparse, is_anndata, is_annotated, is_sparse, parts_held, parts_of
from pipeline.sources.dasked import Dasked, is_dasked
from pipeline.sources.grid import Decoded, Grid
from pipeline.sources.joined import Joined
from pipeline.sources.operator import Operator, is_operator
from pipeline.sources.picked import Picked
from pipeline.sources.source import Source
from pipeline.sources.sparse import Sparse
from pipeline.sources.trust import check_trusted
from pipeline.store.read import is_objects, open_store

__all__ = ["Opened", "open_source", "unmasked"]

Names = str | Sequence[str]
_FOREIGN = ">" if sys.byteorder == "little" else "<"


@dataclass(frozen=True)
class Opened:
    """A source, what its two sides are called, and where it came from."""

    source: Source
    samples: Labels
    features: Labels
    name: str


@dataclass(frozen=True)
class _Field:
    """One named array: its dims, its coordinates and what is selected along each dim."""

    array: Any
    dims: tuple[str, ...]
    coords: Mapping[str, Coord]
    attrs: Mapping[str, Any]
    name: str

    @property
    def sizes(self) -> dict[str, int]:
        return dict(zip(self.dims, self.array.shape, strict=True))


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
        _check_numeric(operator.dtype, "the operator")
        return Opened(operator, *_plain(operator.shape), type(source).__name__)
    fields, name = _fields(source, variable)
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


def _fields(source: Any, variable: Names | None) -> tuple[list[_Field], str]:
    if isinstance(source, str | PathLike | Store):
        return _stored(source, variable)
    if isinstance(source, zarr.Group | zarr.Array):
        check_trusted(source, str(source.store_path))
    if isinstance(source, zarr.Group):
        return _group_fields(source, variable, f"zarr group {source.store_path}")
    if isinstance(source, xr.Dataset):
        return [_labelled(a) for a in _chosen(source, variable, several=True)], "xarray Dataset"
    if is_annotated(source):
        return [_anndata_field(part, "AnnData object") for part in parts_held(source, variable)], "AnnData object"
    if variable is not None:
        raise InputError(
            f"variable={variable!r}: a {type(source).__name__} has no variables; open a group or a Dataset"
        )
    if isinstance(source, xr.DataArray):
        return [_labelled(source)], str(source.name or "xarray DataArray")
    if isinstance(source, zarr.Array):
        return [_bare(source)], f"zarr array {source.store_path}"
    if scipy.sparse.issparse(source) or hasattr(source, "to_scipy_sparse"):
        return [_sparse_field(source)], "scipy.sparse" if scipy.sparse.issparse(source) else "sparse array"
    if is_dasked(source):
        return [_bare(_known(source))], "dask array"
    if hasattr(source, "columns") and hasattr(source, "to_numpy"):
        return [_frame(source)], type(source).__name__
    array = unmasked(source) if isinstance(source, np.ndarray) else np.asarray(source)
    return [_bare(array)], "NumPy array" if isinstance(source, np.ndarray) else type(source).__name__


def _stored(where: str | PathLike[str] | Store, variable: Names | None) -> tuple[list[_Field], str]:
    name = str(where) if isinstance(where, Store) else fspath(where)
    local = not isinstance(where, Store) and "://" not in name
    if local and not Path(name).exists():
        raise InputError(f"{name} does not exist")
    # Workers may have another current directory, where chunks that are not there would be empty ones.
    where = Path(name).absolute() if local else where
    if is_objects(where):
        where = open_store(name)
    # A store that the user made is read through its own methods; zarrs goes to the files.
    settings = {} if isinstance(where, Store) else _decoder()
    node = _node(where, name, settings)
    check_trusted(node, name)
    if settings and _is_foreign(node):
        settings = {}
        node = _node(where, name, settings)
    with zarr.config.set(settings):
        if isinstance(node, zarr.Group):
            return _group_fields(node, variable, name)
    if variable is not None:
        raise InputError(f"variable={variable!r}: {name} is an array, not a group")
    return [replace(_bare(node), name=name)], name


def _node(where: str | PathLike[str] | Store, name: str, settings: dict[str, Any]) -> zarr.Array[Any] | zarr.Group:
    with zarr.config.set(settings):
        try:
            # Nothing is written; but "r" would put a copy in the place of a writable store that the user made.
            return zarr.open(where, mode="r+" if isinstance(where, Store) and not where.read_only else "r")
        except Exception as error:
            raise StoreError(f"{name} is not a Zarr array or group that can be read ({_first_line(error)})") from error


def _is_foreign(node: zarr.Array[Any] | zarr.Group) -> bool:
    """Whether entries are in the byte order of other machines, which zarrs does not know."""
    with suppress(Exception):  # what is damaged is named where it is asked for
        arrays = [array for _, array in node.arrays()] if isinstance(node, zarr.Group) else [node]
        return any(np.dtype(array.dtype).byteorder == _FOREIGN for array in arrays)
    return False


def _decoder() -> dict[str, Any]:
    """Zarr's settings for arrays that are opened here: the `zarrs` codecs where they are installed.

    An array keeps its decoder when it goes to a worker. All tasks decode in the threads of that one decoder: fewer of
    them than there are processors, and tasks wait for each other.
    """
    if find_spec("zarrs") is None:
        return {}
    return {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": CPU_COUNT}


def _group_fields(group: zarr.Group, variable: Names | None, name: str) -> tuple[list[_Field], str]:
    if is_sparse(group):
        if variable is not None:
            raise InputError(f"variable={variable!r}: {name} is a sparse matrix, not a group of several")
        return [replace(_bare(StoredSparse.of(group, name)), name=name)], name
    if is_anndata(group):
        return [_anndata_field(part, name) for part in parts_of(group, variable, name)], name
    wanted = [variable] if isinstance(variable, str) else list(variable or [])
    nodes = [group.get(w) for w in wanted]
    if wanted and all(map(is_sparse, nodes)):
        return [
            replace(_bare(StoredSparse.of(node, f"{name}/{w}")), name=w) for w, node in zip(wanted, nodes, strict=True)
        ], name
    try:
        ds = xr.open_zarr(
            group.store,
            group=group.path or None,
            chunks=None,
            consolidated=group.metadata.consolidated_metadata is not None,
        )
    except Exception as error:
        arrays = dict(group.arrays())
        if not arrays:
            raise StoreError(f"{name} holds no arrays that can be read ({_first_line(error)})") from error
        wanted = [variable] if isinstance(variable, str) else list(variable or arrays)
        _check_known(wanted, list(arrays), name)
        _check_one(wanted, variable, name)
        return [replace(_bare(arrays[w]), name=w) for w in wanted], name
    fields = []
    for array in _chosen(ds, variable, several=False, name=name):
        field = _labelled(array)
        # Packed data must be decoded by xarray; everything else is read straight through Zarr.
        stored = cast(zarr.Array[Any], group[str(array.name)])
        field = replace(field, array=Decoded(field.array, stored) if _packed(array.encoding) else stored)
        fields.append(field)
    return fields, name


def _anndata_field(part: Part, name: str) -> _Field:
    """A matrix of an anndata group or object: its samples are called as in `obs`, its features as in `var`."""
    if is_sparse(part.node):
        field = _bare(StoredSparse.of(part.node, f"{name}/{part.name}"))
    else:
        field = _bare(part.node) if isinstance(part.node, zarr.Array) else _fields(part.node, None)[0][0]
    field, array = replace(field, name=part.name), field.array
    if len(field.dims) != 2:
        return field
    coords = {}
    for dim, axis, names in (("sample", 0, part.samples), ("feature", 1, part.features)):
        if names is not None and len(names) == array.shape[axis]:
            coords[dim] = Coord((dim,), names, {})
    return replace(field, dims=("sample", "feature"), coords=coords)


def _sparse_field(source: Any) -> _Field:
    """A sparse array in memory, of scipy or pydata; one of many dims is flattened later, sample dims first."""
    if len(source.shape) != 2:
        return replace(_bare(source), name="the sparse array")
    array = as_scipy(source) if hasattr(source, "to_scipy_sparse") else source
    _check_numeric(array.dtype, "the sparse matrix")
    return replace(_bare(Sparse(array)), name="the sparse matrix")


def _packed(encoding: Mapping[Hashable, Any]) -> bool:
    if any(key in encoding for key in ("scale_factor", "add_offset", "_Unsigned", "units", "calendar")):
        return True
    fills = [encoding[key] for key in ("_FillValue", "missing_value") if encoding.get(key) is not None]
    return any(not np.all(np.isnan(np.asarray(f, dtype=np.float64))) for f in fills)


def _chosen(ds: xr.Dataset, variable: Names | None, *, several: bool, name: str = "the Dataset") -> list[xr.DataArray]:
    known = [str(v) for v in ds.data_vars]
    if not known:
        raise InputError(f"{name} holds no data variables")
    wanted = known if variable is None else [variable] if isinstance(variable, str) else list(variable)
    _check_known(wanted, known, name)
    if not several:
        _check_one(wanted, variable, name)
    return [ds[w] for w in wanted]


def _check_known(wanted: Sequence[str], known: Sequence[str], name: str) -> None:
    for w in wanted:
        if w not in known:
            raise InputError(f"{name} has no variable {w!r}: it has {', '.join(known)}")


def _check_one(wanted: Sequence[str], variable: Names | None, name: str) -> None:
    if variable is None and len(wanted) > 1:
        raise InputError(
            f"{name} is a group of {len(wanted)} arrays: name one or more as variable ({', '.join(wanted)})"
        )


def _labelled(array: xr.DataArray) -> _Field:
    coords = {
        str(n): Coord(tuple(map(str, c.dims)), c.values, dict(c.attrs))
        for n, c in array.reset_index([n for n, i in array.xindexes.items() if _is_multi(i)]).coords.items()
    }
    data = array.variable._data if isinstance(array.variable._data, np.ndarray) else array.variable
    if hasattr(array.variable._data, "to_scipy_sparse"):
        data = _sparse_field(array.variable._data).array
    if isinstance(array.chunks, tuple):
        data = array.data
    name = str(array.name or "data")
    return _Field(_known(data), tuple(map(str, array.dims)), coords, dict(array.attrs), name)


def _is_multi(index: Any) -> bool:
    return isinstance(index, xr.indexes.PandasMultiIndex)


def _bare(array: Any) -> _Field:
    named = getattr(getattr(array, "metadata", None), "dimension_names", None)
    n_dims = len(array.shape)
    dims = ("sample", "feature") if n_dims == 2 else tuple(f"dim_{i}" for i in range(n_dims))
    if named and all(named) and len(set(named)) == len(named):
        dims = tuple(named)
    attrs = dict(array.attrs) if isinstance(array, zarr.Array) else {}
    return _Field(array, dims, {}, attrs, getattr(array, "name", None) or "the array")


def _frame(frame: Any) -> _Field:
    values = frame.to_numpy()
    names = np.asarray([str(c) for c in frame.columns])
    return _Field(values, ("sample", "feature"), {"feature": Coord(("feature",), names, {})}, {}, "the DataFrame")


def unmasked(array: Any) -> Any:
    """Masked entries of a NumPy masked array as NaN; everything else as it is."""
    if not isinstance(array, np.ma.MaskedArray):
        return array
    return np.ma.filled(array.astype(array.dtype if array.dtype.kind in "fc" else np.float64), np.nan)


def _known(array: Any) -> Any:
    """A Dask array with known chunk sizes; finding them out computes what the array is made from."""
    if is_dasked(array) and any(np.isnan(n) for n in array.shape):
        return array.copy().compute_chunk_sizes()
    return array


def _sample_dims(field: _Field, sample_dims: Names | None) -> tuple[str, ...]:
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


def _open_field(field: _Field, sample_dims: tuple[str, ...], select: Mapping[str, Any], name: str) -> Opened:
    array, dims = field.array, field.dims
    _check_numeric(array.dtype, field.name)
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


def _side_labels(field: _Field, dims: Sequence[str], where: Mapping[str, Any]) -> Labels:
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


def _check_numeric(dtype: Any, name: str) -> None:
    kind = np.dtype(dtype).kind
    if kind not in "biufc":
        raise InputError(f"{name} holds {dtype}, not numbers: choose a numeric variable or convert it first")


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


def _first_line(error: BaseException) -> str:
    if isinstance(error, PipelineError):
        return str(error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
