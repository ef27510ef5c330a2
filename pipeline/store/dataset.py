"""A `Subspace` as an xarray Dataset, and back, bit for bit.

What xarray may change on the way (the dtype of an index, an attribute that CF decoding eats) is written down in the
attribute `features`, and taken from there on the way back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from pipeline.errors import InputError
from pipeline.labels import Coord, Labels
from pipeline.subspace import Subspace

__all__ = ["from_dataset", "to_dataset"]

_LONG_NAMES = {
    "components": "principal components (orthonormal, in weighted and scaled units)",
    "mean": "mean of the samples",
    "scale": "what the centred features were divided by",
    "weights": "what the centred features were multiplied by",
    "singular_values": "singular values",
    "explained_variance": "variance of the scores",
    "explained_variance_ratio": "share of the total variance",
    "residual": "relative residual of the singular triplet",
    "angle_bound": "bound on the largest principal angle of the modes up to this one",
    "left_out": "bounds on what merges have left out of the second moments, and on its coupling with the components",
    "turn": "by what principal modes were turned, times their singular values",
}
_OPTIONAL = {"scale", "weights", "explained_variance", "explained_variance_ratio", "turn", "left_out"}
_RESERVED = {"mode", "principal", "bound", "versions", *_LONG_NAMES}
_NUMBERS = ("n_samples", "total_variance", "passes", "centered")
# Attributes by which CF decoding would change the values; the features' record keeps them.
_DECODED = {"_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned", "dtype", "coordinates"}
_EPOCH = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def to_dataset(subspace: Subspace) -> xr.Dataset:
    """The subspace as a Dataset with dims `mode` and those of the features.

    Parameters
    ----------
    subspace : Subspace
        Its arrays are shared, not copied.

    Raises
    ------
    InputError
        When a feature dim or coordinate has a name that the Dataset needs for itself, a coordinate cannot be stored,
        or the provenance is not plain JSON.
    """
    labels = subspace.features or Labels.plain("feature", subspace.n_features)
    _check_labels(labels, subspace.n_features)
    data = {name: (dims, values, _attrs(name, labels)) for name, dims, values in _arrays(subspace, labels)}
    coords = {name: _variable(name, coord) for name, coord in labels.coords.items()}
    modes = xr.Variable("mode", np.arange(1, subspace.k + 1), {"long_name": "mode number"})
    try:
        return xr.Dataset(data, {"mode": modes, **coords}, _global_attrs(subspace))
    except ValueError as error:
        raise InputError(f"the feature coordinates do not fit the dims {labels.dims}: {error}") from error


def from_dataset(ds: xr.Dataset) -> Subspace:
    """The inverse of `to_dataset`.

    Parameters
    ----------
    ds : Dataset
        From `to_dataset`, or a stored model opened with xarray.

    Raises
    ------
    InputError
        When variables or attributes of a subspace are missing, or a coordinate was decoded to another kind.
    """
    missing = [n for n in _LONG_NAMES if n not in _OPTIONAL and n not in ds.variables]
    missing += [n for n in _NUMBERS if n not in ds.attrs]
    if missing:
        raise InputError(f"the Dataset is not a subspace: it has no {', '.join(missing)}")
    if "mode" not in ds["components"].dims:
        raise InputError("the Dataset is not a subspace: its components have no dim 'mode'")
    dims = tuple(str(d) for d in ds["components"].dims if d != "mode")
    shape = tuple(ds.sizes[d] for d in dims)
    size = int(np.prod(shape, dtype=np.int64))

    def flat(name: str) -> np.ndarray:
        return np.asarray(ds[name].transpose(*dims).values).reshape(size)

    return Subspace(
        components=np.asarray(ds["components"].transpose("mode", *dims).values).reshape(ds.sizes["mode"], size),
        singular_values=ds["singular_values"].values,
        mean=flat("mean"),
        n_samples=ds.attrs["n_samples"],
        total_variance=ds.attrs["total_variance"],
        residual=ds["residual"].values,
        angle_bounds=ds["angle_bound"].values,
        scale=flat("scale") if "scale" in ds.variables else None,
        weights=flat("weights") if "weights" in ds.variables else None,
        centered=bool(ds.attrs["centered"]),
        passes=int(ds.attrs["passes"]),
        features=_labels(ds, dims, shape),
        provenance=json.loads(ds.attrs.get("provenance", "{}")),
        left_out=np.asarray(ds["left_out"].values) if "left_out" in ds.variables else None,
        turn=np.asarray(ds["turn"].transpose("mode", "principal").values) if "turn" in ds.variables else None,
    )


def _arrays(s: Subspace, labels: Labels) -> list[tuple[str, tuple[str, ...], np.ndarray]]:
    maps = {"mean": s.mean, "scale": s.scale, "weights": s.weights}
    modes = {
        "singular_values": s.singular_values,
        "explained_variance": s.explained_variance,
        "explained_variance_ratio": s.explained_variance_ratio,
        "residual": s.residual,
        "angle_bound": s.angle_bounds,
    }
    return [
        ("components", ("mode", *labels.dims), s.components.reshape(s.k, *labels.sizes)),
        *((name, labels.dims, a.reshape(labels.sizes)) for name, a in maps.items() if a is not None),
        *((name, ("mode",), a) for name, a in modes.items()),
        *([] if s.turn is None else [("turn", ("mode", "principal"), s.turn)]),
        *([] if s.left_out is None else [("left_out", ("bound",), s.left_out)]),
    ]


def _attrs(name: str, labels: Labels) -> dict[str, Any]:
    attrs = {"long_name": _LONG_NAMES[name]}
    if name == "mean":
        attrs |= {key: str(labels.attrs[key]) for key in ("units", "long_name") if key in labels.attrs}
    if name == "angle_bound":
        attrs["units"] = "radian"
    return attrs


def _global_attrs(s: Subspace) -> dict[str, Any]:
    provenance = dict(s.provenance)
    for key, value in provenance.items():
        if not _is_json(key, value):
            raise InputError(f"provenance[{key!r}] is not plain JSON: give numbers, strings, lists and dicts of these")
    method = provenance.get("method") or ("principal components" if s.centered else "truncated SVD")
    attrs: dict[str, Any] = {
        "Conventions": "CF-1.11",
        "title": f"Dominant subspace: {s.k} modes of {s.n_features} features",
        "method": _readable(method),
        **_plain({name: getattr(s, name) for name in ("n_samples", "total_variance", "passes")}),
        "centered": int(s.centered),  # netCDF knows no booleans
        **{k: _readable(provenance[k]) for k in ("source", "solver", "seed", "created", "versions") if k in provenance},
        "provenance": json.dumps(provenance),
    }
    if s.features is not None:
        attrs["features"] = _record(s.features)
    return attrs


def _record(labels: Labels) -> str:
    """What the Dataset's own variables may not keep of the labels, as JSON."""
    coords = {n: {"dtype": _dtype_name(c.values.dtype), "attrs": dict(c.attrs)} for n, c in labels.coords.items()}
    return json.dumps({"attrs": dict(labels.attrs), "coords": coords}, default=_item)


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with NumPy's scalars and arrays, at any depth, as Python's own."""
    return dict(json.loads(json.dumps(dict(attrs), default=_item)))


def _labels(ds: xr.Dataset, dims: tuple[str, ...], shape: tuple[int, ...]) -> Labels | None:
    if "features" not in ds.attrs:
        names = [str(n) for n in ds.coords if n != "mode"]
        if dims == ("feature",) and not names:
            return None
        return Labels(dims, shape, {n: Coord(_dims(ds, n), ds[n].values, dict(ds[n].attrs)) for n in names})
    record = json.loads(ds.attrs["features"])
    coords = {}
    for name, kept in record["coords"].items():
        if name in ds.variables:
            coords[name] = Coord(_dims(ds, name), _restore(name, ds[name].values, kept["dtype"]), kept["attrs"])
    return Labels(dims, shape, coords, record["attrs"])


def _dims(ds: xr.Dataset, name: str) -> tuple[str, ...]:
    return tuple(str(d) for d in ds[name].dims)


def _restore(name: str, values: np.ndarray, dtype_name: str) -> np.ndarray:
    """Values of a coordinate in the dtype that it had."""
    dtype = np.dtype(dtype_name)
    times = values.dtype.kind in "mM"
    if dtype.kind in "mM" and values.dtype.kind == "i":
        # As stored: a count since the epoch in the unit that `_variable` chose.
        return values.astype("i8").view(f"{dtype.kind}8[{_stored_unit(dtype)}]").astype(dtype)
    if times != (dtype.kind in "mM"):
        raise InputError(f"coordinate {name!r} was decoded to {values.dtype}: open the store with decode_times=False")
    return values.astype(dtype, copy=False)


def _variable(name: str, coord: Coord) -> xr.Variable:
    values, attrs = np.asarray(coord.values), _plain(coord.attrs)
    if values.dtype.kind == "O" and not all(type(v) is str for v in values.flat):
        raise InputError(f"coordinate {name!r} holds objects that are not strings: convert or drop it")
    if values.dtype.kind == "f" and values.dtype.itemsize == 2:
        values = values.astype(np.float32)  # pandas has no index of float16
    encoding: dict[str, Any] = {}
    if values.dtype.kind in "mM":
        unit = _stored_unit(values.dtype)
        stored = values.astype(f"{values.dtype.kind}8[{unit}]")
        if not np.array_equal(stored.astype(values.dtype), values, equal_nan=True):
            raise InputError(f"coordinate {name!r} has a finer unit than ns: round it to ns first")
        since = " since 1970-01-01" if values.dtype.kind == "M" else ""
        encoding = {"units": f"{_EPOCH[unit]}{since}", "dtype": "int64"}
        if since:
            encoding["calendar"] = "proleptic_gregorian"
        attrs = {key: value for key, value in attrs.items() if key not in ("units", "calendar")}
        values = stored
    kept = {key: value for key, value in attrs.items() if key not in _DECODED}
    return xr.Variable(coord.dims, values, kept, encoding)


def _stored_unit(dtype: np.dtype) -> str:
    """The one of s, ms, us, ns that holds every time of a datetime64 or timedelta64 dtype."""
    unit, _ = np.datetime_data(dtype)
    if unit in _EPOCH:
        return unit
    return "s" if unit in ("Y", "M", "W", "D", "h", "m") else "ns"


def _dtype_name(dtype: np.dtype) -> str:
    return dtype.kind if dtype.kind in "OT" else dtype.str


def _check_labels(labels: Labels, n_features: int) -> None:
    if labels.size != n_features:
        raise InputError(f"the feature dims {labels.dims} have sizes {labels.sizes}, not {n_features} features in all")
    sizes = dict(zip(labels.dims, labels.sizes, strict=True))
    for name, coord in labels.coords.items():
        if coord.values.shape != tuple(sizes.get(d, -1) for d in coord.dims):
            raise InputError(f"coordinate {name!r} along {coord.dims} does not fit the feature dims {sizes}")
    for name in {*labels.dims, *labels.coords}:
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or "/" in name
            or name.startswith((".", "__"))
            or not name
        ):
            raise InputError(f"the feature dim or coordinate {name!r} cannot be a name in a store: rename it")
        if name in _RESERVED:
            raise InputError(f"the feature dim or coordinate {name!r} has a name that the model itself uses: rename it")


def _is_json(key: object, value: object) -> bool:
    try:
        return isinstance(key, str) and bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _readable(value: Any) -> str | int | float:
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def _item(value: Any) -> Any:
    """A plain Python value of what JSON does not know."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return dict(value) if isinstance(value, Mapping) else str(value)
