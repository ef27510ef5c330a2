"""What is wrong with a reply, if anything: a site that sends it is left out with this reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.federation.record import Record

__all__ = ["fault"]

_ORTHONORMAL, _SYMMETRIC = 1e-6, 1e-6
_LOUDEST, _MOST_SAMPLES = 1e120, 1e15


def fault(request: Record, reply: Any, d: int) -> str | None:
    """Why a reply to a request cannot be used, or None.

    Parameters
    ----------
    request, reply : Record
    d : int
        Features that the federation has.
    """
    if not isinstance(reply, Record):
        return f"sent a {type(reply).__name__}, not a message"
    if reply.round != request.round:
        return f"stale round: answered round {reply.round} in round {request.round}"
    if reply.kind != request.kind:
        return f"answered {reply.kind!r} when asked for {request.kind!r}"
    if request.kind in _INTEGERS:
        return _integers(request, reply)
    n: Any = reply.facts.get("n")
    if not _number(n) or not 0 < n < _MOST_SAMPLES:
        return f"wrong number of samples: {n!r}"
    shapes, must, judge = _KINDS[request.kind]
    expected = shapes(request, d)
    missing = [name for name in must if name not in reply.arrays]
    if missing:
        return f"sent no {missing[0]}"
    for name, array in reply.arrays.items():
        if name not in expected:
            return f"sent {name!r}, which was not asked for"
        if not _fits(array.shape, expected[name]):
            return f"wrong shape: {name} is {array.shape}, not {_told(expected[name])}"
        if array.dtype.kind != "f" or array.dtype.itemsize < 4:
            return f"wrong dtype: {name} is {array.dtype}"
    mean = reply.arrays.get("mean")
    there = slice(None) if mean is None else np.isfinite(mean)
    for name, array in reply.arrays.items():
        values = array[..., there] if array.shape[-1:] == (d,) and name != "mean" else array
        if not (np.isfinite(values) | np.isnan(values) & (name == "mean")).all():
            return f"NaN or Inf in {name}"
        if np.nanmax(np.abs(values), initial=0.0) > _LOUDEST:
            return f"numbers in {name} that overflow when they are squared"
    if mean is not None and not there.any():  # type: ignore[union-attr]
        return "NaN in every feature of mean"
    return judge(request, reply)


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """None stands for 1 up to what was asked for; negative numbers for at most so many."""
    return len(shape) == len(expected) and all(
        n == e if e is None or e >= 0 else 1 <= n <= -e for n, e in zip(shape, expected, strict=True)
    )


def _told(expected: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if e is None else str(e) if e >= 0 else f'up to {-e}' for e in expected)})"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _integers(request: Record, reply: Record) -> str | None:
    name, dtype, shape = _INTEGERS[request.kind](request)
    array = reply.arrays.get(name)
    if array is None or len(reply.arrays) != 1:
        return f"sent {', '.join(reply.arrays) or 'nothing'}, not {name}"
    if array.dtype != dtype or not _fits(array.shape, shape):
        return f"wrong shape: {name} is {array.dtype} {array.shape}, not {dtype} {_told(shape)}"
    exponent = reply.facts.get("exponent", 0)
    if not isinstance(exponent, int) or isinstance(exponent, bool) or abs(exponent) > 1100:
        return f"wrong exponent: {exponent!r}"
    return None


def _moments(request: Record, reply: Record) -> str | None:
    return "negative sums of squares" if (reply.arrays["squares"] < 0).any() else None


def _subspace(request: Record, reply: Record) -> str | None:
    a = reply.arrays
    rows, values = np.nan_to_num(a["components"]), a["singular_values"]
    if len({len(a[name]) for name in ("components", "singular_values", "residual", "angle_bounds")}) > 1:
        return "wrong shape: as many values as components are needed"
    error = np.abs(rows @ rows.T - np.eye(len(rows))).max()
    if error > _ORTHONORMAL:
        return f"non-orthonormal basis: V V^T is off by {error:.1e}"
    if (values < 0).any() or (np.diff(values) > 1e-9 * values[0]).any():
        return "singular values that are negative or do not fall"
    if (a["residual"] < 0).any() or (a["angle_bounds"] < 0).any():
        return "a negative residual or angle bound"
    variance: Any = reply.facts.get("total_variance")
    if not _number(variance) or variance < 0:
        return f"wrong total variance: {variance!r}"
    centered = reply.facts.get("centered")
    if centered != request.facts["center"]:
        return "centred other than was asked for"
    asked, used = request.arrays.get("scale"), a.get("scale")
    if (asked is None) != (used is None) or (used is not None and not (np.isnan(used) | (used == asked)).all()):
        return "divided by another spread than was asked for"
    kept = float(np.square(values).sum())
    if centered and kept > (1 + 1e-6) * variance * max(float(reply.facts["n"]) - 1, 0) + 1e-300:
        return "components of more variance than there is"
    return None


def _product(request: Record, reply: Record) -> str | None:
    if not _number(reply.facts.get("rounding")) or reply.facts["rounding"] < 0:
        return f"wrong rounding: {reply.facts.get('rounding')!r}"
    product, block = np.asarray(reply.arrays["product"]), request.arrays["block"]
    inner = product @ block.T  # Q C Q^T: what it must be for any rows
    size = max(float(np.linalg.norm(product)), 1e-300)
    if np.abs(inner - inner.T).max() > _SYMMETRIC * size + reply.facts["rounding"]:
        return "a product that no rows have: it is not symmetric"
    if np.linalg.eigvalsh((inner + inner.T) / 2)[0] < -_SYMMETRIC * size - reply.facts["rounding"]:
        return "a product that no rows have: it is not positive"
    return None


def _consensus(request: Record, reply: Record) -> str | None:
    for name in ("apart", "top"):
        if not _number(reply.facts.get(name)) or reply.facts[name] < 0:
            return f"wrong {name}: {reply.facts.get(name)!r}"
    size = float(np.linalg.norm(reply.arrays["given"]))
    return f"a basis of norm {size:.1e}" if size > 1e3 * np.sqrt(len(request.arrays["block"])) else None


_INTEGERS: dict[str, Callable[[Record], tuple[str, Any, tuple[int | None, ...]]]] = {
    "advertise": lambda request: ("key", np.uint8, (32,)),
    "masked": lambda request: ("sum", np.uint64, (-(2**40),)),
    "recover": lambda request: ("seeds", np.uint8, (len(request.facts["gone"]), 32)),
}
"""Kind of a request of a secure sum to the one array that answers it."""
Shapes = Callable[[Record, int], dict[str, tuple[int | None, ...]]]
Judge = Callable[[Record, Record], str | None]


def _shapes_of_subspace(request: Record, d: int) -> dict[str, tuple[int | None, ...]]:
    k = -int(request.facts["k"])
    few = dict.fromkeys(("singular_values", "residual", "angle_bounds"), (k,))
    return {"components": (k, d), **few, "mean": (d,), "scale": (d,), "weights": (d,)}


_KINDS: dict[str, tuple[Shapes, tuple[str, ...], Judge]] = {
    "consensus": (lambda request, d: {"given": (len(request.arrays["block"]), d)}, ("given",), _consensus),
    "moments": (lambda request, d: {"mean": (d,), "squares": (d,), "weights": (d,)}, ("mean", "squares"), _moments),
    "personal": (
        lambda request, d: {**_shapes_of_subspace(request, d), "shared": (len(request.arrays["block"]),)},
        ("components", "singular_values", "mean", "residual", "angle_bounds", "shared"),
        _subspace,
    ),
    "product": (lambda request, d: {"product": (len(request.arrays["block"]), d)}, ("product",), _product),
    "subspace": (
        _shapes_of_subspace,
        ("components", "singular_values", "mean", "residual", "angle_bounds"),
        _subspace,
    ),
}
"""Kind of a request to the shapes of the arrays in a reply, those that must be there, and what else must hold."""
