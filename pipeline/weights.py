"""What features and samples are weighted by: arrays that are checked, and the weights of a latitude grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.labels import Labels

__all__ = ["weights_of_features", "weights_of_samples"]


def weights_of_samples(weights: Any, n: int) -> np.ndarray:
    """(n,) float64; raises InputError when they do not fit, or are negative, not finite, or all zero."""
    checked = _checked("sample_weights", weights, n)
    if n and not checked.any():
        raise InputError("sample_weights are all zero: at least one sample must count")
    return checked


def weights_of_features(weights: Any, features: Labels) -> np.ndarray:
    """(d,) float64 of an array, a DataArray over some of the feature dims, or 'coslat'.

    Raises InputError when they do not fit, or are negative or not finite.
    """
    if isinstance(weights, str):
        if weights != "coslat":
            raise InputError(f"weights={weights!r}: give an array or 'coslat'")
        return _coslat(features)
    dims = getattr(weights, "dims", None)
    if dims is not None:
        unknown = [d for d in dims if d not in features.dims]
        if unknown:
            raise InputError(f"weights have a dim {unknown[0]!r} that is no feature dim ({', '.join(features.dims)})")
        values = np.transpose(np.asarray(weights), [dims.index(d) for d in features.dims if d in dims])
        shape = tuple(n if d in dims else 1 for d, n in zip(features.dims, features.sizes, strict=True))
        if values.shape != tuple(n for d, n in zip(features.dims, features.sizes, strict=True) if d in dims):
            raise InputError(
                f"weights of shape {values.shape} do not fit the feature dims {features.dims} {features.sizes}"
            )
        weights = np.broadcast_to(values.reshape(shape), features.sizes)
    return _checked("weights", np.asarray(weights).reshape(-1), features.size)


def _coslat(features: Labels) -> np.ndarray:
    for name in ("lat", "latitude", "nav_lat", "y", "Latitude", "LAT"):
        coord = features.coords.get(name)
        if coord is not None and np.issubdtype(coord.values.dtype, np.number):
            degrees = features.flattened("feature").coords[name].values.astype(np.float64)
            return np.sqrt(np.clip(np.cos(np.deg2rad(degrees)), 0.0, None))
    raise InputError(
        f"weights='coslat' needs a latitude coordinate; the features have {', '.join(features.coords) or 'none'}"
    )


def _checked(what: str, values: Any, size: int) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} are not numbers: {error}") from error
    if array.shape != (size,):
        raise InputError(f"{what} have shape {array.shape}: {size} are needed")
    if not np.isfinite(array).all() or (array < 0).any():
        worst = int(np.argmax(~(np.isfinite(array) & (array >= 0))))
        raise InputError(f"{what} must be finite and not negative: number {worst} is {array[worst]}")
    return array
