"""Files as streams of slabs of samples; each format is read by the library that knows it.

A dense slab is a loaded Dataset whose variables begin with the dim of the samples, a sparse one `SparseRows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr

from pipeline.errors import InputError, PipelineError
from pipeline.kernels.sparse import as_compressed
from pipeline.sources.trust import check_trusted

__all__ = ["FORMATS", "Reading", "Slab", "SparseRows", "slabs", "suffix_of"]

_NUMERIC = "biufc"


@dataclass(frozen=True)
class Reading:
    """Which part of a file is meant, and how much of it is read at a time."""

    variable: str | Sequence[str] | None = None
    """Variables of a Dataset, a dataset of an HDF5 file, a matrix of anndata, columns of a table."""
    sample_dim: str | None = None
    labels: str | None = None
    """The column of a table that names its samples."""
    nbytes: int = 64 << 20

    @property
    def names(self) -> list[str]:
        """The variables that are asked for."""
        return [self.variable] if isinstance(self.variable, str) else list(self.variable or [])

    def step(self, row: int) -> int:
        """How many rows of so many bytes are read at a time."""
        return max(1, self.nbytes // max(row, 1))


@dataclass(frozen=True)
class SparseRows:
    """Rows of a sparse matrix (scipy CSR), and the names of its rows and columns where there are any."""

    rows: Any
    samples: np.ndarray | None
    features: np.ndarray | None


Slab = xr.Dataset | SparseRows


def slabs(path: Path, how: Reading) -> Iterator[Slab]:
    """The samples of a file, slab by slab; raises InputError where it cannot be read or holds none."""
    reader = FORMATS.get(suffix_of(path))
    if reader is None:
        raise InputError(f"{path}: {path.suffix or 'no suffix'} is none of the known formats {', '.join(FORMATS)}")
    empty = True
    try:
        for slab in reader(path, how):
            empty = False
            yield slab
    except PipelineError:
        raise
    except ImportError as error:
        raise InputError(
            f"{path} needs a library that is missing ({error}): pip install 'subspace-pipeline[ingest]'"
        ) from error
    except Exception as error:  # bytes of unknown origin: a reader may raise anything
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path} cannot be read as {suffix_of(path)} ({why}): is it complete?") from error
    if empty:
        raise InputError(f"{path} holds no samples")


def suffix_of(path: Path) -> str:
    """What tells the format, with the compression where there is one.

    >>> suffix_of(Path("a.b.CSV.gz")), suffix_of(Path("x.nc"))
    ('.csv.gz', '.nc')
    """
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() + last if last in (".gz", ".bz2", ".xz", ".zst") else last


def _netcdf(path: Path, how: Reading) -> Iterator[xr.Dataset]:
    with xr.open_dataset(path, chunks=None, cache=False) as ds:
        yield from _cut(ds, how, str(path))


def _hdf5(path: Path, how: Reading) -> Iterator[Slab]:
    import h5py

    with h5py.File(path, "r") as file:
        if file.attrs.get("encoding-type") == "anndata":
            yield from _anndata_rows(file, how, str(path))
            return
        found: dict[str, Any] = {}
        file.visititems(lambda name, node: found.update({name: node}) if isinstance(node, h5py.Dataset) else None)
        if not any("DIMENSION_LIST" in node.attrs for node in found.values()):
            name = _the_one({n: (a.dtype, a.ndim) for n, a in found.items()}, how, str(path))
            yield from _array(found[name], name.rpartition("/")[2], how, str(path))
            return
    with xr.open_dataset(path, engine="h5netcdf", chunks=None, cache=False) as ds:
        yield from _cut(ds, how, str(path))


def _zarr(path: Path, how: Reading) -> Iterator[Slab]:
    node = zarr.open(path, mode="r")
    check_trusted(node, str(path))
    if isinstance(node, zarr.Array):
        yield from _array(node, _only(how, path), how, str(path))
    elif node.attrs.get("encoding-type") == "anndata":
        yield from _anndata_rows(node, how, str(path))
    else:
        consolidated = node.metadata.consolidated_metadata is not None
        with xr.open_zarr(path, chunks=None, consolidated=consolidated) as ds:
            yield from _cut(ds, how, str(path))


def _npy(path: Path, how: Reading) -> Iterator[xr.Dataset]:
    yield from _array(np.load(path, mmap_mode="r", allow_pickle=False), _only(how, path), how, str(path))


def _h5ad(path: Path, how: Reading) -> Iterator[Slab]:
    import h5py

    with h5py.File(path, "r") as file:
        yield from _anndata_rows(file, how, str(path))


def _csv(path: Path, how: Reading) -> Iterator[xr.Dataset]:
    separator = "\t" if suffix_of(path).startswith(".tsv") else ","
    columns = pd.read_csv(path, sep=separator, nrows=0).columns
    if all(_is_number(c) for c in columns):
        raise InputError(f"{path} has no header: its first line must name the columns")
    for frame in pd.read_csv(path, sep=separator, chunksize=how.step(8 * len(columns))):
        if len(frame):  # a header alone says nothing of dtypes
            yield _table(frame, how, str(path), np.float64)


def _parquet(path: Path, how: Reading) -> Iterator[xr.Dataset]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=how.step(8 * len(file.schema_arrow.names))):
            frame = batch.to_pandas()
            own = {c.dtype for _, c in frame.items() if isinstance(c.dtype, np.dtype)}
            floats = len(own) == 1 and next(iter(own)).kind == "f"
            yield _table(frame, how, str(path), next(iter(own)) if floats else np.float64)


FORMATS: dict[str, Callable[[Path, Reading], Iterator[Any]]] = {
    ".nc": _netcdf,
    ".nc4": _netcdf,
    ".cdf": _netcdf,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".h5ad": _h5ad,
    ".zarr": _zarr,
    ".npy": _npy,
    ".parquet": _parquet,
    ".pq": _parquet,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".tsv": _csv,
    ".tsv.gz": _csv,
}


def _cut(ds: xr.Dataset, how: Reading, name: str) -> Iterator[xr.Dataset]:
    """The variables that are meant, samples first, slab by slab."""
    bounds = {str(v.attrs.get("bounds", v.encoding.get("bounds"))) for v in ds.variables.values()}
    known = {str(n): a for n, a in ds.data_vars.items() if str(n) not in bounds}
    wanted = how.names or [n for n, a in known.items() if a.dtype.kind in _NUMERIC and a.ndim >= 2]
    for w in wanted:
        if w not in ds.data_vars:
            raise InputError(f"{name} has no variable {w!r}: it has {', '.join(known)}")
    if not wanted:
        raise InputError(f"{name} has no numeric variable of two dims: it has {', '.join(known) or 'none at all'}")
    dim = how.sample_dim or str(ds[wanted[0]].dims[0])
    if not how.names:
        wanted = [w for w in wanted if dim in ds[w].dims]
    for w in wanted or [*known][:1]:
        if dim not in ds[w].dims:
            raise InputError(f"{name}: {w} has no dim {dim!r}: its dims are {', '.join(map(str, ds[w].dims))}")
        if ds[w].dtype.kind not in _NUMERIC or ds[w].ndim < 2:
            raise InputError(f"{name}: {w} holds {ds[w].dtype} of {ds[w].ndim} dim(s): choose a numeric one of two")
    chosen = ds[wanted].reset_coords([c for c in ds.coords if not ds[c].dims], drop=True).transpose(dim, ...)
    row = sum(v.nbytes for v in chosen.data_vars.values()) // max(chosen.sizes[dim], 1)
    for start in range(0, chosen.sizes[dim], how.step(row)):
        yield chosen.isel({dim: slice(start, start + how.step(row))}).load()


def _array(array: Any, variable: str, how: Reading, name: str) -> Iterator[xr.Dataset]:
    """A bare array: its dims are called as `open_matrix` calls them."""
    dims = ("sample", "feature") if array.ndim == 2 else tuple(f"dim_{i}" for i in range(array.ndim))
    stored = getattr(getattr(array, "metadata", None), "dimension_names", None)
    dims = tuple(stored) if stored and all(stored) else dims
    if array.ndim < 2 or array.dtype.kind not in _NUMERIC:
        raise InputError(f"{name} holds {array.dtype} of {array.ndim} dim(s): numbers of at least two dims are needed")
    if how.sample_dim is not None and how.sample_dim not in dims:
        raise InputError(f"{name} has no dim {how.sample_dim!r}: its dims are {', '.join(dims)}")
    axis = dims.index(how.sample_dim) if how.sample_dim else 0
    step = how.step(array.dtype.itemsize * prod(array.shape) // max(array.shape[axis], 1))
    for start in range(0, array.shape[axis], step):
        part = np.asarray(array[(slice(None),) * axis + (slice(start, start + step),)])
        yield xr.Dataset({variable: (dims, part)}).transpose(dims[axis], ...)


def _table(frame: pd.DataFrame, how: Reading, name: str, dtype: Any) -> xr.Dataset:
    """Rows of a table: columns are features."""
    for column in [*([how.labels] if how.labels else []), *how.names]:
        if column not in frame.columns and column != frame.index.name:
            raise InputError(f"{name} has no column {column!r}: it has {', '.join(map(str, frame.columns[:9]))}")
    if how.labels and how.labels != frame.index.name:
        frame = frame.set_index(how.labels)
    frame = frame[how.names] if how.names else frame
    for heading, values in frame.items():
        if not pd.api.types.is_numeric_dtype(values):
            raise InputError(
                f"{name}: column {heading!r} holds {values.dtype}, not numbers: name the columns to take (variable), "
                "or the one that labels the samples (labels)"
            )
    dim = how.sample_dim or "sample"
    coords: dict[str, Any] = {"feature": np.asarray([str(c) for c in frame.columns], object)}
    if how.labels or not isinstance(frame.index, pd.RangeIndex):
        coords[dim] = np.asarray(frame.index)
    return xr.Dataset({"data": ((dim, "feature"), frame.to_numpy(dtype, na_value=np.nan))}, coords)


def _anndata_rows(group: Any, how: Reading, name: str) -> Iterator[Slab]:
    """A matrix of anndata, in HDF5 or Zarr: X, or what `variable` names."""
    from anndata.io import read_elem, sparse_dataset

    if len(how.names) > 1:
        raise InputError(f"{name}: one matrix of anndata at a time, not {', '.join(how.names)}")
    path = (how.names or ["X"])[0].strip("/")
    path = "raw/X" if path == "raw" else path
    if path not in group:
        known = [k for k in ("X", "raw/X") if k in group] + [
            f"{place}/{key}" for place in ("layers", "obsm") for key in sorted(group.get(place) or ())
        ]
        raise InputError(f"{name} has no matrix {path!r}: it has {', '.join(known)}")
    node, frame = group[path], "raw/var" if path.startswith("raw/") else "var"
    samples = _texts(read_elem(group["obs"]).index) if "obs" in group else None
    named = frame in group and not path.startswith("obsm/")
    features = _texts(read_elem(group[frame]).index) if named else None
    if hasattr(node, "shape"):
        start = 0
        for slab in _array(node, path.rpartition("/")[2], Reading(nbytes=how.nbytes), name):
            stop = start + slab.sizes["sample"]
            names = {"sample": samples if samples is None else samples[start:stop], "feature": features}
            yield slab.assign_coords({dim: n for dim, n in names.items() if n is not None})
            start = stop
        return
    matrix = sparse_dataset(node)
    if matrix.format != "csr":
        matrix = matrix.to_memory().tocsr()
    step = how.step(16 * node["data"].shape[0] // max(matrix.shape[0], 1))
    for start in range(0, matrix.shape[0], step):
        part = as_compressed(matrix[start : start + step])
        yield SparseRows(part, None if samples is None else samples[start : start + step], features)


def _texts(names: Any) -> np.ndarray:
    return np.asarray([str(n) for n in names], object)


def _the_one(known: dict[str, tuple[Any, int]], how: Reading, name: str) -> str:
    """The dataset of an HDF5 file that is meant."""
    usable = [n for n, (dtype, ndim) in known.items() if dtype.kind in _NUMERIC and ndim >= 2]
    wanted = [w.strip("/") for w in how.names] or usable
    if len(wanted) != 1 or wanted[0] not in known:
        raise InputError(f"{name} holds {', '.join(known) or 'no dataset'}: name one of two dims or more as variable")
    return wanted[0]


def _only(how: Reading, path: Path) -> str:
    """The name of an array that has none of its own."""
    if how.names:
        raise InputError(f"variable={how.variable!r}: {path} is one array, not several")
    return "data"


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
