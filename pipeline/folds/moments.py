"""Second moments of rows: the one pass of the Gram solver.

Sums are taken about a pilot (the mean of the first block that a task reads), so that nothing large cancels, and
combined by the formula of Chan, Golub and LeVeque (1983): C = C1 + C2 + n1 n2 / n (mu1 - mu2)(mu1 - mu2)^T.
For complex data C is the sum of conj(x) x^T, that is X^H X.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import NonfiniteError
from pipeline.folds.rows import SHIFTED, Rows, shifted
from pipeline.kernels.blocks import doubled, magnitudes, out_of_range, product_in_float64, single, spread_of
from pipeline.kernels.rounding import Rounding, measured
from pipeline.sources import ROWS

__all__ = ["Moments", "RowMoments", "chan"]


@dataclass(frozen=True)
class Moments:
    """Weight n, number of rows, sums (d,) and scatter X^H X (d, d) about a pilot (d,), in double precision.

    The scatter of `central` ones is about the mean; the mean itself is kept as pilot + sums / n, as two large means are
    not to be rounded before they are compared. `energy` (d,) are the sums of squares as they were accumulated: what
    rounding errors are relative to.
    """

    n: float
    rows: int
    pilot: np.ndarray
    absent: np.ndarray
    sums: np.ndarray
    scatter: np.ndarray
    energy: np.ndarray
    rounding: Rounding
    central: bool = False

    @property
    def shift(self) -> np.ndarray:
        """(d,) from the pilot to the weighted mean."""
        return self.sums / self.n if self.n else np.zeros_like(self.sums)

    @property
    def mean(self) -> np.ndarray:
        """(d,) weighted mean."""
        return self.pilot + self.shift

    def centred(self) -> Moments:
        """The same moments with the scatter about their own mean."""
        if self.central:
            return self
        scatter = self.scatter - np.outer(self.sums.conj(), self.shift)
        return replace(self, scatter=scatter, energy=np.diag(self.scatter).real.copy(), central=True)


def chan(a: Any, b: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """Weight, sums about the first pilot, and sqrt(n1 n2 / n) (mu1 - mu2) of two sets of rows.

    Raises NonfiniteError where they miss different features.
    """
    if not np.array_equal(a.absent, b.absent):
        raise NonfiniteError("a feature is NaN in some samples only")
    n = a.n + b.n
    apart = a.pilot - b.pilot
    return n, a.sums + b.sums - b.n * apart, np.sqrt(a.n * b.n / n if n else 0.0) * (apart + (a.shift - b.shift))


@dataclass(frozen=True, eq=False)
class RowMoments:
    """Fold to the mean and the scatter of all rows.

    Parameters
    ----------
    dtype : dtype
        In which blocks are multiplied.
    weights : (n,) array, optional
        How much each row counts.
    probe : (d,) array, optional
        A random vector that rounding is measured with, in the units that the answer will have; None where blocks are
        not measured.
    scale : str, optional
        What features will be divided by.
    """

    dtype: np.dtype[Any]
    probe: np.ndarray | None
    scale: str | None = None
    weights: np.ndarray | None = None
    side: int = ROWS
    readiness: ClassVar[str] = SHIFTED

    def prepare(self, x: np.ndarray, at: tuple[int, int], first: Rows | None) -> Rows:
        return shifted(x, None if self.weights is None else self.weights[at[0] : at[1]], first)

    def unmeasured(self) -> RowMoments:
        return replace(self, probe=None)

    def block(self, x: Rows, at: tuple[int, int], held: Moments | None, scratch: dict[str, np.ndarray]) -> Moments:
        rows, d = x.x, x.x.shape[1]
        if held is None:
            scatter = np.zeros((d, d), doubled(self.dtype))
            held = Moments(0.0, 0, x.pilot, x.absent, np.zeros(d), scatter, np.zeros(d), Rounding())
            scratch["product"] = np.empty((d, d), self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is multiplied once more, in float64
            product = np.matmul(rows.conj().T, rows, out=scratch["product"])
        energy = x.energy
        if out_of_range(energy, rows):
            product = product_in_float64(rows)
            energy = float(np.trace(product).real)
        np.add(held.scatter, product, out=held.scatter)
        rounding = held.rounding.seen(energy)
        if self.probe is not None and single(self.dtype) and held.rounding.due(energy):
            wide = product.astype(doubled(self.dtype))
            probe = self.probe
            if self.scale is not None:
                probe = probe / spread_of(self.scale, np.diag(wide).real / len(rows), held.pilot)
            rounding = held.rounding + measured(wide @ probe - product_in_float64(rows, probe), energy)
        return replace(
            held, n=held.n + x.weight, rows=held.rows + len(rows), sums=held.sums + x.sums, rounding=rounding
        )

    def combine(self, a: Moments, b: Moments) -> Moments:
        n, sums, gap = chan(a, b)
        a, b = a.centred(), b.centred()
        scatter = a.scatter + b.scatter
        scatter += np.outer(gap.conj(), gap)
        return Moments(
            n,
            a.rows + b.rows,
            a.pilot,
            a.absent,
            sums,
            scatter,
            a.energy + b.energy + magnitudes(gap),
            a.rounding + b.rounding,
            central=True,
        )
