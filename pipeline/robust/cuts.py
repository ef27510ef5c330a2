"""The cuts of a filter as text, so that a stored model still knows which rows it leaves out."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.folds.rowmaps import Cut, Sieve

__all__ = ["read_cuts", "written_cuts"]

_MOST = 4 << 20  # characters; cuts of very wide data are not kept, and scores then go by the distances alone


def written_cuts(sieve: Sieve) -> str | None:
    """The cuts as base64 of an npz archive; None where there are none, or they are too large."""
    if not sieve.cuts:
        return None
    arrays: dict[str, Any] = {}
    for i, cut in enumerate(sieve.cuts):
        arrays[f"mean_{i}"], arrays[f"lens_{i}"] = cut.mean, cut.lens
        arrays[f"center_{i}"] = np.append(cut.center, cut.threshold)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    text = base64.b64encode(stream.getvalue()).decode("ascii")
    return text if len(text) <= _MOST else None


@lru_cache(maxsize=8)
def read_cuts(text: str) -> Sieve:
    """The inverse of `written_cuts`."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        number = sum(name.startswith("mean_") for name in arrays)
        ends = [arrays[f"center_{i}"] for i in range(number)]
        return Sieve(
            tuple(
                Cut(arrays[f"mean_{i}"], arrays[f"lens_{i}"], ends[i][:-1], float(ends[i][-1])) for i in range(number)
            )
        )
