"""What single precision costs: measured on a few blocks against float64, never guessed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

__all__ = ["Rounding", "measured"]

_SAFETY = 3.0  # a random probe shows the norm of an error matrix up to its own spread
_LOUDER = 10.0  # a block that has so much more energy than those measured is measured too


@dataclass(frozen=True)
class Rounding:
    """Squared errors per feature (d,) of the measured blocks, their number, and the energy that they and all have.

    Energy is the sum of squares of what is multiplied: rounding errors grow with it.
    """

    squares: np.ndarray | None = field(default=None)
    blocks: int = 0
    measured_energy: float = 0.0
    energy: float = 0.0

    def seen(self, energy: float) -> Rounding:
        """One more block of the same kind was read, and not measured."""
        return replace(self, energy=self.energy + energy)

    def due(self, energy: float) -> bool:
        """Whether a block is to be measured: the first, and any that is much louder than those before."""
        return energy > _LOUDER * self.measured_energy

    def __add__(self, other: Rounding) -> Rounding:
        known = [r.squares for r in (self, other) if r.squares is not None]
        return Rounding(
            sum(known[1:], known[0]) if known else None,
            self.blocks + other.blocks,
            self.measured_energy + other.measured_energy,
            self.energy + other.energy,
        )

    def norm(self, factor: np.ndarray) -> float:
        """Bound on the norm of the whole error with each feature multiplied by its factor.

        Errors of blocks are taken to add up in the same direction: more than they do.
        """
        if self.squares is None:
            return 0.0
        size = np.sqrt(self.blocks * float(factor**2 @ self.squares))
        return _SAFETY * size * self.energy / self.measured_energy


def measured(error: np.ndarray, energy: float) -> Rounding:
    """Rounding of one block of that energy, from its error (d,) along a random probe."""
    return Rounding(np.square(np.abs(error)), 1, energy, energy)
