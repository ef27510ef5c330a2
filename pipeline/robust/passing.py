"""What a stream of rows remembers, what more rows make of it, and what it answers: pure functions of a small state.

A uniform sample of all rows that passed is filtered (`filter`) now and then; its cuts, and the sample itself
(`gauge`), are what every other row is held against before it is added to a thin factor. A factor that the sample
contradicts is begun again from the sample. After Diakonikolas, Kane, Pensia and Pittas (2023), whose stream filters
fresh batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.errors import ConvergenceError, InputError, NonfiniteError
from pipeline.folds.rowmaps import Cut, Drawn, Pulled, RowMap, Sieve
from pipeline.kernels.factor import Factor, directions, factor_of_rows
from pipeline.kernels.rank import Rank
from pipeline.kernels.robust import center_and_spread, filter_tolerance
from pipeline.matrix import Matrix, open_matrix
from pipeline.robust.filter import allowed_share, filtered, forgiven, sifted, verified
from pipeline.robust.gauge import Block, Gauge, projected
from pipeline.robust.method import Certificate, Found, Options, looked
from pipeline.solvers import Settings
from pipeline.solvers.solver import Answer

__all__ = [
    "LONGER",
    "WAITING",
    "Passed",
    "Reservoir",
    "StreamState",
    "absorbed",
    "absorbed_block",
    "answered",
    "begun",
    "combined",
    "keys_of",
    "looked_over",
    "passed",
]

_ROWS, _BYTES = 2000, 64 << 20  # of the sample
LONGER = 4
"""Times as many rows have passed at a look at the sample as at the one before."""
WAITING = 256
"""Rows that are judged together at the least."""
_NEWS = 1.01  # times as many rows as at the last look, from which on an answer takes another one
_MORE_RANK = 3  # times the directions that are looked at: the rank of the factor


@dataclass(frozen=True, eq=False)
class Reservoir:
    """The rows (r, d) with the smallest random keys (r,) among all that passed: a uniform sample, of any stream."""

    keys: np.ndarray
    rows: np.ndarray

    def joined(self, other: Reservoir, size: int) -> Reservoir:
        """The sample of both streams."""
        if not len(self.keys) or not len(other.keys):
            some = other if len(other.keys) else self
            keys, rows = some.keys, some.rows
        else:
            keys, rows = np.concatenate([self.keys, other.keys]), np.concatenate([self.rows, other.rows])
        if len(keys) > size:
            least = np.sort(np.argpartition(keys, size - 1)[:size])
            keys, rows = keys[least], rows[least]
        return Reservoir(keys, rows)


@dataclass(frozen=True, eq=False)
class StreamState:
    """All that a stream remembers; plain arrays and numbers, of no more than about d x (sample + 3 rank) entries.

    seen, kept : rows that passed, rows that were not cut off
    waiting : rows that passed last, too few to be judged by themselves
    sample : Reservoir of all rows; factor : of those kept; cuts, pulled : of the last look at the sample
    """

    width: int
    k: int
    eps: float
    center: bool
    seed: int
    size: int
    rank: int
    seen: int = 0
    kept: int = 0
    looked_at: int = 0
    restarts: int = 0
    sample: Reservoir = field(default_factory=lambda: Reservoir(np.zeros(0), np.zeros((0, 0))))
    factor: Factor | None = None
    cuts: tuple[Cut, ...] = ()
    pulled: tuple[Pulled, ...] = ()
    waiting: tuple[np.ndarray, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether as many rows have passed as an answer takes."""
        return self.seen > self.k and (not self.eps or (1 - 2 * self.eps) * self.seen >= self.k + 1)

    @cached_property
    def gauge(self) -> Gauge:
        """What rows are held against until the next look at the sample."""
        maps: tuple[RowMap, ...] = (Sieve(self.cuts), *self.pulled)
        known = self.sample.rows
        for apply in maps:
            known, _ = apply(known, np.arange(len(known)))
        return Gauge(maps, known, self.k, self.rank, self.eps, self.center, self.factor)

    @cached_property
    def contradiction(self) -> float:
        """How many times a variance of the factor is larger, or smaller, than that of the rows of the sample kept."""
        return 1.0 if self.factor is None else _contradiction(self, self.factor)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = [self.sample.keys, self.sample.rows, *self.waiting]
        if self.factor is not None:
            arrays += [self.factor.mean, self.factor.root]
        for cut in (*self.cuts, *(p.ball for p in self.pulled)):
            arrays += [cut.mean, cut.lens, cut.center]
        return sum(a.nbytes for a in arrays)

    def save(self, store: Any) -> None:
        """Write to a new Zarr group at a path."""
        from pipeline.robust.carry import write_state

        write_state(settled(self), store)

    @staticmethod
    def load(store: Any) -> StreamState:
        """The inverse of `save`."""
        from pipeline.robust.carry import read_state

        return read_state(store)

    def combine(self, other: StreamState) -> StreamState:
        """The state of two streams that share no row; raises as `combined` does."""
        return combined(self, other)


def begun(X: Matrix, settings: Settings, options: Options) -> StreamState:
    """The state before the first row; raises InputError where the settings do not serve a stream."""
    if settings.rank.open or settings.rank.wanted is None:
        raise InputError(
            f"n_components={settings.rank.wanted!r}: method='stream' needs a number of components before it begins"
        )
    k, d = int(settings.rank.wanted), X.shape[1]
    if k > d:
        raise InputError(f"n_components={k} is more than the {d} features: ask for fewer")
    size = max(20 * (k + 10), min(_ROWS, _BYTES // (8 * max(d, 1))))
    rank = min(d, max(_MORE_RANK * (k + 10), 48))
    return StreamState(d, k, options.eps, bool(options.center), settings.seed, size, rank)


def absorbed(state: StreamState, z: np.ndarray) -> StreamState:
    """The state after more rows (m, d), in standard units, which it keeps until there are enough to be judged."""
    if z.shape[1] != state.width:
        raise InputError(f"the rows have {z.shape[1]} features, the stream has {state.width}: widths cannot change")
    if not len(z):
        return state
    if not np.isfinite(z).all():
        raise NonfiniteError("NaN or Inf among the entries")
    state = replace(state, seen=state.seen + len(z), waiting=(*state.waiting, z))
    return state if sum(map(len, state.waiting)) < WAITING else settled(state)


def settled(state: StreamState) -> StreamState:
    """The state when no row waits any more, with a look at the sample where much has passed since the last one."""
    if not state.waiting:
        return state
    z = np.concatenate(state.waiting) if len(state.waiting) > 1 else state.waiting[0]
    state = replace(state, seen=state.seen - len(z), waiting=())
    keys = keys_of(state, np.arange(state.seen, state.seen + len(z)))
    with threadpool_limits(1):  # many small products, that threads would wait in
        return _judged(state, z, keys)


def _judged(state: StreamState, z: np.ndarray, keys: np.ndarray) -> StreamState:
    if state.factor is None:
        return _first(state, z, keys)
    state = passed(state, absorbed_block(state, state.gauge, z, keys))
    return looked_over(state) if state.seen >= LONGER * state.looked_at else state


def _first(state: StreamState, z: np.ndarray, keys: np.ndarray) -> StreamState:
    """As long as the sample holds all rows, it is all there is; then it is filtered, and all rows held against it."""
    seen = state.seen + len(z)
    held = state.sample.joined(Reservoir(keys, z), seen)
    if seen <= state.size:
        return replace(state, seen=seen, sample=held)
    state = _with_cuts(replace(state, sample=Reservoir(keys[:0], z[:0]).joined(held, state.size)))
    found = state.gauge.block(held.rows)
    return replace(state, seen=seen, kept=found.kept, looked_at=seen, factor=found.factor)


def absorbed_block(state: StreamState, gauge: Gauge, z: np.ndarray, keys: np.ndarray) -> Passed:
    """What a block adds to a state."""
    drawn = keys < state.sample.keys.max(initial=0.0)
    return Passed(Reservoir(keys[drawn], z[drawn]), gauge.block(z))


def passed(state: StreamState, found: Passed) -> StreamState:
    """The state after a block, or after all blocks of a stage."""
    assert state.factor is not None
    return replace(
        state,
        seen=state.seen + found.block.seen,
        kept=state.kept + found.block.kept,
        sample=state.sample.joined(found.sample, state.size),
        factor=state.factor.merged(found.block.factor, state.rank, state.center),
    )


@dataclass(frozen=True, eq=False)
class Passed:
    """Rows for the sample, and what a block adds to the rest."""

    sample: Reservoir
    block: Block

    def joined(self, other: Passed, state: StreamState) -> Passed:
        """What two blocks add together."""
        sample = self.sample.joined(other.sample, state.size)
        return Passed(sample, self.block.joined(other.block, state.rank, state.center))


def _with_cuts(state: StreamState) -> StreamState:
    """The state with cuts from its sample as it is now: those that it has, where they do, else new ones."""
    rows, how = state.sample.rows, (state.k, state.eps, state.center, state.seed)
    try:
        if state.cuts and not state.pulled:
            *_, found = sifted(rows, *how, Sieve(state.cuts))
            few = 1 - found.total / len(rows) <= allowed_share(state.eps, len(rows))
            if few and not found.sieve.cuts and not found.pulled:
                return state
        *_, found = sifted(rows, *how)
    except InputError:  # nothing varies so far, or nothing but rows that lie
        return replace(state, cuts=(), pulled=())
    return replace(state, cuts=found.sieve.cuts, pulled=found.pulled)


def looked_over(state: StreamState) -> StreamState:
    """New cuts from the sample as it is now; a factor that the sample contradicts is begun again from the sample."""
    state = settled(state)
    if state.factor is None or state.seen < _NEWS * state.looked_at:
        return state
    state = replace(_with_cuts(state), looked_at=state.seen)
    known = state.gauge.known
    if state.contradiction <= filter_tolerance(state.eps, len(known)):
        return state
    factor = factor_of_rows(known, state.rank, state.center)
    return replace(state, factor=factor, kept=len(known), restarts=state.restarts + 1)


def _contradiction(state: StreamState, factor: Factor) -> float:
    if not factor.n:
        return np.inf
    rows, theirs = state.gauge.known, state.gauge.scatter
    ours, strong = directions(factor.rows(state.k + 10)), theirs.rows(state.k)
    lens = np.linalg.qr(np.vstack([ours, directions(strong)]).T)[0]
    scores = projected(rows, factor.mean, lens)
    center, spread = center_and_spread(scores)
    variance = factor.squares(lens) / max(factor.n - 1, 1)
    seen = spread > 1e-9 * scores.std(axis=0)
    if not seen.any():
        return 1.0
    ratio = variance[seen] / spread[seen] ** 2
    shift = np.abs(center[seen] / spread[seen])
    # A center far from that of the sample is a contradiction too.
    few = float(np.square(strong / np.sqrt(max(theirs.n - 1, 1))).sum())
    along = factor.squares(directions(strong).T).sum() / max(factor.n - 1, 1)
    return float(max(ratio.max(), 1 + shift.max() ** 2 if state.center else 1.0, few / max(along, 1e-300)))


def keys_of(state: StreamState, rows: np.ndarray) -> np.ndarray:
    return Drawn(0.0, state.seed).numbers(rows)


def answered(state: StreamState) -> Found:
    """The answer as of now, with centers and components in the units of the rows.

    Raises ConvergenceError where fewer rows have passed than the components need.
    """
    state = looked_over(state)
    if state.factor is None:
        if state.seen <= state.k:
            raise ConvergenceError(f"{state.seen} rows have passed, too few for {state.k} components: go on")
        return filtered(state.sample.rows, state.k, state.eps, state.center, state.seed)
    factor, k = state.factor, state.k
    rows = factor.rows(k + 10)
    dof = max(factor.n - 1, 1.0) if state.center else factor.n
    answer = Answer(
        directions(rows[:k]).T,
        np.linalg.norm(rows[:k], axis=1),
        factor.mean,
        None,
        factor.n,
        factor.energy / dof,
        np.zeros(k),
        np.ones(k),  # what a thin factor may have lost is not known
        1,
    )
    settings = Settings(Rank(k), state.center)
    subspace = answer.subspace(open_matrix(state.sample.rows), settings)
    sieve = Sieve(state.cuts)
    known, at = sieve(state.sample.rows, np.arange(len(state.sample.rows)))
    cut = looked(subspace, np.delete(state.sample.rows, at, axis=0))
    removed = 1 - state.kept / state.seen if not state.restarts else 1 - len(known) / len(state.sample.rows)
    certificate = _certificate(state, removed)
    axes = directions(rows)
    many = replace(subspace, components=axes, singular_values=np.ones(len(axes)))
    scores = looked(many, known)[:, :-1]
    certificate, suspected = verified(certificate, many, scores, k, state.eps, removed)
    sample = looked(subspace, known)
    return Found(subspace, certificate, removed, sieve, sample, True, suspected=suspected, cut=cut)


def _certificate(state: StreamState, removed: float) -> Certificate:
    assert state.factor is not None
    known, ratio = state.gauge.known, state.contradiction
    most = filter_tolerance(state.eps, len(known))
    allowed = forgiven(state.eps) + 1.5 * np.sqrt(max(state.eps * (1 - state.eps), 0.0) / len(state.sample.rows))
    text = f"{100 * removed:.2f} % of {state.seen} rows were cut off in one pass"
    if state.restarts:
        text += f", which began again {state.restarts} times, as the sample of all rows contradicted what had been kept"
    if state.pulled:
        text += f", all that eps={state.eps:g} allows"
        return Certificate(False, f"{text}, and still the tails are too long: rows far out were drawn in")
    if removed > allowed:
        return Certificate(False, f"{text}: more than eps={state.eps:g} promises")
    if state.kept <= len(known) < state.width:
        return Certificate(
            False, f"{text}; that sample is all there is, and too small to vouch for {state.width} features"
        )
    text += f"; what is kept and a sample of {len(known)} differ by up to {ratio:.3g} times in a variance"
    return Certificate(ratio <= most, f"{text}, {'within' if ratio <= most else 'beyond'} the {most:.3g} allowed")


def combined(a: StreamState, b: StreamState) -> StreamState:
    """The state of two streams that share no row.

    Raises
    ------
    InputError
        When they are of other widths or settings, or the same.
    ConvergenceError
        When the rows that one has kept are outliers for both together: what it has merged cannot be taken apart, and no
        summary that merges withstands that (Price and Xun 2024): let one stream read all the rows.
    """
    a, b = settled(a), settled(b)
    for name in ("width", "k", "eps", "center", "seed"):
        if getattr(a, name) != getattr(b, name):
            raise InputError(
                f"the streams have {name}={getattr(a, name)} and {getattr(b, name)}: they cannot be combined"
            )
    same = min(len(a.sample.rows), len(b.sample.rows), 16)
    if same and a.seen == b.seen and np.array_equal(a.sample.rows[:same], b.sample.rows[:same]):
        raise InputError("both states are of the same rows: these would count twice")
    if a.factor is None or b.factor is None:
        less, more = (a, b) if a.factor is None else (b, a)
        return absorbed(more, less.sample.rows.reshape(-1, less.width))
    joined = replace(
        a,
        seen=a.seen + b.seen,
        kept=a.kept + b.kept,
        looked_at=0,
        sample=a.sample.joined(b.sample, a.size),
        factor=a.factor.merged(b.factor, a.rank, a.center),
    )
    found = looked_over(joined)
    if found.restarts > a.restarts:
        raise ConvergenceError(
            "what one stream kept are outliers for both together, and a merged summary cannot be taken apart "
            "(Price and Xun 2024): let one stream read all the rows"
        )
    return found
