"""One number of a matrix and two vectors, along either side: what the adjoint test compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.sources import ROWS

__all__ = ["Pair", "Pairing"]


@dataclass(frozen=True)
class Pair:
    """The product u^H X v, and the sum of squares of X v (walking rows) or X^H u (walking columns)."""

    value: complex
    squares: float


@dataclass(frozen=True, eq=False)
class Pairing:
    """Fold to u^H X v for u (n,) and v (d,): from X v where rows are walked, from X^H u where columns are."""

    left: np.ndarray
    right: np.ndarray
    dtype: np.dtype[Any]
    side: int = ROWS

    def block(self, x: Any, at: tuple[int, int], held: Pair | None, scratch: dict[str, Any]) -> Pair:
        dense = isinstance(x, np.ndarray)
        part = slice(*at)
        if self.side == ROWS:
            image = x @ self.right if dense else x.times(self.right[:, None])[:, 0]
            value = np.vdot(self.left[part], image)
        else:
            image = x.conj().T @ self.left if dense else x.adjoint(self.left[:, None])[:, 0]
            value = np.vdot(image, self.right[part])
        found = Pair(complex(value), float(np.vdot(image, image).real))
        return found if held is None else self.combine(held, found)

    def combine(self, a: Pair, b: Pair) -> Pair:
        return Pair(a.value + b.value, a.squares + b.squares)
