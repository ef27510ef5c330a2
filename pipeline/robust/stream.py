"""`stream`: one pass, each row read once; what has passed is kept as a sample of rows, a thin factor and some cuts.

Rows come in stages. The first is held in memory until it is more than the sample; from then on every block is held
against a uniform sample of all rows so far before what is left of it is added to the factor (`passing`). So neither
rows that lie early, late, nor all at once are taken for normal, as long as few of the sample lie. After a stage, each
three times as long as all before it, the cuts are made anew, and a factor that the sample contradicts is begun again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.errors import InputError
from pipeline.folds.rowmaps import RowMap, Sieve, collected, standardised
from pipeline.matrix import Matrix
from pipeline.robust.filter import check_enough
from pipeline.robust.gauge import AT_A_TIME, Gauge
from pipeline.robust.method import Found, Options, Start, factor_of
from pipeline.robust.passing import (
    LONGER,
    StreamState,
    absorbed,
    absorbed_block,
    answered,
    begun,
    keys_of,
    looked_over,
    passed,
)
from pipeline.solvers import Settings
from pipeline.solvers.solver import COMPLETE, Cost
from pipeline.sources import ROWS

__all__ = ["Stream", "placed"]

_TOGETHER = 2048  # rows


@dataclass(frozen=True, eq=False)
class Stage:
    """Fold of the rows between some cuts: into the state's sample and factor, or just held where it has none."""

    state: StreamState
    maps: tuple[RowMap, ...]
    factor: np.ndarray
    cuts: np.ndarray
    dtype: np.dtype[Any]
    gauge: Gauge | None = None
    side: int = ROWS

    def block(self, x: np.ndarray, at: tuple[int, int], held: Any, scratch: dict[str, np.ndarray]) -> Any:
        rows = np.arange(*at)
        for apply in self.maps:
            x, rows = apply(x, rows)
        if not len(x):
            return held
        if self.gauge is None:  # which features have values at all is seen when all of them are here
            return [*(held or []), (int(rows[0]), x * self.factor.astype(x.dtype))]
        if (self.factor == 1).all() and np.isfinite(x).all():
            z = x
        else:
            z = standardised(x, np.zeros(x.shape[1]), self.factor)
        found = absorbed_block(self.state, self.gauge, z, keys_of(self.state, rows))
        return found if held is None else held.joined(found, self.state)

    def combine(self, a: Any, b: Any) -> Any:
        return a + b if isinstance(a, list) else a.joined(b, self.state)


@dataclass(frozen=True, eq=False)
class Reading:
    """How far the stream has come in a matrix."""

    state: StreamState
    maps: tuple[RowMap, ...]
    present: np.ndarray | None = None
    at: int = 0
    end: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Stream:
    """One pass over the rows of a matrix, in stages."""

    settings: Settings
    options: Options
    told: Callable[[StreamState], None] | None = field(default=None, compare=False)
    """Who is told the last state, so that the stream can go on."""
    name: ClassVar[str] = "stream"

    def surveyed(self) -> bool:
        return False

    def cost(self, X: Matrix) -> Cost:
        state = begun(X, self.settings, self.options)
        n, d = X.shape
        held, height = 8 * d * (state.size + state.rank), max(X.block_height, _together(X))
        return Cost(1, ROWS, held, 3 * 8 * d * height + 2 * held, 8 * held, 8.0 * n * d * (state.k + 10))

    def begin(self, X: Matrix, start: Start, maps: tuple[RowMap, ...]) -> Reading:
        if isinstance(self.options.center, str):
            raise InputError(
                f"center={self.options.center!r}: a stream is about the mean of the rows it keeps, or zero"
            )
        if X.sample_weights is not None:
            raise InputError("method='stream' counts every row once: open the data without sample_weights")
        check_enough(X, self.settings.rank, self.options.eps)
        state = begun(X, self.settings, self.options)
        return Reading(state, maps, end=_stage_end(X, 0, state.size))

    def fold(self, X: Matrix, state: Reading) -> Stage:
        present = np.ones(X.shape[1], bool) if state.present is None else state.present
        gauge = None if state.state.factor is None else state.state.gauge
        cuts = _joined(X, state.at, state.end, 1 if gauge is None else _together(X))
        return Stage(state.state, state.maps, factor_of(X, present), cuts, X.work_dtype, gauge)

    @threadpool_limits.wrap(limits=1)  # a look at the sample is many small products, that threads would wait in
    def step(self, X: Matrix, state: Reading, summary: Any) -> Reading:
        at, present = state.state, state.present
        if at.factor is None:
            z = collected(summary, X.shape[1])
            present = np.asarray(~np.isnan(z).all(axis=0)) if len(z) else np.ones(X.shape[1], bool)
            at = absorbed(at, z if present.all() else np.where(present, z, 0))
        elif summary is not None:
            at = passed(at, summary)
        n = X.shape[0]
        if state.end >= n:
            return replace(state, state=at, present=present, reason=COMPLETE)
        at = looked_over(at)
        return replace(state, state=at, present=present, at=state.end, end=_stage_end(X, state.end, LONGER * state.end))

    def done(self, state: Reading) -> str | None:
        return state.reason

    @threadpool_limits.wrap(limits=1)
    def result(self, X: Matrix, state: Reading) -> Found:
        assert state.present is not None
        last = looked_over(state.state)
        if self.told is not None:
            self.told(last)
        return placed(answered(last), X, state.present)


def placed(found: Found, X: Matrix, present: np.ndarray) -> Found:
    """The answer in the units and with the labels of a matrix."""
    s, factor = found.subspace, factor_of(X, present)
    if not s.total_variance > 0:
        raise InputError(f"the rows of {X.name} are all the same: there is no direction in which they vary")
    mean = np.divide(s.mean, factor, out=np.zeros_like(s.mean), where=factor != 0)
    components = np.where(present, s.components, np.nan).astype(X.work_dtype)
    subspace = replace(
        s, components=components, mean=np.where(present, mean, np.nan), weights=X.weights, features=X.features
    )
    back = np.divide(1.0, factor, out=np.zeros_like(factor), where=factor != 0)
    sieve, suspected = (
        Sieve(tuple(replace(cut, mean=cut.mean * back, lens=cut.lens * factor[:, None]) for cut in part.cuts))
        for part in (found.sieve, found.suspected)
    )
    return replace(found, subspace=subspace, sieve=sieve, suspected=suspected)


def _together(X: Matrix) -> int:
    """Rows that are judged together at the least: of few, too little is seen, and each look costs the same."""
    return min(_TOGETHER, AT_A_TIME // (X.shape[1] * X.work_dtype.itemsize))


def _joined(X: Matrix, start: int, stop: int, least: int) -> np.ndarray:
    """The cuts of the matrix from start to stop, but for those between blocks of too few rows."""
    edges = [start]
    for cut in X.cuts[(X.cuts > start) & (X.cuts < stop)].tolist():
        if cut - edges[-1] >= least:
            edges.append(cut)
    return np.array([*edges, stop])


def _stage_end(X: Matrix, start: int, least: int) -> int:
    """The first cut of the matrix at or after `least`, so that no stored chunk is read twice."""
    later = X.cuts[(X.cuts >= least) & (X.cuts > start)]
    return int(later[0]) if later.size else X.shape[0]
