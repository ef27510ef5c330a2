"""Second moments of rows: the one pass of the Gram solver.

Sums are taken about a pilot (the mean of the first block that a task reads), so that nothing large cancels, and
combined as `About.joined` says.
For complex data C is the sum of conj(x) x^T, that is X^H X.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.folds.about import About
from pipeline.folds.rows import SHIFTED, Rows, shifted
from pipeline.kernels.blocks import (
    doubled,
    magnitudes,
    out_of_range,
    product_in_float64,
    single,
    spread_of,
    times_in_float64,
)
from pipeline.kernels.rounding import Rounding, measured
from pipeline.sources import ROWS

__all__ = ["Moments", "RowMoments"]


@dataclass(frozen=True)
class Moments:
    """Number of rows, where they lie, and their scatter X^H X (d, d) about the pilot, in double precision.

    The scatter of `central` ones is about the mean. `energy` (d,) are the sums of squares as they were accumulated:
    what rounding errors are relative to.
    """

    about: About
    rows: int
    scatter: np.ndarray
    energy: np.ndarray
    rounding: Rounding
    central: bool = False

    def centred(self) -> Moments:
        """The same moments with the scatter about their own mean."""
        if self.central:
            return self
        scatter = self.scatter - np.outer(self.about.sums.conj(), self.about.shift)
        return replace(self, scatter=scatter, energy=np.diag(self.scatter).real.copy(), central=True)


@dataclass(frozen=True, eq=False)
class RowMoments:
    """Fold to the mean and the scatter of all rows.

    Parameters
    ----------
    dtype : dtype
        In which blocks are multiplied.
    weights : (n,) array, optional
        How much each row counts.
    probes : (d, r) array, optional
        Random vectors that rounding is measured with, in the units that the answer will have; None where blocks are
        not measured.
    scale : str, optional
        What features will be divided by.
    """

    dtype: np.dtype[Any]
    probes: np.ndarray | None
    scale: str | None = None
    weights: np.ndarray | None = None
    side: int = ROWS
    readiness: ClassVar[str] = SHIFTED

    def prepare(self, x: np.ndarray, at: tuple[int, int], first: Rows | None) -> Rows:
        return shifted(x, None if self.weights is None else self.weights[at[0] : at[1]], first)

    def unmeasured(self) -> RowMoments:
        return replace(self, probes=None)

    def block(self, x: Rows, at: tuple[int, int], held: Moments | None, scratch: dict[str, np.ndarray]) -> Moments:
        rows, d = x.x, x.x.shape[1]
        if held is None:
            scatter = np.zeros((d, d), doubled(self.dtype))
            held = Moments(About.pilot_of(x), 0, scatter, np.zeros(d), Rounding())
            scratch["product"] = np.empty((d, d), self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is multiplied once more, in float64
            product = np.matmul(rows.conj().T, rows, out=scratch["product"])
        energy = x.energy
        if out_of_range(energy, rows):
            product = product_in_float64(rows)
            energy = float(np.trace(product).real)
        np.add(held.scatter, product, out=held.scatter)
        rounding = held.rounding.seen(energy)
        if self.probes is not None and single(self.dtype) and held.rounding.due(energy):
            probes = self.probes
            if self.scale is not None:
                squares = np.diag(product).real.astype(np.float64)
                spread = spread_of(self.scale, squares / len(rows), held.about.pilot)
                probes = probes / spread[:, None]
            errors = times_in_float64(product, probes) - product_in_float64(rows, probes)
            rounding = held.rounding + measured(errors, energy)
        return replace(held, about=held.about.plus(x), rows=held.rows + len(rows), rounding=rounding)

    def combine(self, a: Moments, b: Moments) -> Moments:
        about, gap = a.about.joined(b.about)
        a, b = a.centred(), b.centred()
        scatter = a.scatter + b.scatter
        scatter += np.outer(gap.conj(), gap)
        energy = a.energy + b.energy + magnitudes(gap)
        return Moments(about, a.rows + b.rows, scatter, energy, a.rounding + b.rounding, central=True)
