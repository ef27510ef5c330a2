"""How far two subspaces of the same features are apart, mode by mode: what `pipeline diff` tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipeline.kernels.blocks import doubled
from pipeline.subspace import Subspace

__all__ = ["Drift", "drift"]


@dataclass(frozen=True, eq=False)
class Drift:
    """Angles in radians between two subspaces.

    Parameters
    ----------
    angles : (min(k, l),) array
        Principal angles, largest first.
    partner : (k,) array of int
        For each mode of the first the one of the second that lies nearest to it (each is taken once), -1: none is left.
    modes : (k,) array
        The angle between them, up to sign.
    ratio : (k,) array
        What the mode's explained variance was multiplied by; NaN where it has no partner.
    outside : float
        Share of the second's explained variance that lies outside of the first.
    mean_shift : float
        Distance of the means in weighted, scaled units, over the root of the first's total variance.
    """

    angles: np.ndarray
    partner: np.ndarray
    modes: np.ndarray
    ratio: np.ndarray
    outside: float
    mean_shift: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; angles in degrees, modes counted from 1."""
        modes = [
            {"mode": i + 1, "partner": int(p) + 1 or None, "degrees": _degrees(a), "variance_ratio": _number(r)}
            for i, (p, a, r) in enumerate(zip(self.partner, self.modes, self.ratio, strict=True))
        ]
        return {
            "principal_angles_degrees": np.degrees(self.angles).tolist(),
            "modes": modes,
            "outside": self.outside,
            "mean_shift": self.mean_shift,
        }

    def __str__(self) -> str:
        angles = ", ".join(f"{a:.3g}" for a in np.degrees(self.angles))
        lines = [
            f"principal angles   {angles} degrees",
            f"outside            {100 * self.outside:.3g} % of the explained variance of B lies outside of A",
            f"mean               moved by {self.mean_shift:.3g} standard deviations",
            "mode  is now  angle (degrees)  variance times",
        ]
        for mode in self.to_dict()["modes"]:
            if mode["partner"] is None:
                lines.append(f"{mode['mode']:>4}  gone")
            else:
                numbers = f"{mode['degrees']:>15.4g}  {mode['variance_ratio']:>14.4g}"
                lines.append(f"{mode['mode']:>4}  {mode['partner']:>6}  {numbers}")
        return "\n".join(lines)


def drift(a: Subspace, b: Subspace) -> Drift:
    """How `b` differs from `a`, each mode beside the one that it has become (the assignment of largest overlaps).

    Raises InputError when the numbers of features differ.

    >>> from pipeline import PCA
    >>> x = np.random.default_rng(0).standard_normal((50, 4)) * [4, 3, 2, 1]
    >>> drift(PCA(2).fit(x).subspace_, PCA(2).fit(x[:, [1, 0, 2, 3]]).subspace_).partner.tolist()
    [1, 0]
    """
    angles = a.distance(b)
    overlap = np.asarray(a.basis, doubled(a.basis.dtype)) @ np.asarray(b.basis, doubled(b.basis.dtype)).conj().T
    rows, columns = linear_sum_assignment(-np.abs(overlap))
    partner, modes, ratio = np.full(a.k, -1), np.full(a.k, np.pi / 2), np.full(a.k, np.nan)
    partner[rows] = columns
    modes[rows] = [_angle(a.basis[i], b.basis[j]) for i, j in zip(rows, columns, strict=True)]
    before, now = a.explained_variance, b.explained_variance
    ratio[rows] = np.divide(now[columns], before[rows], out=np.full(rows.size, np.nan), where=before[rows] > 0)
    inside = np.square(np.abs(overlap)).sum(axis=0)
    outside = float(now @ np.clip(1 - inside, 0, 1) / now.sum()) if now.sum() > 0 else 0.0
    moved = (np.where(b.present, b.mean, 0.0) - np.where(a.present, a.mean, 0.0)) * a.factor
    spread = np.sqrt(a.total_variance) if a.total_variance > 0 else 1.0
    return Drift(angles, partner, modes, ratio, outside, float(np.linalg.norm(moved) / spread))


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    """Between two unit vectors up to sign, or phase; small angles keep their digits."""
    a, b = np.asarray(a, doubled(a.dtype)), np.asarray(b, doubled(b.dtype))
    overlap = np.vdot(b, a)
    b = b * (overlap / abs(overlap) if overlap else 1.0)
    return float(2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))


def _degrees(angle: float) -> float:
    return float(np.degrees(angle))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
