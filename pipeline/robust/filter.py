"""`filter`: leading directions of the rows that are kept, rows that lie along them cut off, until a certificate holds.

The filter of Diakonikolas, Kane, Pensia and Pittas (2023), for k components at once: each round finds the leading
directions of the rows kept so far, a few more than asked for, and holds a random sample of these rows against normal
data along all of them. A tail that is longer is cut off by a hard threshold. Cuts are small records; which rows they
leave out is found again from the rows, so that nothing of the length of the data is ever held. Where eps is spent and
tails are still longer, honest rows have them: these are then drawn in, so that none counts for more than a normal one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import ConvergenceError, InputError
from pipeline.folds.rowmaps import (
    Collected,
    Cut,
    Drawn,
    Moved,
    Pulled,
    RowMap,
    Sieve,
    Through,
    collected,
    slabs,
    standardised,
)
from pipeline.kernels.rank import Rank
from pipeline.kernels.robust import Verdict, examine, filter_tolerance, hills, inflation, normal_ball, outlying
from pipeline.matrix import Matrix, open_matrix
from pipeline.robust.method import Certificate, Found, Options, Start, inner_solver, looked
from pipeline.solvers import Settings, Solver
from pipeline.solvers.solver import CONVERGED, LIMIT, Cost
from pipeline.sources import ROWS
from pipeline.subspace import Subspace

__all__ = [
    "LOOKED_AT",
    "Filter",
    "FilterState",
    "allowed_share",
    "bent",
    "check_enough",
    "filtered",
    "forgiven",
    "sifted",
    "verified",
]

_MORE = 10  # directions that are looked at beside those asked for
_ROUNDS = 30
_BENT, _WARY = 0.03, 0.3  # variance of honest rows that components may miss; eps of the filter that says so
LOOKED_AT = 20_000  # rows of the sample


@dataclass(frozen=True, eq=False)
class FilterState:
    """Where the filter is: the state of the inner solver or its answer, the cuts so far, what the last look saw."""

    maps: tuple[RowMap, ...]
    inner: Any
    found: Subspace | None = None
    sieve: Sieve = field(default_factory=Sieve)
    pulled: tuple[Pulled, ...] = ()
    round: int = 1
    total: float = 0.0
    sample: np.ndarray | None = None
    cut: np.ndarray | None = None
    inflation: float = 1.0
    center: np.ndarray | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Filter:
    """Cut off what lies along the leading directions, again and again."""

    settings: Settings
    options: Options
    alone: bool = False
    """Whether it looks along the components asked for only."""
    name: ClassVar[str] = "filter"

    def surveyed(self) -> bool:
        return False

    def cost(self, X: Matrix) -> Cost:
        cost = self._inner(X).cost(X)
        return replace(cost, passes=2 * (cost.passes + 1), side=ROWS)

    def begin(self, X: Matrix, start: Start, maps: tuple[RowMap, ...]) -> FilterState:
        check_enough(X, self.settings.rank, self.options.eps)
        if isinstance(self.options.center, str) and start.center is not None:
            maps = (*maps, Moved(start.center))
        return FilterState(maps, self._inner(X).init(X), center=start.center)

    def fold(self, X: Matrix, state: FilterState) -> Through:
        maps: tuple[RowMap, ...] = (*state.maps, state.sieve)
        if state.found is None:
            return Through(self._inner(X).fold(X, state.inner), (*maps, *state.pulled))
        drawn = Drawn(LOOKED_AT / max(state.found.n_samples, 1), self.settings.seed + state.round)
        return Through(
            Collected(partial(_looked_through, state.found, state.sieve), X.work_dtype), (*state.maps, drawn)
        )

    def step(self, X: Matrix, state: FilterState, summary: Any) -> FilterState:
        if summary is None:
            raise ConvergenceError(
                f"every row of {X.name} was cut off: more rows lie than eps={self.options.eps:g} promises"
            )
        if state.found is None:
            return self._solved(X, state, summary)
        seen = collected(summary, state.found.k + 2)
        out = seen[:, -1] > 0
        return self._judged(X, replace(state, cut=seen[out, :-1]), seen[~out, :-1])

    def _solved(self, X: Matrix, state: FilterState, summary: Any) -> FilterState:
        inner = self._inner(X)
        at = inner.step(X, state.inner, summary)
        if inner.done(at) is None:
            return replace(state, inner=at)
        found = inner.result(X, at)
        if not found.total_variance > 0 and state.sieve.cuts:
            raise ConvergenceError(
                f"what is left of {X.name} is one row again and again: take a larger eps, or leave out rows that repeat"
            )
        if not found.total_variance > 0:
            raise InputError(f"the rows of {X.name} are all the same: there is no direction in which they vary")
        return replace(state, inner=at, found=found, total=state.total or found.n_samples)

    def _judged(self, X: Matrix, state: FilterState, sample: np.ndarray) -> FilterState:
        """Cuts along the leading directions; none: done."""
        assert state.found is not None
        found, eps = state.found, self.options.eps
        scores = sample[:, :-1]
        # Scores on directions beyond the rank of the data are noise of rounding.
        real = found.singular_values > 1e-7 * found.singular_values[0]
        scores = scores[:, real]
        state = replace(state, sample=sample, inflation=inflation(scores))
        if state.pulled:
            return replace(state, reason=LIMIT)
        spare = np.floor(min(2 * eps, 0.5) * state.total) - (state.total - found.n_samples)
        budget = int(np.ceil(max(spare, 0.0) * len(sample) / found.n_samples))
        nothing = Verdict([], np.ones(len(sample), bool))
        verdict = examine(scores, eps, budget or len(sample)) if eps else nothing
        if not verdict.cuts:
            return replace(state, reason=CONVERGED)
        lens = found.factor[:, None] * found.basis.T.astype(np.float64)[:, real]
        if not budget or state.round >= _ROUNDS:
            center, whitener, radius = normal_ball(scores, eps)
            ball = Cut(found.offset, lens @ whitener, center @ whitener, radius)
            there = center @ found.basis[real]
            back = np.divide(there, found.factor, out=np.zeros_like(there), where=found.factor != 0)
            pulled = Pulled(ball, found.offset + back)
            return replace(state, pulled=(pulled,), found=None, inner=self._inner(X).init(X))
        cuts = tuple(Cut(found.offset, lens @ w, c, threshold) for w, c, threshold in verdict.cuts)
        sieve = Sieve((*state.sieve.cuts, *cuts))
        return replace(state, sieve=sieve, round=state.round + 1, found=None, inner=self._inner(X).init(X))

    def done(self, state: FilterState) -> str | None:
        return state.reason

    def result(self, X: Matrix, state: FilterState) -> Found:
        assert state.found is not None
        assert state.sample is not None
        assert state.cut is not None
        found, rank = state.found, self.settings.rank
        k = found.k if rank.open else rank.most(X.shape[0], int(found.present.sum()))
        sample, cut = (
            np.column_stack([rows[:, :k], np.linalg.norm(rows[:, k:], axis=1)]) for rows in (state.sample, state.cut)
        )
        removed = max(state.total - found.n_samples, 0.0) / state.total
        certificate = self._certificate(state, removed)
        certificate, suspected = verified(certificate, found, state.sample[:, :-1], k, self.options.eps, removed)
        sieve = state.sieve
        if isinstance(self.options.center, str) and state.center is not None:
            found = replace(found, mean=state.center, centered=True)
            sieve, suspected = sieve.moved(state.center), suspected.moved(state.center)
        return Found(
            found.truncate(k),
            certificate,
            removed,
            sieve,
            sample,
            True,
            suspected=suspected,
            pulled=state.pulled,
            cut=cut,
        )

    def _certificate(self, state: FilterState, removed: float) -> Certificate:
        assert state.sample is not None
        eps, looked_at = self.options.eps, len(state.sample)
        most = filter_tolerance(eps, looked_at)
        share = forgiven(eps) + np.sqrt(eps * (1 - eps) / max(state.total, 1))
        rounds = "1 round" if state.round == 2 else f"{state.round - 1} rounds"
        what = f"{100 * removed:.2f} % of the rows were cut off in {rounds}"
        if state.pulled:
            what += f", all that eps={eps:g} allows"
            return Certificate(False, f"{what}, and still the tails are too long: rows far out were drawn in")
        if removed > share:
            return Certificate(False, f"{what}: more than eps={eps:g} promises")
        ratio = f"variances of the rest are up to {state.inflation:.3g} times their robust counterparts"
        if state.inflation > most:
            return Certificate(False, f"{what}, but {ratio}, where {most:.3g} is allowed: the tails are not normal")
        return Certificate(True, f"{what}; {ratio}, within the {most:.3g} that is allowed")

    def _inner(self, X: Matrix) -> Solver[Any]:
        rank = self.settings.rank if self.alone else wider(X, self.settings.rank)
        center = self.settings.center and not isinstance(self.options.center, str)
        return inner_solver(X, replace(self.settings, rank=rank, center=center), self.options.solver)


def _looked_through(found: Subspace, sieve: Sieve, rows: np.ndarray) -> np.ndarray:
    """(m, k + 2) scores, distances, and 1 where a row is cut off."""
    out = np.ones(len(rows))
    out[sieve(rows, np.arange(len(rows)))[1]] = 0
    return np.column_stack([looked(found, rows), out])


@dataclass(frozen=True)
class UpTo(Rank):
    """As many components as asked for, or all that there are."""

    def most(self, n: int, d: int) -> int:
        return min(int(self.wanted), n, d)  # type: ignore[arg-type]


def wider(X: Matrix, rank: Rank) -> Rank:
    """Some more components than were asked for, as far as there are rows to judge them by."""
    if rank.open:
        return rank
    n, d = X.shape
    k = rank.most(n, d)
    return UpTo(min(k + _MORE, max(k, n // 5)))


def forgiven(eps: float) -> float:
    """The share of the rows that may be cut off: eps, and as many again of those that do not lie as are no wonder."""
    return min(1.5 * eps, eps + 0.08 * (1 - eps))


def allowed_share(eps: float, n: int) -> float:
    """How many of n rows may be outlying to a scatter that bears more of them than eps: some that do not lie are."""
    return forgiven(eps) + 1 / np.sqrt(max(n, 1))


def verified(
    certificate: Certificate, found: Subspace, scores: np.ndarray, k: int, eps: float, removed: float
) -> tuple[Certificate, Sieve]:
    """A certificate that holds, held against a scatter that bears half of the rows, whatever eps promises.

    Where more rows than that are outlying to it, by their scores on `found`, it holds no longer, and cuts tell which.
    """
    real = found.singular_values > 1e-7 * found.singular_values.max(initial=0.0)
    if not certificate.holds or not real.any():
        return certificate, Sieve()
    if removed > 0 and hills(scores[:, real], eps):
        return Certificate(False, f"what is left of the rows falls into groups, and eps={eps:g} lets one lie"), Sieve()
    verdict = outlying(scores[:, real], k, removed)
    share = removed + (1 - removed) * float((~verdict.inside).mean())
    if share <= allowed_share(eps, len(scores)):
        return certificate, Sieve()
    lens = found.factor[:, None] * found.basis.T.astype(np.float64)[:, real]
    cuts = tuple(Cut(found.offset, lens @ w, c, threshold) for w, c, threshold in verdict.cuts)
    what = f"{100 * share:.3g} % of the rows are outlying to a scatter that bears half of them"
    return Certificate(False, f"{what}: more than eps={eps:g} promises"), Sieve(cuts)


def bent(subspace: Subspace, rows: np.ndarray, eps: float, seed: int) -> str | None:
    """Why a subspace is not that of the rows (m, d), a sample, that a filter keeps of them; None where it is.

    The filter may cut off half of the rows, whatever eps promises. Held against each other are the number that it cut
    off and eps, and the variances that it and the subspace capture of the rest.
    """
    z = standardised(rows, np.zeros(rows.shape[1]), subspace.factor).astype(np.float64)
    try:
        _, _, at = sifted(z, subspace.k, max(eps, _WARY), subspace.centered, seed)
    except InputError:  # too few rows, or nothing but one
        return None
    assert at.found is not None
    kept = z
    maps: tuple[RowMap, ...] = (at.sieve, *at.pulled)
    for apply in maps:
        kept, _ = apply(kept, np.arange(len(kept)))
    if 1 - len(kept) / len(z) > allowed_share(eps, len(z)):
        return (
            f"a filter cuts off {100 - 100 * len(kept) / len(z):.3g} % of {len(z)} rows: more than eps={eps:g} promises"
        )
    kept = kept - (kept.mean(axis=0) if subspace.centered else 0.0)
    theirs = np.square(kept @ at.found.basis[: subspace.k].T).sum()
    loss = 1 - float(np.square(kept @ subspace.basis.T).sum() / max(theirs, np.finfo(float).tiny))
    if loss <= _BENT + 0.5 * np.count_nonzero(subspace.factor) / max(len(kept), 1):
        return None
    return (
        f"{100 * loss:.2g} % less variance is captured of {len(kept)} rows that a filter keeps than by its components"
    )


def check_enough(X: Matrix, rank: Rank, eps: float) -> None:
    """Raise InputError where too few rows would be left for the components if eps of them, twice, were cut off."""
    n, d = X.shape
    k = 1 if rank.open else rank.most(n, d)
    rows = n if X.sample_weights is None else int(np.count_nonzero(X.sample_weights))
    if eps > 0 and (1 - 2 * eps) * rows < k + 1:
        most = (1 - (k + 1) / max(rows, 1)) / 2
        less = f"eps below {most:.2g}, " if most > 0 else ""
        raise InputError(
            f"{rows} rows are too few for {k} components with eps={eps:g}: take {less}fewer components or more rows"
        )


def sifted(
    rows: np.ndarray, k: int, eps: float, center: bool, seed: int, sieve: Sieve | None = None
) -> tuple[Filter, Matrix, FilterState]:
    """The filter at its end, for rows (m, d) in memory, those that a sieve leaves out apart; raises as it does."""
    method = Filter(Settings(Rank(k), center, seed=seed), Options("filter", eps, center))
    X = replace(open_matrix(rows), name="the sample")
    at = method.begin(X, Start(), () if sieve is None else (sieve,))
    while method.done(at) is None:  # the driver's loop, on rows that are here
        fold, held, start = method.fold(X, at), None, 0
        scratch: dict[str, np.ndarray] = {}
        for slab in slabs(rows):
            held = fold.block(slab.copy(), (start, start + len(slab)), held, scratch)
            start += len(slab)
        at = method.step(X, at, held)
    return method, X, at


def filtered(rows: np.ndarray, k: int, eps: float, center: bool, seed: int) -> Found:
    """The answer of the filter for rows (m, d) in memory; raises as it does."""
    method, X, at = sifted(rows, k, eps, center, seed)
    return method.result(X, at)
