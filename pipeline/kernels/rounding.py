"""What single precision costs: measured on a few blocks against float64, never guessed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

__all__ = ["Rounding", "measured"]

_SAFETY = 3.0  # a random probe shows the norm of an error matrix up to its own spread


@dataclass(frozen=True)
class Rounding:
    """Squared errors per feature (d,) of the measured blocks, their number, and the rows that they and all have."""

    squares: np.ndarray | None = field(default=None)
    blocks: int = 0
    measured_rows: int = 0
    rows: int = 0

    def seen(self, rows: int) -> Rounding:
        """More rows of the same kind were read, and not measured."""
        return replace(self, rows=self.rows + rows)

    def __add__(self, other: Rounding) -> Rounding:
        known = [r.squares for r in (self, other) if r.squares is not None]
        return Rounding(
            sum(known[1:], known[0]) if known else None,
            self.blocks + other.blocks,
            self.measured_rows + other.measured_rows,
            self.rows + other.rows,
        )

    def norm(self, factor: np.ndarray) -> float:
        """Bound on the norm of the whole error with each feature multiplied by its factor.

        Errors of blocks are taken to add up in the same direction: more than they do.
        """
        if self.squares is None:
            return 0.0
        size = np.sqrt(self.blocks * float(factor**2 @ self.squares))
        return _SAFETY * size * self.rows / max(self.measured_rows, 1)


def measured(error: np.ndarray, rows: int) -> Rounding:
    """Rounding of one block of so many rows, from its error (d,) along a random probe."""
    return Rounding(error**2, 1, rows, rows)
