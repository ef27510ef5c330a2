"""`pcp`: a low-rank matrix plus a sparse one, for stored matrices: background and foreground, weights and outliers.

Principal component pursuit (Candès, Li, Ma and Wright 2011) with Huber's loss, in factors: right singular vectors and
values are all that is held, every row finds its part of low rank from them, and what these sum up to gives the next
ones. The threshold comes down geometrically to that of the noise; where there is none, the split is exact. Neither part
is ever held.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.folds.rowmaps import RowMap, Through, standardised
from pipeline.kernels.divergence import errors_scale, fitted_rows
from pipeline.kernels.pursuit import (
    Level,
    PursuitSums,
    kept_shares,
    low_rank_rows,
    lowered,
    pursued,
    pursuit_sums,
    settled,
)
from pipeline.matrix import Matrix
from pipeline.robust.method import Certificate, Found, Options, Start, factor_of
from pipeline.solvers import Settings
from pipeline.solvers.solver import CONVERGED, LIMIT, Answer, Cost
from pipeline.sources import ROWS
from pipeline.subspace import Subspace

__all__ = ["LowRankSparse", "split_rows"]

_PASSES = 100
_FREE, _BESIDE = 100, 10  # most components where their number is free, directions beside those that count
_FINEST, _SINGLE = 1e-10, 1e-4  # thresholds, in units: the least, and down to which single precision does
_START = 1_000_000  # entries of the sample that the start is found from


@dataclass(frozen=True, eq=False)
class Pursuit:
    """Fold to what the next right singular vectors are found from, over the features that count, in `unit`s."""

    dtype: np.dtype[Any]
    center: np.ndarray
    factor: np.ndarray
    vectors: np.ndarray
    shares: np.ndarray
    threshold: float
    side: int = ROWS

    def block(
        self, x: np.ndarray, at: tuple[int, int], held: PursuitSums | None, scratch: dict[str, np.ndarray]
    ) -> PursuitSums:
        z = standardised(x, self.center, self.factor)[:, self.factor != 0]
        z = z.astype(np.float32 if self.threshold > _SINGLE else np.float64, copy=False)
        found = pursuit_sums(z, self.vectors, self.shares, self.threshold)
        return found if held is None else held + found

    def combine(self, a: PursuitSums, b: PursuitSums) -> PursuitSums:
        return a + b


@dataclass(frozen=True, eq=False)
class PursuitState:
    """Right singular vectors (d', r) and values (r,) of what is left of the rows without sparse entries, in `unit`s."""

    maps: tuple[RowMap, ...]
    center: np.ndarray
    unit: float
    vectors: np.ndarray
    values: np.ndarray
    level: Level
    finest: float
    squares: float = 0.0
    rows: int = 0
    passes: int = 0
    moved: float = np.inf
    outlying: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class LowRankSparse:
    """Alternation of rows and right singular vectors, one pass a turn; about zero, as a mean is of low rank
    too, unless a center was asked for by its name."""

    settings: Settings
    options: Options
    name: ClassVar[str] = "pcp"

    def surveyed(self) -> bool:
        return True

    def cost(self, X: Matrix) -> Cost:
        n, d = X.shape
        r = self._most(X) + _BESIDE
        return Cost(10, ROWS, 8 * d * r, 4 * 8 * X.block_height * max(d, 1), 4 * 8 * d * r, 80.0 * n * d * r)

    def begin(self, X: Matrix, start: Start, maps: tuple[RowMap, ...]) -> PursuitState:
        assert start.sample is not None
        assert start.center is not None
        moved = isinstance(self.options.center, str)
        center = start.center if moved else np.where(np.isfinite(start.center), 0.0, np.nan)
        factor = factor_of(X, np.isfinite(center))
        z = ((np.where(factor != 0, start.sample - center, 0.0)) * factor)[:, factor != 0]
        low, high = np.percentile(z, [25, 75])
        unit = float(high - low) or float(z.std())
        if not unit > 0:
            raise InputError(f"the rows of {X.name} are all the same: there is no direction in which they vary")
        most = self._most(X)
        z = z[:: -(-z.size // _START)] / unit
        finest = max(_FINEST, float(np.finfo(X.work_dtype).eps * np.abs(z).max()))
        found = pursued(z.astype(np.float32), (X.shape[0], z.shape[1]), most, max(finest, _SINGLE))
        width = min(len(found.values), self._counting(found.values, found.level.threshold, X, z.shape[1]) + _BESIDE)
        return PursuitState(maps, center, unit, found.vectors[:, :width], found.values[:width], found.level, finest)

    def fold(self, X: Matrix, state: PursuitState) -> Through:
        factor = factor_of(X, np.isfinite(state.center)) / state.unit
        shares = self._shares(X, state)
        return Through(
            Pursuit(X.work_dtype, state.center, factor, state.vectors, shares, state.level.threshold), state.maps
        )

    def step(self, X: Matrix, state: PursuitState, summary: PursuitSums | None) -> PursuitState:
        if summary is None:
            raise InputError(f"no row of {X.name} is left to be split")
        shape = X.shape[0], len(state.vectors)
        vectors, squares, _ = np.linalg.svd(summary.images, full_matrices=False)
        values = np.sqrt(squares)
        most, at = self._most(X), state.level.threshold
        old, new = state.values * self._shares(X, state), values * kept_shares(values, at, shape, most)
        lens = state.vectors[:, old > 0]
        turned = (vectors - lens @ (lens.T @ vectors)) * new
        moved = float(np.hypot(np.linalg.norm(turned), np.linalg.norm(old - new)) / np.sqrt(np.prod(shape)))
        level, reason = state.level, LIMIT if state.passes + 1 >= _PASSES else None
        if settled(moved, at):
            level = lowered(level, values, errors_scale(summary.sizes), shape, state.finest)
            reason = CONVERGED if level.threshold > 0.9 * at else reason
        if reason:
            level = state.level
        after = replace(
            state,
            vectors=vectors,
            values=values,
            level=level,
            squares=summary.squares,
            rows=summary.rows,
            passes=state.passes + 1,
            moved=moved,
            outlying=summary.outlying / (summary.rows * shape[1]),
            reason=reason,
        )
        return after if reason else self._widened(X, after)

    def done(self, state: PursuitState) -> str | None:
        return state.reason

    def result(self, X: Matrix, state: PursuitState) -> Found:
        shares = self._shares(X, state)
        counting = int(np.count_nonzero(shares))
        k = max(1, counting) if self._free else min(self._most(X), len(shares))
        counted = factor_of(X, np.isfinite(state.center)) != 0
        components = np.zeros((X.shape[1], k))
        components[counted] = state.vectors[:, :k]
        values = state.values[:k] * state.unit
        answer = Answer(
            components,
            values,
            state.center,
            None,
            float(state.rows),
            max(state.squares * state.unit**2, float(np.square(values).sum())) / state.rows,
            np.full(k, state.moved),
            np.ones(k),  # how near the truth is, is not known
            state.passes,
        )
        done, short = state.reason == CONVERGED, self._free and counting >= self._most(X)
        text = f"the split {'settled' if done else 'did not settle'} in {state.passes} passes"
        text += f" with rank {counting}; {100 * state.outlying:.2g} % of the entries are of the sparse part"
        if short:
            text += f"; more components than {counting} would count: give n_components"
        story = {"unit": state.unit, "threshold": state.level.threshold, "shares": [float(x) for x in shares[:k]]}
        settings = replace(self.settings, center=isinstance(self.options.center, str))
        subspace = replace(answer, provenance={"entries": story}).subspace(X, settings)
        return Found(subspace, Certificate(done and not short, text), measured=True)

    @property
    def _free(self) -> bool:
        return self.settings.rank.wanted in (None, "auto")

    def _most(self, X: Matrix) -> int:
        rank = self.settings.rank
        if rank.open and not self._free:
            raise InputError(f"n_components={rank.wanted!r}: method='pcp' needs a number of components, None or 'auto'")
        return min(rank.most(*X.shape), _FREE) if self._free else rank.most(*X.shape)

    def _shares(self, X: Matrix, state: PursuitState) -> np.ndarray:
        return kept_shares(state.values, state.level.threshold, (X.shape[0], len(state.vectors)), self._most(X))

    def _counting(self, values: np.ndarray, threshold: float, X: Matrix, d: int) -> int:
        counting = int(np.count_nonzero(kept_shares(values, threshold, (X.shape[0], d), self._most(X))))
        return counting if self._free else self._most(X)

    def _widened(self, X: Matrix, state: PursuitState) -> PursuitState:
        """The same with some directions beside those that count, random where there are none yet."""
        d, r = state.vectors.shape
        most = min(self._counting(state.values, state.level.threshold, X, d) + _BESIDE, X.shape[0], d)
        if r >= most:
            return replace(state, vectors=state.vectors[:, :most], values=state.values[:most])
        fresh = np.random.default_rng((self.settings.seed, state.passes)).standard_normal((d, most - r))
        vectors = np.linalg.qr(np.hstack([state.vectors, fresh]))[0]
        vectors[:, :r] = state.vectors
        return replace(state, vectors=vectors, values=np.append(state.values, np.zeros(most - r)))


def split_rows(subspace: Subspace, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low-rank part and sparse part (m, d) of rows in the data's own units; what is left of the rows is noise.

    An entry is of the sparse part where it is more than two thresholds off the low-rank part ('pcp'), or lost more than
    half of its weight in the regression of its row ('dpd').
    """
    story = subspace.provenance["entries"]
    factor = subspace.factor / story["unit"]
    z = standardised(rows, subspace.offset, factor).astype(np.float64)
    basis = np.asarray(subspace.basis.T, np.float64)
    if "shares" in story:
        low = low_rank_rows(z, basis, np.asarray(story["shares"]), story["threshold"]) @ basis.T
        off = np.abs(z - low) > 2 * story["threshold"]
    else:
        spread, sigma = np.asarray(story["spread"]), np.full(z.shape[1], story["sigma"])
        fit = fitted_rows(z, basis, spread, story["alpha"], sigma)
        low, off = fit.scores @ basis.T, fit.weights < 0.5
    stretch = np.divide(1.0, factor, out=np.zeros_like(factor), where=factor != 0)
    nothing = np.where(subspace.present, 0.0, np.nan)
    sparse = np.where(off, z - low, 0.0) * stretch + nothing
    return low * stretch + subspace.offset + nothing, sparse
