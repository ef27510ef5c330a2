"""What a site computes from its own rows, which it never shows: moments, products and its local subspace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.crew import at_most
from pipeline.driver import check_entries, solve
from pipeline.errors import InputError, NonfiniteError
from pipeline.federation.record import Record
from pipeline.federation.standard import pooled
from pipeline.folds import Moments, RowMoments, RowProduct
from pipeline.kernels.linalg import orthonormal
from pipeline.kernels.rank import Rank
from pipeline.kernels.rounding import rounding_probes
from pipeline.matrix import Matrix
from pipeline.plans import prepare
from pipeline.solvers import Settings
from pipeline.solvers.gram import Gram
from pipeline.subspace import Subspace
from pipeline.walk import walk

__all__ = ["Local"]

_KEPT = 512  # features up to which a site keeps its second moments, so that later rounds read nothing


class Local:
    """A matrix, and what its site remembers of it between rounds.

    Parameters
    ----------
    X : Matrix
    memory : dict
        What earlier rounds left; changed in place.
    """

    def __init__(self, X: Matrix, memory: dict[str, Any]) -> None:
        self.X, self.memory = X, memory

    @property
    def n(self) -> float:
        """Samples, or the sum of their weights."""
        return float(self.X.shape[0] if self.X.sample_weights is None else self.X.sample_weights.sum())

    def factor(self, scale: np.ndarray | None) -> np.ndarray:
        """(d,) weights / scale."""
        factor = np.ones(self.X.shape[1]) if self.X.weights is None else self.X.weights
        return factor if scale is None else factor / np.where(np.isfinite(scale), scale, 1.0)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) with NaN at features without values, and sums of squares about it (d,), in the data's units."""
        if self._keeps:
            kept = self._moments()
            about, squares = kept.about, np.maximum(np.diag(kept.scatter), 0.0)
        else:
            lens = np.zeros((self.X.shape[1], 0))
            found = self._walk(RowProduct(self.X.block_dtype, lens, True, None, self.X.sample_weights))
            found = found.centred(lens)
            about, squares = found.about, found.squares
        return np.where(about.absent, np.nan, about.mean), np.where(about.absent, 0.0, squares)

    def standard(self, request: Record) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What rows are centred and divided by: what the sites share, or with 'site' the site's own."""
        facts = request.facts
        mean, scale = request.arrays.get("mean"), request.arrays.get("scale")
        if facts["standardise"] == "site":
            mean, squares = self.moments()
            own = pooled([(self.n, mean, squares)]).scaled(facts["scale"])
            mean, scale = own.mean, own.scale
        return (mean if facts["center"] else None), scale

    def product(self, block: np.ndarray, mean: np.ndarray | None, scale: np.ndarray | None) -> tuple[np.ndarray, float]:
        """Q C (k, d) for the site's second moments C about a mean (about zero without), and a rounding bound."""
        factor = self.factor(scale)
        lens = factor[:, None] * block.T
        if self._keeps:
            kept = self._moments()
            own, there = kept.about.mean, ~kept.about.absent
            product = factor * (kept.scatter @ lens).T
            rounding = kept.rounding.norm(factor * there)
        else:
            probes = rounding_probes(lens.shape[1], 0)
            found = self._walk(RowProduct(self.X.block_dtype, lens, False, probes, self.X.sample_weights)).centred(lens)
            own, there = found.about.mean, ~found.about.absent
            product = factor * found.product
            rounding = found.rounding.norm(factor * there)
        gap = np.where(there, own if mean is None else own - np.where(np.isfinite(mean), mean, own), 0.0) * factor
        return (product + np.outer(self.n * (block @ gap), gap)) * there, rounding

    def top(self, mean: np.ndarray | None, scale: np.ndarray | None) -> float:
        """The largest eigenvalue of the site's second moments over n, made a tenth larger than a few products find."""
        rng, width = np.random.default_rng(0), min(4, self.X.shape[1])
        block, value = orthonormal(rng.standard_normal((self.X.shape[1], width))).T, 0.0
        for _ in range(8):
            image = self.product(block, mean, scale)[0] / self.n
            value = float(np.linalg.norm(image, 2))
            if value == 0:
                break
            block = orthonormal(image.T).T
        return 1.1 * value

    def subspace(self, request: Record) -> Subspace:
        """The site's own leading components, at most as many as were asked for.

        With a standard of its own the units are such that every feature has mean zero and spread one.
        """
        facts, X = request.facts, self.X
        k, center, scale = int(facts["k"]), bool(facts["center"]), request.arrays.get("scale")
        own_scale = facts["scale"] if facts["standardise"] == "site" else None
        seen = replace(X, weights=self.factor(scale)) if scale is not None else X
        n, d = X.shape
        if n < 2:
            none = np.zeros(0)
            empty = Subspace(
                np.zeros((0, d)), none, np.zeros(d), 0.0, 0.0, none, none, weights=seen.weights, centered=center
            )
            found = empty.of_rows(X.read(0))
        else:
            settings = Settings(Rank(min(k, n, d)), center, own_scale)
            if self._keeps:  # nothing is read again: the solver steps with what is kept
                solver = Gram(settings)
                state = solver.step(seen, replace(solver.init(seen), dtype=np.float64), self._moments())
                found = solver.result(seen, state)
            else:
                ready = prepare(seen, settings, "auto", None)
                with at_most(ready.plan.threads):
                    found = solve(ready.matrix, ready.solver)
        if scale is not None:
            found = replace(found, weights=X.weights, scale=np.where(found.present, scale, np.nan))
        if own_scale is not None:
            found = replace(found, scale=None, mean=np.where(found.present, 0.0, np.nan))
        return replace(found, features=None)

    @property
    def _keeps(self) -> bool:
        return self.X.shape[1] <= _KEPT

    def _moments(self) -> Moments:
        if "moments" not in self.memory:
            # In float64: what is kept serves every round.
            fold = RowMoments(np.dtype(np.float64), None, None, self.X.sample_weights)
            self.memory["moments"] = self._walk(fold).centred()
        return self.memory["moments"]

    def _walk(self, fold: Any) -> Any:
        try:
            return walk(self.X, fold)[0]
        except NonfiniteError as error:
            check_entries(self.X)
            raise InputError(f"{self.X.name}: {error}") from error
