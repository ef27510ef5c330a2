"""Dataclasses of arrays as plain JSON and named arrays, and back: what a checkpoint holds. Nothing is pickled.

Only dataclasses and named tuples of this package that are imported already come back: bytes from outside name no code
that would run.

>>> tree, arrays = pack({"a": np.ones(2), "n": (1, 2.5)})
>>> unpack(tree, arrays)["n"], list(arrays)
((1, 2.5), ['a'])
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from pipeline.errors import StoreError

__all__ = ["nbytes_of", "pack", "unpack"]

_PACKAGE = __name__.split(".")[0]
_KINDS = "biufcmM"


def pack(value: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A JSON tree and the arrays that it names; raises TypeError for what is neither numbers nor dataclasses."""
    arrays: dict[str, np.ndarray] = {}
    return _packed(value, "", arrays), arrays


def unpack(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `pack`; raises StoreError for a tree that `pack` would not have made."""
    try:
        return _unpacked(tree, arrays)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise StoreError(f"the state cannot be restored ({error})") from error


def nbytes_of(value: Any) -> int:
    """Bytes of all arrays inside a state."""
    return sum(array.nbytes for array in pack(value)[1].values())


def _packed(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.dtype):
        return {"dtype": value.str}
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return {"scalar": value.item(), "of": value.dtype.str}
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
        name = path or "value"
        arrays[name] = value
        return {"array": name}
    inside = f"{path}." if path else ""
    if not isinstance(value, type) and _ours(type(value)):
        parts = {name: _packed(getattr(value, name), f"{inside}{name}", arrays) for name in _names(value)}
        return {"class": f"{type(value).__module__}:{type(value).__qualname__}", "fields": parts}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(v, f"{inside}{i}", arrays) for i, v in enumerate(value)]}
    if isinstance(value, Mapping):
        return {"dict": {_name(k): _packed(v, f"{inside}{k}", arrays) for k, v in value.items()}}
    if isinstance(value, type) and issubclass(value, np.generic):
        return {"dtype": np.dtype(value).str}
    raise TypeError(f"{path} is a {type(value).__name__}: a state is made of numbers, arrays and our own dataclasses")


def _unpacked(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        return arrays[tree["array"]]
    if "dtype" in tree:
        return np.dtype(tree["dtype"])
    if "scalar" in tree:
        dtype = np.dtype(tree["of"])
        if dtype.kind not in _KINDS:
            raise ValueError(f"no number of {dtype}")
        return dtype.type(tree["scalar"])
    if "tuple" in tree:
        return tuple(_unpacked(v, arrays) for v in tree["tuple"])
    if "list" in tree:
        return [_unpacked(v, arrays) for v in tree["list"]]
    if "dict" in tree:
        return {k: _unpacked(v, arrays) for k, v in tree["dict"].items()}
    return _class(tree["class"])(**{k: _unpacked(v, arrays) for k, v in tree["fields"].items()})


def _class(name: str) -> Any:
    module, _, attribute = name.partition(":")
    found = getattr(sys.modules.get(module), attribute, None) if module.split(".")[0] == _PACKAGE else None
    if not (isinstance(found, type) and _ours(found) and found.__module__ == module):
        raise StoreError(f"the state needs {name!r}, which is no dataclass of this version of the package")
    return found


def _ours(kind: type) -> bool:
    """Whether it is a dataclass, or a named tuple, of this package."""
    named = is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    return named and kind.__module__.split(".")[0] == _PACKAGE


def _names(value: Any) -> list[str]:
    """The parts of a state; what does not count when two are compared is none, and comes back as its default."""
    return [f.name for f in fields(value) if f.compare] if is_dataclass(value) else list(value._fields)


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{key!r} is no name")
    return key
