"""What users have as named arrays: of a store, a group, a Dataset, an AnnData object, a frame or one array."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
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
from pipeline.labels import Coord
from pipeline.sources.anndata import Part, StoredSparse, is_anndata, is_annotated, is_sparse, parts_held, parts_of
from pipeline.sources.dasked import is_dasked
from pipeline.sources.grid import Decoded
from pipeline.sources.sparse import Sparse
from pipeline.sources.trust import check_trusted
from pipeline.store.read import is_objects, open_store

__all__ = ["Field", "Names", "check_numeric", "fields_of", "unmasked"]

Names = str | Sequence[str]
_FOREIGN = ">" if sys.byteorder == "little" else "<"


@dataclass(frozen=True)
class Field:
    """One named array: its dims, its coordinates and what is selected along each dim."""

    array: Any
    dims: tuple[str, ...]
    coords: Mapping[str, Coord]
    attrs: Mapping[str, Any]
    name: str

    @property
    def sizes(self) -> dict[str, int]:
        """Of each dim, before anything is selected."""
        return dict(zip(self.dims, self.array.shape, strict=True))


def fields_of(source: Any, variable: Names | None) -> tuple[list[Field], str]:
    """The arrays of whatever `open_matrix` takes, but an operator, that are to be joined, and what it is called."""
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


def _stored(where: str | PathLike[str] | Store, variable: Names | None) -> tuple[list[Field], str]:
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


def _group_fields(group: zarr.Group, variable: Names | None, name: str) -> tuple[list[Field], str]:
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


def _anndata_field(part: Part, name: str) -> Field:
    """A matrix of an anndata group or object: its samples are called as in `obs`, its features as in `var`."""
    if is_sparse(part.node):
        field = _bare(StoredSparse.of(part.node, f"{name}/{part.name}"))
    else:
        field = _bare(part.node) if isinstance(part.node, zarr.Array) else fields_of(part.node, None)[0][0]
    field, array = replace(field, name=part.name), field.array
    if len(field.dims) != 2:
        return field
    coords = {}
    for dim, axis, names in (("sample", 0, part.samples), ("feature", 1, part.features)):
        if names is not None and len(names) == array.shape[axis]:
            coords[dim] = Coord((dim,), names, {})
    return replace(field, dims=("sample", "feature"), coords=coords)


def _sparse_field(source: Any) -> Field:
    """A sparse array in memory, of scipy or pydata; one of many dims is flattened later, sample dims first."""
    if len(source.shape) != 2:
        return replace(_bare(source), name="the sparse array")
    array = as_scipy(source) if hasattr(source, "to_scipy_sparse") else source
    check_numeric(array.dtype, "the sparse matrix")
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


def _labelled(array: xr.DataArray) -> Field:
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
    return Field(_known(data), tuple(map(str, array.dims)), coords, dict(array.attrs), name)


def _is_multi(index: Any) -> bool:
    return isinstance(index, xr.indexes.PandasMultiIndex)


def _bare(array: Any) -> Field:
    named = getattr(getattr(array, "metadata", None), "dimension_names", None)
    n_dims = len(array.shape)
    dims = ("sample", "feature") if n_dims == 2 else tuple(f"dim_{i}" for i in range(n_dims))
    if named and all(named) and len(set(named)) == len(named):
        dims = tuple(named)
    attrs = dict(array.attrs) if isinstance(array, zarr.Array) else {}
    return Field(array, dims, {}, attrs, getattr(array, "name", None) or "the array")


def _frame(frame: Any) -> Field:
    values = frame.to_numpy()
    names = np.asarray([str(c) for c in frame.columns])
    return Field(values, ("sample", "feature"), {"feature": Coord(("feature",), names, {})}, {}, "the DataFrame")


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


def check_numeric(dtype: Any, name: str) -> None:
    """Refuse what holds no numbers."""
    kind = np.dtype(dtype).kind
    if kind not in "biufc":
        raise InputError(f"{name} holds {dtype}, not numbers: choose a numeric variable or convert it first")


def _first_line(error: BaseException) -> str:
    if isinstance(error, PipelineError):
        return str(error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
