"""`PrivateLocal`: a site that computes with noised moments of its rows, and so may say whatever it is asked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.federation.local import Local
from pipeline.federation.privacy import DP, Ledger, noisy, noisy_symmetric
from pipeline.federation.record import Record
from pipeline.folds import About, Moments
from pipeline.folds.clipped import RowClipped
from pipeline.kernels.linalg import eigh_descending, fix_signs
from pipeline.kernels.rounding import Rounding
from pipeline.matrix import Matrix
from pipeline.subspace import Subspace

__all__ = ["PrivateLocal"]

_WIDEST = 4096  # features whose second moments are noised at once


class PrivateLocal(Local):
    """As `Local`, from moments to which noise was added once; every answer follows from these."""

    def __init__(self, X: Matrix, memory: dict[str, Any], asked: DP) -> None:
        super().__init__(X, memory)
        self.asked = asked
        if X.sample_weights is not None:
            raise InputError("privacy counts every sample once: open the site's matrix without sample_weights")
        if X.shape[1] > _WIDEST:
            raise InputError(f"privacy is offered for up to {_WIDEST} features, the site has {X.shape[1]}")

    @property
    def _keeps(self) -> bool:
        return True

    def _moments(self) -> Moments:
        if "private" not in self.memory:
            ledger: Ledger = self.memory.setdefault("ledger", Ledger())
            self.memory["private"] = self._noised(*ledger.spend(self.asked))
        return self.memory["private"]

    def _noised(self, of_mean: float, of_scatter: float) -> Moments:
        n, d = self.X.shape
        rng, limit, factor = np.random.default_rng(), self.asked.row_norm, self.factor(None)
        unit = np.divide(1.0, factor, out=np.zeros(d), where=factor != 0)
        first = self._walk(RowClipped(np.zeros(d), factor, limit))
        mean = noisy(first.sums, 2 * limit, of_mean, rng) / n * unit
        second = self._walk(RowClipped(mean, factor, limit))
        scatter = noisy_symmetric(second.scatter, math.sqrt(2) * limit**2, of_scatter, rng)
        scatter = scatter * unit * unit[:, None]
        about = About(float(n), mean, np.zeros(d, bool), np.zeros(d))
        return Moments(about, n, scatter, np.diag(scatter).copy(), Rounding(), central=True)

    def subspace(self, request: Record) -> Subspace:
        facts, kept, factor = request.facts, self._moments(), self.factor(None)
        z = kept.scatter * factor * factor[:, None]
        spread = float(np.trace(z))
        if not facts["center"]:
            z = z + self.n * np.outer(kept.about.mean * factor, kept.about.mean * factor)
        k = min(int(facts["k"]), *self.X.shape)
        values, vectors = eigh_descending(z, k)
        rows = vectors.T * fix_signs(vectors.T)[:, None]
        dof = max(self.n - 1.0, 1.0) if facts["center"] else self.n
        return Subspace(
            rows,
            np.sqrt(np.maximum(values, 0.0)),
            kept.about.mean,
            self.n,
            spread / dof,
            np.full(k, 1e6),  # nothing is known of the rows themselves
            np.full(k, np.pi / 2),
            weights=self.X.weights,
            centered=bool(facts["center"]),
        )
