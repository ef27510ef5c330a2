"""`Sparse`: a store of one sparse matrix, in the layout of anndata: X in rows (CSR), the names in `obs` and `var`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store

from pipeline.errors import InputError
from pipeline.intake.dense import castable
from pipeline.intake.files import SparseRows
from pipeline.sources.anndata import parts_of

__all__ = ["Sparse"]

_ENTRIES, _ROWS = 1 << 20, 1 << 16  # stored entries, and pointers or names, in a chunk


@dataclass(frozen=True, eq=False)
class Sparse:
    """What every slab must be like."""

    n_features: int
    dtype: np.dtype[Any]
    features: np.ndarray | None
    named: bool
    """Whether the samples have names."""
    rounded: bool = False

    @classmethod
    def of_store(cls, store: Store, rounded: bool = False) -> Sparse:
        """That of a store which is there."""
        group = zarr.open_group(store, mode="r")
        (part,) = parts_of(group, None, str(store))
        data: Any = part.node["data"]
        n_features, dtype = int(part.node.attrs["shape"][1]), np.dtype(data.dtype)
        return cls(n_features, dtype, part.features, part.samples is not None, rounded)

    @classmethod
    def of_slab(cls, slab: SparseRows, dtype: Any) -> Sparse:
        """That of a store which begins with a slab."""
        dtype, named = np.dtype(dtype or slab.rows.dtype), slab.samples is not None
        return cls(slab.rows.shape[1], dtype, slab.features, named, dtype != slab.rows.dtype)

    def fitted(self, slab: Any, name: str) -> SparseRows:
        """A slab with the order and dtype of the store; raises InputError where it does not fit."""
        if not isinstance(slab, SparseRows):
            raise InputError(f"{name} is dense, the store is sparse: ingest it to a store of its own")
        rows = slab.rows
        if (slab.features is None) != (self.features is None) or (slab.samples is not None) != self.named:
            raise InputError(f"{name} and the store do not both name their samples and features: they cannot be told")
        if rows.shape[1] != self.n_features:
            raise InputError(f"{name} has {rows.shape[1]} features, the store has {self.n_features}")
        if self.features is not None and not np.array_equal(slab.features, self.features):  # type: ignore[arg-type]
            place = {f: i for i, f in enumerate(slab.features)}  # type: ignore[arg-type]
            lacking = next((f for f in self.features if f not in place), None)
            if lacking is not None:
                raise InputError(f"{name} has no feature {lacking!r}, which the store has")
            rows = rows[:, [place[f] for f in self.features]]
        if not castable(rows.dtype, self.dtype, self.rounded):
            raise InputError(f"{name} holds {rows.dtype}, the store {self.dtype}: convert it first")
        rows = rows.astype(self.dtype)
        rows.sum_duplicates()
        return SparseRows(rows, slab.samples, self.features)

    def check(self, slab: SparseRows, start: int, name: str) -> None:
        """Raise InputError where entries are NaN or infinite."""
        wrong = np.flatnonzero(~np.isfinite(slab.rows.data))
        if wrong.size:
            row = start + int(np.searchsorted(slab.rows.indptr, wrong[0], "right")) - 1
            value, feature = slab.rows.data[wrong[0]], slab.rows.indices[wrong[0]]
            raise InputError(f"{name}: sample {row}, feature {feature} is {value}: mend it")

    def feed(self, slab: SparseRows, digests: dict[str, Any]) -> None:
        """Add what a slab holds to a digest for each of its parts."""
        digests["data"].update(np.ascontiguousarray(slab.rows.data).tobytes())
        digests["indices"].update(slab.rows.indices.astype(np.int64).tobytes())
        digests["counts"].update(np.diff(slab.rows.indptr).astype(np.int64).tobytes())
        digests["samples"].update("\0".join(slab.samples if slab.samples is not None else ()).encode() + b"\0")

    def labels(self, slab: SparseRows) -> np.ndarray | None:
        """What the samples of a slab are called."""
        return slab.samples

    def stored_labels(self, store: Store) -> np.ndarray | None:
        """What the samples of the store are called."""
        (part,) = parts_of(zarr.open_group(store, mode="r"), None, str(store))
        return part.samples

    def put(self, slab: SparseRows, folder: Path, first: bool) -> int:
        """Append a slab to the group in a folder; the number of its samples."""
        group = zarr.open_group(folder, mode="a", use_consolidated=False)
        if first:
            self._begin(group)
        X: Any = group["X"]
        data, indices, indptr = X["data"], X["indices"], X["indptr"]
        end, n = int(indptr[-1]), int(X.attrs["shape"][0])
        indptr.append(slab.rows.indptr[1:].astype(np.int64) + end)
        indices.append(slab.rows.indices.astype(indices.dtype))
        data.append(slab.rows.data)
        X.attrs["shape"] = [n + slab.rows.shape[0], self.n_features]
        if slab.samples is not None:
            names: Any = group["obs/_index"]
            names.append(np.asarray(slab.samples, object))
        return int(slab.rows.shape[0])

    def _begin(self, group: zarr.Group) -> None:
        """An anndata group without a sample."""
        group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        X = group.create_group("X", attributes={"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        X.attrs["shape"] = [0, self.n_features]
        small = "int32" if self.n_features < 2**31 else "int64"
        X.create_array("data", shape=(0,), chunks=(_ENTRIES,), dtype=self.dtype)
        X.create_array("indices", shape=(0,), chunks=(_ENTRIES,), dtype=small)
        X.create_array("indptr", shape=(1,), chunks=(_ROWS,), dtype="int64")[0] = 0
        frame: Any = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index", "column-order": []}
        text: Any = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
        for side, names in (("obs", [] if self.named else None), ("var", self.features)):
            place = group.create_group(side, attributes=frame)
            if names is not None:
                array: Any = place.create_array(
                    "_index", shape=(len(names),), chunks=(_ROWS,), dtype="string", attributes=text
                )
                if len(names):
                    array[:] = np.asarray(names, object)
