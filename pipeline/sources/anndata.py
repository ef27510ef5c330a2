"""`StoredSparse`: a sparse matrix stored in Zarr as anndata does, and where anndata keeps what belongs to it.

A group with the arrays `data`, `indices` and `indptr` and the attributes `encoding-type` (`csr_matrix` or
`csc_matrix`) and `shape`. A block of the side that it is compressed along (rows of CSR, columns of CSC) is one stretch
of `data` and `indices`, and nothing else is read. Blocks of the other side are picked out of the whole, stretch by
stretch: `touched` says so, so that plans choose the walk that reads less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import zarr

from pipeline.errors import InputError, StoreError
from pipeline.kernels.sparse import as_compressed
from pipeline.sources.source import COLUMNS, ROWS, Range, Source, joined_cuts
from pipeline.sources.sparse import Compressed, apart

__all__ = ["Part", "StoredSparse", "is_anndata", "is_annotated", "is_sparse", "parts_held", "parts_of"]

_FORMATS = {"csr_matrix": "csr", "csc_matrix": "csc", "csr_array": "csr", "csc_array": "csc"}
_STRETCH = 4 << 20  # entries that are searched at a time, where a block is picked out of the whole
_PICKED = 256 << 20  # bytes of a block that is picked out of the whole: few large ones, as each costs a pass


def is_sparse(node: Any) -> bool:
    """Whether a Zarr node is a group that holds a sparse matrix."""
    return isinstance(node, zarr.Group) and node.attrs.get("encoding-type") in _FORMATS


def is_anndata(node: Any) -> bool:
    """Whether a Zarr node is a whole anndata group: a matrix X, and what its rows and columns are."""
    return isinstance(node, zarr.Group) and (
        node.attrs.get("encoding-type") in ("anndata", "raw") or {"X", "obs", "var"} <= set(node)
    )


def is_annotated(source: Any) -> bool:
    """Whether this is an AnnData object in memory; the library itself is not needed to know it."""
    return hasattr(source, "obs_names") and hasattr(source, "layers")


class Part(NamedTuple):
    """One matrix of an anndata group or object, and the names of its rows and columns where there are any."""

    name: str
    node: Any
    samples: np.ndarray | None
    features: np.ndarray | None


def parts_of(group: Any, variable: str | Sequence[str] | None, name: str) -> list[Part]:
    """The matrices of an anndata group that `variable` names: `X` by default, `raw`, 'layers/counts', 'obsm/X_pca'.

    Raises InputError when there is no such matrix.
    """
    samples, parts = _index_names(group.get("obs")), []
    for path in _paths(variable):
        node = group.get(path)
        if not (is_sparse(node) or isinstance(node, zarr.Array)):
            known = [k for k in ("X", "raw/X") if k in group] + [
                f"{place}/{key}" for place in ("layers", "obsm") for key in sorted(group.get(place, ()))
            ]
            raise InputError(f"{name} has no matrix {path!r}: it has {', '.join(known)}")
        frame = _frame(path)
        parts.append(Part(path, node, samples, None if frame is None else _index_names(group.get(frame))))
    return parts


def parts_held(cells: Any, variable: str | Sequence[str] | None) -> list[Part]:
    """The same of an AnnData object in memory."""
    samples, parts = np.asarray(cells.obs_names, str), []
    frames: dict[str | None, Any] = {"var": cells, "raw/var": cells.raw, None: None}
    for path in _paths(variable):
        matrix = _held(cells, path)
        if matrix is None:
            known = ["X", *(["raw/X"] if cells.raw is not None else [])] + [
                f"{place}/{key}" for place in ("layers", "obsm") for key in sorted(getattr(cells, place))
            ]
            raise InputError(f"the AnnData object has no matrix {path!r}: it has {', '.join(known)}")
        of = frames[_frame(path)]
        parts.append(Part(path, matrix, samples, None if of is None else np.asarray(of.var_names, str)))
    return parts


def _held(cells: Any, path: str) -> Any:
    """The one matrix of an AnnData object that a path names, if there is one: a view of it copies what is asked for."""
    if path in ("X", "raw/X"):
        of = cells if path == "X" else cells.raw
        return None if of is None else of.X
    place, _, key = path.partition("/")
    return getattr(cells, place).get(key) if place in ("layers", "obsm") else None


def _frame(path: str) -> str | None:
    """The data frame whose index names the columns of a matrix; none does for embeddings."""
    if path.startswith("obsm/"):
        return None
    return "raw/var" if path.startswith("raw/") else "var"


def _paths(variable: str | Sequence[str] | None) -> list[str]:
    wanted = [variable or "X"] if isinstance(variable, str | None) else variable
    return ["raw/X" if path == "raw" else path.strip("/") for path in wanted]


def _index_names(frame: Any) -> np.ndarray | None:
    """The index of a stored data frame (`obs`, `var`) as strings; None where there is none."""
    if not isinstance(frame, zarr.Group):
        return None
    key = str(frame.attrs.get("_index", "_index"))
    if key not in frame:
        return None
    node: Any = frame[key]
    if isinstance(node, zarr.Group):  # categorical, or strings with a mask
        codes: Any = node.get("codes")
        categories: Any = node.get("categories")
        if codes is not None and categories is not None:
            return np.asarray(categories[...]).astype(str)[np.asarray(codes[...])]
        node = node["values"]
    return np.asarray([v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(node[...]).tolist()])


@dataclass(frozen=True)
class StoredSparse(Compressed):
    """Entries of a sparse matrix in Zarr.

    Parameters
    ----------
    data, indices, indptr : zarr arrays
    form : {'csr', 'csc'}
    shape : pair of int
    """

    data: Any
    indices: Any
    indptr: Any
    form: str
    shape: tuple[int, int]
    held = False
    implicit = True
    collections = ()

    @classmethod
    def of(cls, group: Any, name: str) -> StoredSparse:
        """The matrix in a group; raises StoreError where a part is missing or they do not fit together."""
        lacking = [part for part in ("data", "indices", "indptr") if part not in group]
        if lacking or "shape" not in group.attrs:
            raise StoreError(f"{name} is no sparse matrix as anndata writes it: it has no {(lacking or ['shape'])[0]}")
        form, shape = _FORMATS[str(group.attrs["encoding-type"])], tuple(int(n) for n in group.attrs["shape"])
        found = cls(group["data"], group["indices"], group["indptr"], form, (shape[0], shape[1]))
        major = shape[0] if form == "csr" else shape[1]
        if found.indptr.shape != (major + 1,) or found.data.shape != found.indices.shape:
            raise StoreError(
                f"{name} is damaged: a {form} matrix of shape {shape} has {major + 1} pointers and as many indices as "
                f"data, not {found.indptr.shape[0]}, {found.indices.shape[0]} and {found.data.shape[0]}"
            )
        return found

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.data.dtype)

    @property
    def major(self) -> int:
        """The side that it is compressed along."""
        return ROWS if self.form == "csr" else COLUMNS

    @property
    def density(self) -> float:
        return self.data.shape[0] / max(self.shape[0] * self.shape[1], 1)

    @property
    def T(self) -> StoredSparse:
        """The transpose: the same arrays, read the other way."""
        return replace(self, form="csc" if self.form == "csr" else "csr", shape=self.shape[::-1])

    @property
    def layout(self) -> str:
        chunks = (self.data.shards or self.data.chunks)[0]
        return (
            f"zarr {self.form} {self.shape[0]} x {self.shape[1]}, {self.data.shape[0]} stored entries "
            f"in chunks of {chunks}"
        )

    def together(self, side: int, cuts: np.ndarray, nbytes: int) -> np.ndarray:
        if side != self.major:
            nbytes = max(nbytes, _PICKED)
        return joined_cuts(cuts, apart(self._nbytes, self.shape[side], nbytes))

    def touched(self, side: int, cuts: np.ndarray) -> int:
        if side == self.major:
            return self._nbytes
        return self._nbytes * max(1, len(self.together(side, cuts, _PICKED)) - 1)

    def inputs(self, side: int, start: int, stop: int) -> Any:
        return None

    def given(self, side: int, start: int, inputs: Any) -> Source:
        return self

    def hollow(self) -> Source:
        return self

    @cached_property
    def _nbytes(self) -> int:
        return sum(int(a.shape[0]) * a.dtype.itemsize for a in (self.data, self.indices, self.indptr))

    def _part(self, rows: Range, cols: Range) -> Any:
        along, across = (rows, cols) if self.major == ROWS else (cols, rows)
        if across == (0, self.shape[1 - self.major]):
            return self._stretch(*along, slice(None))
        # As many rows (columns) at a time as hold so many entries on the average.
        step = max(1, _STRETCH * self.shape[self.major] // max(self.data.shape[0], 1))
        parts = [self._stretch(a, min(a + step, along[1]), slice(*across)) for a in range(*along, step)]
        stack: Any = sp.vstack if self.major == ROWS else sp.hstack
        return as_compressed(stack(parts, format=self.form))

    def _stretch(self, start: int, stop: int, across: slice) -> Any:
        """Rows (columns) [start, stop) with their entries in `across`."""
        pointers = np.asarray(self.indptr[start : stop + 1]).astype(np.int64)
        first, last = int(pointers[0]), int(pointers[-1])
        data, indices = np.asarray(self.data[first:last]), np.asarray(self.indices[first:last])
        width = self.shape[1 - self.major]
        if (np.diff(pointers) < 0).any() or (indices.size and not 0 <= indices.min() <= indices.max() < width):
            what = "rows" if self.major == ROWS else "columns"
            raise StoreError(f"the pointers or indices of {what} {start} to {stop} are outside of the matrix: damaged")
        kind: Any = sp.csr_array if self.form == "csr" else sp.csc_array
        shape = (stop - start, width) if self.form == "csr" else (width, stop - start)
        small = np.int32 if max(last - first, width) < 2**31 else np.int64
        part = kind((data, indices.astype(small, copy=False), (pointers - first).astype(small)), shape=shape)
        if across != slice(None):
            part = part[:, across] if self.form == "csr" else part[across]
        return as_compressed(part)
