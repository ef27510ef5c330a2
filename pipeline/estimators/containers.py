"""What users pass in and what they get back: containers and labels, taken off and put back at the door."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from os import PathLike
from typing import Any

import dask
import numpy as np
import xarray as xr
import zarr
from sklearn.utils.validation import validate_data
from zarr.abc.store import Store

from pipeline.errors import InputError
from pipeline.labels import Coord, Labels
from pipeline.matrix import Matrix, open_matrix, open_stream
from pipeline.rowwise import RowFunction, RowKernel, gathered, lazy
from pipeline.sources import is_annotated, is_dasked, unmasked
from pipeline.subspace import Subspace

__all__ = ["apply_rows", "check_features", "column_names", "matrix_like", "open_for_fit", "rows_from_scores"]


def open_for_fit(estimator: Any, X: Any) -> Matrix:
    """The Matrix of the training data; sets `n_features_in_` and `feature_names_in_` as scikit-learn does."""
    if isinstance(X, Iterator):
        matrix = open_stream(X)
    elif _in_memory(X):
        return _called(estimator, _table(estimator, X, reset=True))
    else:
        matrix = open_matrix(X)
    estimator.n_features_in_ = matrix.shape[1]
    if hasattr(estimator, "feature_names_in_"):
        del estimator.feature_names_in_
    names = _text(matrix.features)
    if names is not None:
        estimator.feature_names_in_ = names
    return _called(estimator, matrix)


def matrix_like(estimator: Any, X: Any, subspace: Subspace) -> Matrix:
    """The Matrix of new data with the features of a fitted model, found by name where there are names.

    Raises InputError when the number of features, or their coordinates, are others than those of the model.
    """
    if _in_memory(X):
        matrix = _table(estimator, X, reset=False)
    else:
        matrix = X if isinstance(X, Matrix) else _opened(_ordered(X, subspace), subspace)
    check_features(estimator, matrix, subspace)
    return _called(estimator, matrix)


def check_features(estimator: Any, matrix: Matrix, subspace: Subspace) -> None:
    """Raise InputError when the features of a matrix are not those of a subspace, in number, name or place."""
    _check_width(matrix.shape[1], subspace, estimator)
    _check_places(matrix, subspace.features)


def missing_call(estimator: Any, dtype: np.dtype[Any]) -> float | None:
    """What stands for a missing entry beside NaN: -1 among counts of alleles that are integers."""
    return -1.0 if getattr(estimator, "scale", None) == "genotype" and dtype.kind == "i" else None


def _called(estimator: Any, matrix: Matrix) -> Matrix:
    code = missing_call(estimator, matrix.dtype)
    return matrix if code is None else matrix.coded(code)


def apply_rows(estimator: Any, X: Any, subspace: Subspace, function: RowFunction) -> Any:
    """A function of rows in the kind of container that X is: NumPy, lazy dask, xarray with the sample coordinates."""
    if is_dasked(X):
        if X.ndim < 2:
            raise InputError(
                f"the dask array has {X.ndim} dim(s): a matrix needs samples and features, so at least two"
            )
        _check_width(prod(X.shape[1:]), subspace, estimator)
        function = replace(function, code=missing_call(estimator, X.dtype))
        return lazy(X, function, (0,), tuple(range(1, X.ndim)))
    X = _ordered(X, subspace)
    matrix = matrix_like(estimator, X, subspace)
    if not isinstance(X, xr.DataArray | xr.Dataset):
        return gathered(matrix, function)
    samples = matrix.samples
    modes = ("mode",) * bool(function.width)
    if dask.is_dask_collection(X):
        wide = _wide(X, samples.dims, subspace.features)
        coded = replace(function, code=missing_call(estimator, wide.dtype))
        values = lazy(wide, coded, tuple(range(len(samples.dims))), tuple(range(len(samples.dims), wide.ndim)))
    else:
        values = gathered(matrix, function).reshape(*samples.sizes, *((function.width,) if modes else ()))
    scores = xr.DataArray(values, _sample_coords(X, samples.dims), (*samples.dims, *modes), name=function.name)
    return scores.assign_coords(mode=np.arange(1, function.width + 1)) if modes else scores


def rows_from_scores(subspace: Subspace, Z: Any, restore: RowKernel) -> Any:
    """Samples that `restore` makes from scores, in the kind of container that these are, with feature coordinates."""
    if isinstance(Z, xr.DataArray):
        if "mode" not in Z.dims:
            raise InputError(f"scores need a dim 'mode': these have {', '.join(map(str, Z.dims))}")
        Z = Z.transpose(..., "mode")
        features = subspace.features or Labels.plain("feature", subspace.n_features)
        values = rows_from_scores(subspace, Z.data.reshape(-1, Z.sizes["mode"]), restore)
        shape, dims = (*Z.shape[:-1], *features.sizes), (*Z.dims[:-1], *features.dims)
        coords = _sample_coords(Z, Z.dims[:-1])
        rows = xr.DataArray(values.reshape(shape), coords, dims, name=features.attrs.get("name"))
        return rows.assign_coords(features.xarray_coords())
    if not is_dasked(Z):
        Z = np.atleast_2d(Z.toarray() if hasattr(Z, "toarray") else np.asarray(Z))
    if Z.dtype.kind not in "biufc":
        raise InputError(f"scores hold {Z.dtype}, not numbers")
    if Z.ndim != 2 or Z.shape[1] != subspace.k:
        raise InputError(f"scores of shape {Z.shape}: {subspace.k} columns are needed, one a component")
    if isinstance(Z, np.ndarray):
        return restore(Z)
    import dask.array as da

    dtype = restore(np.zeros((1, subspace.k), Z.dtype)).dtype
    return da.blockwise(
        _restored,
        "if",
        Z,
        "ik",
        new_axes={"f": subspace.n_features},
        concatenate=True,
        meta=np.empty((0, 0), dtype),
        restore=dask.delayed(restore, traverse=False),  # one task of its own: components may be large
    )


def _restored(scores: np.ndarray, restore: RowKernel) -> np.ndarray:
    return restore(scores)


def column_names(subspace: Subspace) -> np.ndarray | None:
    """The names of the columns, where a subspace was fitted to a table that has them."""
    return _text(subspace.features) if subspace.features else None


def _text(features: Labels) -> np.ndarray | None:
    coord = features.coords.get("feature")
    return None if coord is None or coord.values.dtype.kind not in "OTU" else coord.values.astype(object)


def _in_memory(X: Any) -> bool:
    known = Matrix | xr.DataArray | xr.Dataset | zarr.Array | zarr.Group | str | PathLike | Store
    if isinstance(X, known) or is_dasked(X) or is_annotated(X):
        return False
    if hasattr(X, "to_scipy_sparse") or hasattr(X, "rmatmat"):
        return False
    if isinstance(X, np.ndarray) and X.ndim > 2:
        return False
    return not _is_complex(X)  # scikit-learn's own checks refuse complex numbers


def _is_complex(X: Any) -> bool:
    if hasattr(X, "dtypes"):
        return any(getattr(d, "kind", "O") == "c" for d in np.atleast_1d(np.asarray(X.dtypes, dtype=object)))
    if isinstance(X, list | tuple):
        return any(isinstance(v, complex | np.complexfloating) for row in X if np.iterable(row) for v in row)
    return getattr(getattr(X, "dtype", None), "kind", "f") == "c"


def _table(estimator: Any, X: Any, reset: bool) -> Matrix:
    """The Matrix of what scikit-learn takes; the columns of a DataFrame name the features."""
    if isinstance(X, Iterator):
        raise InputError("a stream of blocks can be read only by fit, and once: give one block after the other here")
    try:
        checked = validate_data(
            estimator,
            unmasked(X),
            reset=reset,
            accept_sparse=True,
            ensure_all_finite=False,
            dtype="numeric",
            ensure_min_samples=1,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    matrix = open_matrix(checked)
    columns = list(getattr(X, "columns", ()))
    if not columns or not all(isinstance(c, str) for c in columns):
        return matrix
    names = Coord(("feature",), np.asarray(columns), {})
    return replace(matrix, features=Labels(("feature",), (len(columns),), {"feature": names}))


def _opened(X: Any, subspace: Subspace) -> Matrix:
    variable = _variables(X, subspace.features)
    if isinstance(X, xr.DataArray | xr.Dataset):
        return open_matrix(X, variable=variable, sample_dims=_sample_dims(_dims(X, subspace), subspace))
    matrix = open_matrix(X, variable=variable)
    dims = _sample_dims((*matrix.samples.dims, *matrix.features.dims), subspace)
    if dims is None or tuple(dims) == matrix.samples.dims:
        return matrix
    return open_matrix(X, variable=variable, sample_dims=dims)


def _ordered(X: Any, subspace: Subspace) -> Any:
    """Data of xarray with its sample dims first and its feature dims in the order of the model's."""
    if not isinstance(X, xr.DataArray | xr.Dataset):
        return X
    known = _dims(X, subspace)
    dims = _sample_dims(known, subspace)
    return X if dims is None else X.transpose(*dims, *(d for d in _inner(subspace) if d in known), ...)


def _dims(X: xr.DataArray | xr.Dataset, subspace: Subspace) -> tuple[str, ...]:
    if isinstance(X, xr.Dataset):
        names = _variables(X, subspace.features) or [str(v) for v in X.data_vars]
        return tuple(map(str, X[names[0]].dims)) if names else ()
    return tuple(map(str, X.dims))


def _sample_dims(known: Sequence[str], subspace: Subspace) -> list[str] | None:
    """Which of the dims are samples, as far as the names of the model's dims tell."""
    inner = set(_inner(subspace))
    if inner and inner < set(known):
        return [d for d in known if d not in inner]
    source = subspace.provenance.get("source")
    recorded = source.get("sample_dims", []) if isinstance(source, Mapping) else []
    return [d for d in known if d in recorded] if recorded and set(recorded) < set(known) else None


def _inner(subspace: Subspace) -> list[str]:
    """The feature dims of each variable."""
    return [d for d in subspace.features.dims if d != "variable"] if subspace.features else []


def _variables(X: Any, features: Labels | None) -> list[str] | None:
    """The variables of the model, where the new data has variables and these among them."""
    if features is None or not isinstance(X, xr.Dataset | zarr.Group | str | PathLike | Store):
        return None
    coord, name = features.coords.get("variable"), features.attrs.get("name")
    names = [str(name)] if coord is None else list(dict.fromkeys(map(str, coord.values)))
    if not isinstance(X, xr.Dataset | zarr.Group):
        try:
            X = zarr.open(X, mode="r")
        except Exception:  # whatever is wrong with it, opening it as a matrix will say so
            return None
    return names if not isinstance(X, zarr.Array) and all(n in X for n in names) else None


def _wide(X: xr.DataArray | xr.Dataset, dims: Sequence[str], features: Labels | None) -> Any:
    """The entries as one Dask array, sample dims first; the variables of a Dataset lie side by side."""
    import dask.array as da

    if isinstance(X, xr.DataArray):
        return da.asarray(X.data)
    parts = []
    for name in _variables(X, features) or X.data_vars:
        part = da.asarray(X[name].transpose(*dims, ...).data)
        part = part.rechunk(dict.fromkeys(range(len(dims), part.ndim), -1))
        parts.append(part.reshape(*part.shape[: len(dims)], -1))
    return da.concatenate(parts, axis=-1)


def _sample_coords(X: xr.DataArray | xr.Dataset, dims: Sequence[Any]) -> Any:
    """The coordinates along these dims, and those without a dim, with their indexes."""
    coords = X.coords.to_dataset()
    return coords.drop_vars([n for n, c in coords.coords.items() if not set(c.dims) <= set(dims)]).coords


def _check_width(width: int, subspace: Subspace, estimator: Any) -> None:
    if width != subspace.n_features:
        name = type(estimator).__name__
        raise InputError(f"X has {width} features, but {name} is expecting {subspace.n_features} features as input")


def _check_places(matrix: Matrix, features: Labels | None) -> None:
    """Raise InputError where the features have other places than those of the model: no score would be right."""
    if features is None:
        return
    new = matrix.features
    if set(new.dims) == set(features.dims) and (new.dims, new.sizes) != (features.dims, features.sizes):
        raise InputError(
            f"{matrix.name} has the feature dims {new.dims} of sizes {new.sizes}, the model {features.dims} of sizes "
            f"{features.sizes}: transpose or select the data first"
        )
    for name in (*features.dims, "variable"):
        old, now = features.coords.get(name), new.coords.get(name)
        if old is None or now is None or old.dims != now.dims or old.values.shape != now.values.shape:
            continue
        numbers = old.values.dtype.kind in "iuf" and now.values.dtype.kind in "iuf"
        same = np.isclose(old.values, now.values, equal_nan=True) if numbers else old.values == now.values
        if not np.all(same):
            i = int(np.argmin(same))
            raise InputError(
                f"{matrix.name} has other places along {name!r} than the model, first {now.values[i]} instead of "
                f"{old.values[i]} at position {i}: reorder or interpolate the data first"
            )
