"""What single precision costs: measured on a few blocks against float64, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

__all__ = ["Rounding", "measured", "rounding_probes"]

# Along random probes errors show the norm of their matrix up to the spread of these: a third of it is seen, or more,
# in all but one case of a thousand, even if errors lie in one direction.
_SAFETY, _PROBES = 3.0, 8
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


def rounding_probes(size: int, seed: int | Sequence[int]) -> np.ndarray:
    """Random vectors (size, r) that rounding is measured with."""
    return np.random.default_rng(seed).standard_normal((size, _PROBES))


def measured(errors: np.ndarray, energy: float) -> Rounding:
    """Rounding of one block of that energy, from its errors (d, r) along random probes."""
    return Rounding(np.square(np.abs(errors)).mean(axis=1), 1, energy, energy)
