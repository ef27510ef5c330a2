"""`Record`: what a site and the coordinator say to each other, and what a federation keeps: arrays and plain facts.

Its bytes are a length, JSON, and the arrays one after the other in little-endian order: nothing in them can run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import FederationError

__all__ = ["Record", "pack", "unpack"]

_MAGIC = b"subspace-pipeline record 1\n"
_DTYPES = ("<f8", "<f4", "<i8", "<u8", "|u1", "|b1")
_LARGEST_HEAD = 1 << 20


@dataclass(frozen=True)
class Record:
    """A message or a state: its kind, the round it belongs to, arrays by name, and facts that JSON can hold."""

    kind: str
    round: int = 0
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its packed form."""
        return len(_head(self)) + len(_MAGIC) + 8 + sum(a.nbytes for a in self.arrays.values())


def pack(record: Record) -> bytes:
    """The bytes of a record.

    >>> unpack(pack(Record("hello", 3, {"x": np.arange(2.0)}, {"k": 1}))).arrays["x"].tolist()
    [0.0, 1.0]
    """
    head = _head(record)
    parts = [_MAGIC, len(head).to_bytes(8, "little"), head]
    for array in record.arrays.values():
        parts.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return b"".join(parts)


def unpack(data: bytes) -> Record:
    """The inverse of `pack`; raises FederationError for anything that `pack` does not make."""
    start = len(_MAGIC) + 8
    if not data.startswith(_MAGIC) or len(data) < start:
        raise FederationError("no message of ours: its first bytes are wrong")
    stop = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    if stop > min(len(data), start + _LARGEST_HEAD):
        raise FederationError("no message of ours: its head is too long")
    try:
        head = json.loads(data[start:stop])
        kind, number, facts = str(head["kind"]), int(head["round"]), dict(head["facts"])
        arrays, at = {}, stop
        for name, dtype, shape in head["arrays"]:
            shape = tuple(int(n) for n in shape)
            if dtype not in _DTYPES or len(shape) > 3 or min(shape, default=0) < 0:
                raise ValueError(f"array {name} of {dtype} {shape}")
            size = math.prod(shape) * np.dtype(dtype).itemsize
            if size > len(data) - at:
                raise ValueError(f"array {name} is cut off")
            arrays[str(name)] = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
            at += size
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise FederationError(f"no message of ours: {error}") from None
    if at != len(data):
        raise FederationError(f"no message of ours: {len(data) - at} bytes too many")
    return Record(kind, number, arrays, facts)


def _head(record: Record) -> bytes:
    arrays = [(name, a.dtype.newbyteorder("<").str, a.shape) for name, a in record.arrays.items()]
    head = {"kind": record.kind, "round": record.round, "facts": dict(record.facts), "arrays": arrays}
    return json.dumps(head).encode()
