"""`watch_drift`: how far a model has moved since an earlier version, and how much of new rows lies outside of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.drift import Drift, drift
from pipeline.errors import InputError
from pipeline.estimators.components import squared_error
from pipeline.estimators.containers import matrix_like
from pipeline.estimators.pca import PCA
from pipeline.folds import RowDigest
from pipeline.matrix import Matrix
from pipeline.rowwise import RowFunction
from pipeline.store import history, load
from pipeline.subspace import Subspace
from pipeline.walk import walk

__all__ = ["Watched", "outside", "watch_drift"]


@dataclass(frozen=True)
class Watched:
    """What was compared and what was found; the reasons for an alert, none when all is well.

    Parameters
    ----------
    version, against : int
        Of the head, and of the version that it is compared with; the same where there is no other.
    angle : float
        Largest principal angle between them, in degrees.
    outside : float
        Share of the explained variance of the head that lies outside of the other.
    energy : float or None
        Share of the energy of new rows that lies outside of the head.
    reasons : tuple of str
    """

    version: int
    against: int
    angle: float
    outside: float
    energy: float | None
    reasons: tuple[str, ...]

    @property
    def alert(self) -> bool:
        """Whether a threshold was exceeded."""
        return bool(self.reasons)

    def __str__(self) -> str:
        if self.reasons:
            return f"ALERT: version {self.version} against {self.against}: {'; '.join(self.reasons)}"
        energy = "" if self.energy is None else f", {100 * self.energy:.3g} % of the rows' energy outside"
        return (
            f"version {self.version} against {self.against}: {self.angle:.3g} degrees, "
            f"{100 * self.outside:.3g} % of the variance outside{energy}"
        )


def watch_drift(
    model: str,
    *,
    against: str | int | None = None,
    source: Any = None,
    newest: int | None = None,
    max_angle: float | None = None,
    max_outside: float | None = None,
    max_energy: float | None = None,
) -> Watched:
    """Compare the head of a model with an earlier version, and with new rows.

    Parameters
    ----------
    model : str
        Path or URL.
    against : int or str, optional
        A version or a tag; default: the version that the head was made from or in the place of.
    source : anything that `open_matrix` opens, optional
        Rows whose energy outside of the head is measured.
    newest : int, optional
        Only the last so many rows of the source.
    max_angle : float, optional
        Degrees above which the largest principal angle is an alert.
    max_outside, max_energy : float, optional
        Shares in [0, 1] above which the head's variance outside of the other, or the rows' outside of the head, is one.

    Raises
    ------
    InputError, StoreError
        When the model, a version or the source cannot be used.
    """
    told = history(model)
    head = next(v for v in told.versions if v.id == told.head)
    if against is None:
        other = next((v for v in told.versions if v.id == head.parent), head)
    else:
        other = told.find(against, model)
    S = load(model, head.id)
    found = drift(load(model, other.id), S)
    energy = None if source is None else outside(S, source, newest)
    angle = float(np.degrees(found.angles[0])) if len(found.angles) else 0.0
    return Watched(
        head.number,
        other.number,
        angle,
        found.outside,
        energy,
        _reasons(found, angle, energy, max_angle, max_outside, max_energy),
    )


def _reasons(
    found: Drift,
    angle: float,
    energy: float | None,
    max_angle: float | None,
    max_outside: float | None,
    max_energy: float | None,
) -> tuple[str, ...]:
    reasons = []
    if max_angle is not None and angle > max_angle:
        reasons.append(f"turned by {angle:.4g} degrees, more than {max_angle:g}")
    if max_outside is not None and found.outside > max_outside:
        reasons.append(f"{100 * found.outside:.4g} % of its variance is new, more than {100 * max_outside:g} %")
    if max_energy is not None and energy is not None and energy > max_energy:
        reasons.append(f"{100 * energy:.4g} % of the rows' energy is outside, more than {100 * max_energy:g} %")
    return tuple(reasons)


def outside(subspace: Subspace, source: Any, newest: int | None = None) -> float:
    """Share of the energy of rows, their squared distance from the model's mean, that lies outside of a subspace.

    >>> x = np.random.default_rng(0).standard_normal((500, 3)) * [3, 0, 1]
    >>> round(outside(PCA(1).fit(x).subspace_, x), 1)  # 1 of 9 + 1
    0.1
    """
    X = matrix_like(PCA.from_subspace(subspace), source, subspace)
    if newest is not None:
        X = X.rows(max(0, X.shape[0] - newest), X.shape[0])
    if not X.shape[0]:
        raise InputError(f"{X.name} has no rows: nothing can be said about them")
    whole = _total(X, subspace, _energy)
    return _total(X, subspace, squared_error) / whole if whole > 0 else 0.0


def _energy(subspace: Subspace, rows: np.ndarray) -> np.ndarray:
    """Squared distance (m,) of rows (m, d) from the mean, in weighted, scaled units."""
    z = (np.where(subspace.present, rows, 0) - subspace.offset) * subspace.factor
    return np.square(np.abs(z)).sum(axis=1)


def _total(X: Matrix, subspace: Subspace, measure: Any) -> float:
    function = RowFunction(partial(measure, subspace), 0, "energy", subspace.present)
    found, _ = walk(X, RowDigest(function, X.work_dtype, X.sample_weights))
    return float(found.powers[0])
