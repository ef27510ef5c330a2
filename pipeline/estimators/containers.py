"""What users pass in and what they get back: containers and labels, taken off and put back at the door."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from sklearn.utils.validation import validate_data
from zarr.abc.store import Store

from pipeline.errors import InputError
from pipeline.labels import Labels
from pipeline.matrix import Matrix, open_matrix
from pipeline.rowwise import RowFunction, gathered, lazy
from pipeline.subspace import Subspace

__all__ = ["apply_rows", "matrix_like", "open_for_fit", "rows_from_scores"]


def open_for_fit(estimator: Any, X: Any, reset: bool = True) -> Matrix:
    """The Matrix of the training data; sets `n_features_in_` and `feature_names_in_` as scikit-learn does."""
    if _in_memory(X):
        return open_matrix(_validated(estimator, X, reset))
    matrix = open_matrix(X)
    if reset:
        estimator.n_features_in_ = matrix.shape[1]
        if hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
    _check_width(matrix, estimator.n_features_in_, type(estimator).__name__)
    return matrix


def matrix_like(estimator: Any, X: Any, features: Labels | None) -> Matrix:
    """The Matrix of new data with the features of a fitted model, found by name where there are names."""
    if _in_memory(X):
        return open_matrix(_validated(estimator, X, reset=False))
    if not isinstance(X, Matrix):
        variable, dims = _names(X, features)
        X = open_matrix(X, variable=variable, sample_dims=dims)
    _check_width(X, estimator.n_features_in_, type(estimator).__name__)
    return X


def apply_rows(estimator: Any, X: Any, subspace: Subspace, function: RowFunction) -> Any:
    """A function of rows in the kind of container that X is: NumPy, lazy dask, xarray with the sample coordinates."""
    if isinstance(X, da.Array):
        if X.ndim == 2 and X.shape[1] != subspace.n_features:
            raise InputError(_width(X.shape[1], subspace.n_features, type(estimator).__name__))
        return lazy(X, function, (0,), tuple(range(1, X.ndim)))
    matrix = matrix_like(estimator, _ordered(X, subspace.features), subspace.features)
    if not isinstance(X, xr.DataArray | xr.Dataset):
        return gathered(matrix, function)
    samples = matrix.samples
    modes: tuple[str, ...] = ("mode",) if function.width else ()
    if isinstance(X, xr.DataArray) and X.chunks is not None:
        axes = tuple(X.get_axis_num(d) for d in samples.dims)
        values = lazy(X.data, function, axes, _feature_axes(X, samples, subspace.features))
    else:
        values = gathered(matrix, function).reshape(*samples.sizes, *((function.width,) if modes else ()))
    coords: dict[str, Any] = dict(samples.xarray_coords())
    if modes:
        coords["mode"] = np.arange(1, function.width + 1)
    return xr.DataArray(values, coords, (*samples.dims, *modes), name=function.name)


def rows_from_scores(subspace: Subspace, Z: Any) -> Any:
    """Reconstructed samples in the kind of container that the scores are, with the feature dims and coordinates."""
    if isinstance(Z, xr.DataArray):
        if "mode" not in Z.dims:
            raise InputError(f"scores need a dim 'mode': these have {', '.join(map(str, Z.dims))}")
        Z = Z.transpose(..., "mode")
        features = subspace.features or Labels.plain("feature", subspace.n_features)
        flat = Z.data.reshape(-1, Z.sizes["mode"])
        values = rows_from_scores(subspace, flat)
        dims = Z.dims[:-1]
        coords: dict[Any, Any] = {n: c.variable for n, c in Z.coords.items() if "mode" not in c.dims}
        coords |= features.xarray_coords()
        shape = (*(Z.sizes[d] for d in dims), *features.sizes)
        return xr.DataArray(values.reshape(shape), coords, (*dims, *features.dims), name=features.attrs.get("name"))
    if isinstance(Z, da.Array):
        Z = Z.rechunk({1: -1}) if Z.numblocks[1] > 1 else Z
        chunks = (Z.chunks[0], (subspace.n_features,))
        return Z.map_blocks(subspace.reconstruct, chunks=chunks, dtype=Z.dtype, meta=np.empty((0, 0), Z.dtype))
    return subspace.reconstruct(np.asarray(Z))


def _in_memory(X: Any) -> bool:
    known = Matrix | da.Array | xr.DataArray | xr.Dataset | zarr.Array | zarr.Group | str | PathLike | Store
    return not isinstance(X, known) and not (isinstance(X, np.ndarray) and X.ndim > 2)


def _validated(estimator: Any, X: Any, reset: bool) -> Any:
    try:
        return validate_data(
            estimator,
            X,
            reset=reset,
            accept_sparse=True,
            ensure_all_finite=False,
            dtype="numeric",
            ensure_min_samples=1,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_width(matrix: Matrix, expected: int, name: str) -> None:
    if matrix.shape[1] != expected:
        raise InputError(_width(matrix.shape[1], expected, name))


def _width(got: int, expected: int, name: str) -> str:
    return f"X has {got} features, but {name} is expecting {expected} features as input"


def _names(X: Any, features: Labels | None) -> tuple[list[str] | str | None, Sequence[str] | None]:
    """Variables and sample dims of new data, so that its features are those of the model."""
    if features is None:
        return None, None
    variable: list[str] | str | None = None
    if isinstance(X, xr.Dataset | zarr.Group | str | PathLike):
        coord = features.coords.get("variable")
        known = list(dict.fromkeys(coord.values.tolist())) if coord is not None else features.attrs.get("name")
        variable = known if known and _holds(X, known) else None
    dims: Sequence[str] | None = None
    if isinstance(X, xr.DataArray | xr.Dataset):
        sample = [str(d) for d in X.dims if d not in features.dims]
        if isinstance(X, xr.DataArray) and 0 < len(sample) < len(X.dims):
            dims = sample
    return variable, dims


def _holds(X: Any, names: Any) -> bool:
    if isinstance(X, str | PathLike):
        try:
            X = zarr.open(X, mode="r")
        except Exception:  # whatever is wrong with it, opening it as a matrix will say so
            return False
    return not isinstance(X, zarr.Array) and all(n in X for n in ([names] if isinstance(names, str) else names))


def _ordered(X: Any, features: Labels | None) -> Any:
    """A DataArray with its feature dims in the order of the model's."""
    if isinstance(X, xr.DataArray) and features is not None and set(features.dims) < set(map(str, X.dims)):
        return X.transpose(*(d for d in X.dims if d not in features.dims), *features.dims)
    return X


def _feature_axes(X: xr.DataArray, samples: Labels, features: Labels | None) -> tuple[int, ...]:
    dims = [d for d in X.dims if d not in samples.dims]
    if features is not None and set(features.dims) == set(dims):
        dims = list(features.dims)
    return tuple(X.get_axis_num(d) for d in dims)
