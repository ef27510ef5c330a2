"""`stream`: one pass, each row read once; what has passed is kept as a sample of rows, a thin factor and some cuts.

Rows come in stages. The first is held in memory and filtered as a whole (`filter`); from then on every block is held
against a uniform sample of all rows so far, along its own leading directions, before what is left of it is added to the
factor. So neither rows that lie early, late, nor all at once are taken for normal, as long as few of the sample lie.
After each stage, each three times as long as all before it, the cuts are made anew, and a factor that the sample
contradicts is begun again. After Diakonikolas, Kane, Pensia and Pittas (2023), whose stream filters fresh batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import ConvergenceError, InputError, NonfiniteError
from pipeline.folds.rowmaps import Cut, Drawn, RowMap, Sieve, standardised
from pipeline.kernels.factor import Factor, factor_of_rows
from pipeline.kernels.rank import Rank
from pipeline.kernels.robust import center_and_spread, examine, filter_tolerance
from pipeline.matrix import Matrix, open_matrix
from pipeline.robust.filter import check_enough, filtered
from pipeline.robust.method import Certificate, Found, Options, Start, factor_of, looked
from pipeline.solvers import Settings
from pipeline.solvers.solver import COMPLETE, Answer, Cost
from pipeline.sources import ROWS

__all__ = ["Stream", "StreamState", "absorbed", "begun", "combined"]

_ROWS, _BYTES = 2000, 64 << 20  # of the sample
_LONGER = 4  # times as many rows have passed after a stage as before it
_MORE_RANK = 3  # times the directions that are looked at: the rank of the factor


@dataclass(frozen=True, eq=False)
class Reservoir:
    """The rows (r, d) with the smallest random keys (r,) among all that passed: a uniform sample, of any stream."""

    keys: np.ndarray
    rows: np.ndarray

    def joined(self, other: Reservoir, size: int) -> Reservoir:
        """The sample of both streams."""
        keys, rows = np.concatenate([self.keys, other.keys]), np.concatenate([self.rows, other.rows])
        if len(keys) > size:
            least = np.sort(np.argpartition(keys, size - 1)[:size])
            keys, rows = keys[least], rows[least]
        return Reservoir(keys, rows)


@dataclass(frozen=True, eq=False)
class StreamState:
    """All that a stream remembers; plain arrays and numbers, of no more than about d x (sample + 3 rank) entries.

    seen, kept : rows that passed, rows that were not cut off
    sample : Reservoir of all rows; factor : of those kept; cuts : of the last look at the sample
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

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = [self.sample.keys, self.sample.rows]
        if self.factor is not None:
            arrays += [self.factor.mean, self.factor.root]
        for cut in self.cuts:
            arrays += [cut.mean, cut.lens, cut.center]
        return sum(a.nbytes for a in arrays)

    def save(self, store: Any) -> None:
        """Write to a new Zarr group at a path."""
        from pipeline.robust.carry import write_state

        write_state(self, store)

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
    rank = min(d, max(_MORE_RANK * (k + 10), 64))
    return StreamState(d, k, options.eps, bool(options.center), settings.seed, size, rank)


def absorbed(state: StreamState, z: np.ndarray, start: int | None = None) -> StreamState:
    """The state after more rows (m, d), in standard units; they are looked at here and not kept beyond the sample."""
    if z.shape[1] != state.width:
        raise InputError(f"the rows have {z.shape[1]} features, the stream has {state.width}: widths cannot change")
    if not len(z):
        return state
    if not np.isfinite(z).all():
        raise NonfiniteError("NaN or Inf among the entries")
    at = state.seen if start is None else start
    keys = _keys(state, np.arange(at, at + len(z)))
    if state.factor is None:
        return _first(state, z, keys)
    found = _Block.of(state, z, keys)
    return _after(state, found)


def _first(state: StreamState, z: np.ndarray, keys: np.ndarray) -> StreamState:
    """As long as the sample holds all rows, it is all there is; then these rows are filtered as a whole."""
    rows = np.concatenate([state.sample.rows.reshape(-1, state.width), z.astype(np.float64)])
    keys = np.concatenate([state.sample.keys, keys])
    seen = state.seen + len(z)
    if seen <= state.size:
        return replace(state, seen=seen, sample=Reservoir(keys, rows))
    try:
        sieve = _filtered(state, rows).sieve
    except InputError:  # nothing varies so far, or nothing but rows that lie
        sieve = Sieve()
    kept, _ = sieve(rows, np.arange(len(rows)))
    sample = Reservoir(np.zeros(0), rows[:0]).joined(Reservoir(keys, rows), state.size)
    return replace(
        state,
        seen=seen,
        kept=len(kept),
        looked_at=seen,
        sample=sample,
        factor=factor_of_rows(kept, state.rank, state.center),
        cuts=sieve.cuts,
    )


@dataclass(frozen=True, eq=False)
class _Block:
    """What a block adds: rows for the sample, the factor of what is kept, numbers of rows seen and kept."""

    sample: Reservoir
    factor: Factor
    seen: int
    kept: int

    @classmethod
    def of(cls, state: StreamState, z: np.ndarray, keys: np.ndarray) -> _Block:
        """Cuts first, then the block's own leading directions against the sample."""
        assert state.factor is not None
        bound = np.partition(state.sample.keys, -1)[-1] if len(keys) else 0.0
        drawn = keys < bound
        sieve = Sieve(state.cuts)
        kept, _ = sieve(z, np.arange(len(z)))
        known, _ = sieve(state.sample.rows, np.arange(len(state.sample.rows)))
        past = _directions(state.factor.rows(state.k + 10))
        halves = [kept[::2], kept[1::2]]
        factors = [factor_of_rows(half, state.rank, state.center, past) for half in halves]
        found = []
        for rows, own, other in zip(halves, factors, factors[::-1], strict=True):
            inside = _within(state, rows, known, other)
            whole = inside.all()
            found.append(own if whole else factor_of_rows(rows[inside], state.rank, state.center, past))
        factor = found[0].merged(found[1], state.rank, state.center)
        sample = Reservoir(keys[drawn], z[drawn].astype(np.float64))
        return cls(sample, factor, len(z), int(factor.n))

    def joined(self, other: _Block, state: StreamState) -> _Block:
        """What two blocks add together."""
        return _Block(
            self.sample.joined(other.sample, state.size),
            self.factor.merged(other.factor, state.rank, state.center),
            self.seen + other.seen,
            self.kept + other.kept,
        )


def _within(state: StreamState, rows: np.ndarray, known: np.ndarray, other: Factor) -> np.ndarray:
    """(m,) bool: rows of one half of a block that the sample does not contradict, along directions of the past and of
    the other half: along its own, any half is longer than rows that it has not seen."""
    assert state.factor is not None
    if not len(rows) or not state.eps:
        return np.ones(len(rows), bool)
    many = min(state.k + 10, int(other.n) // 4)
    past = _directions(state.factor.rows(state.k))
    q, r = np.linalg.qr(np.vstack([past, _directions(other.rows(many))]).T)
    lens = q[:, np.abs(np.diag(r)) > 1e-6]
    ours, theirs = ((part - state.factor.mean.astype(part.dtype)) @ lens.astype(part.dtype) for part in (rows, known))
    some = theirs.std(axis=0) > 1e-9 * max(float(theirs.std()), np.finfo(float).tiny)
    if len(theirs) <= 2 * lens.shape[1] or not some.any():
        return np.ones(len(rows), bool)
    return examine(ours[:, some].astype(np.float64), state.eps, len(ours), theirs[:, some]).inside


def _after(state: StreamState, found: _Block) -> StreamState:
    """The state after a block, or after all blocks of a stage."""
    assert state.factor is not None
    return replace(
        state,
        seen=state.seen + found.seen,
        kept=state.kept + found.kept,
        sample=state.sample.joined(found.sample, state.size),
        factor=state.factor.merged(found.factor, state.rank, state.center),
    )


def looked_over(state: StreamState) -> StreamState:
    """New cuts from the sample as it is now; a factor that the sample contradicts is begun again from the sample."""
    if state.factor is None or state.looked_at == state.seen:
        return state
    try:
        sieve = _filtered(state, state.sample.rows).sieve
    except InputError:
        sieve = Sieve()
    kept, _ = sieve(state.sample.rows, np.arange(len(state.sample.rows)))
    state = replace(state, cuts=sieve.cuts, looked_at=state.seen)
    before = state.factor
    assert before is not None
    if _contradiction(state, before, kept) <= filter_tolerance(state.eps, len(kept)):
        return state
    factor = factor_of_rows(kept, state.rank, state.center)
    return replace(state, factor=factor, kept=len(kept), restarts=state.restarts + 1)


def _contradiction(state: StreamState, factor: Factor, rows: np.ndarray) -> float:
    """How many times a variance of the factor is larger, or smaller, than that of the rows of the sample kept."""
    if not factor.n:
        return np.inf
    many = state.k + 10
    ours, theirs = _directions(factor.rows(many)), factor_of_rows(rows, state.k, state.center)
    lens = np.linalg.qr(np.vstack([ours, _directions(theirs.rows(state.k))]).T)[0]
    scores = (rows - factor.mean) @ lens
    _, spread = center_and_spread(scores)
    variance = factor.squares(lens) / max(factor.n - 1, 1)
    seen = spread > 1e-9 * scores.std(axis=0)
    if not seen.any():
        return 1.0
    ratio = variance[seen] / spread[seen] ** 2
    shift = np.abs(np.median(scores[:, seen], axis=0) / spread[seen])
    # A center far from that of the sample is a contradiction too.
    few = float(np.square(theirs.rows(state.k) / np.sqrt(max(theirs.n - 1, 1))).sum())
    along = factor.squares(_directions(theirs.rows(state.k)).T).sum() / max(factor.n - 1, 1)
    return float(max(ratio.max(), 1 + shift.max() ** 2 if state.center else 1.0, few / max(along, 1e-300)))


def _filtered(state: StreamState, rows: np.ndarray) -> Found:
    """The answer of `filter` for rows in memory."""
    return filtered(rows, state.k, state.eps, state.center, state.seed)


def _directions(rows: np.ndarray) -> np.ndarray:
    """Rows of a factor as unit vectors; those that are nothing but rounding are left out."""
    size = np.linalg.norm(rows, axis=1)
    real = size > 1e-9 * max(float(size.max(initial=0.0)), np.finfo(float).tiny)
    return rows[real] / size[real, None]


def _keys(state: StreamState, rows: np.ndarray) -> np.ndarray:
    return Drawn(0.0, state.seed).numbers(rows)


def answered(state: StreamState) -> Found:
    """The answer as of now, with centers and components in the units of the rows.

    Raises ConvergenceError where fewer rows have passed than the components need.
    """
    if state.factor is None:
        if state.seen <= state.k:
            raise ConvergenceError(f"{state.seen} rows have passed, too few for {state.k} components: go on")
        return _filtered(state, state.sample.rows)
    state = looked_over(state)
    factor, k = state.factor, state.k
    assert factor is not None
    size = np.linalg.norm(factor.rows(k), axis=1)
    dof = max(factor.n - 1, 1.0) if state.center else factor.n
    answer = Answer(
        _directions(factor.rows(k)).T,
        size,
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
    known, _ = Sieve(state.cuts)(state.sample.rows, np.arange(len(state.sample.rows)))
    removed = 1 - state.kept / state.seen if not state.restarts else 1 - len(known) / len(state.sample.rows)
    return Found(subspace, _certificate(state, removed, known), removed, sample=looked(subspace, known), measured=True)


def _certificate(state: StreamState, removed: float, known: np.ndarray) -> Certificate:
    assert state.factor is not None
    most = filter_tolerance(state.eps, len(known))
    ratio = _contradiction(state, state.factor, known)
    allowed = 1.5 * state.eps + 2 * np.sqrt(max(state.eps * (1 - state.eps), 0.0) / len(state.sample.rows))
    text = f"{100 * removed:.2f} % of {state.seen} rows were cut off in one pass"
    if state.restarts:
        text += f", which began again {state.restarts} times, as the sample of all rows contradicted what had been kept"
    if removed > allowed:
        return Certificate(False, f"{text}: more than eps={state.eps:g} promises")
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


@dataclass(frozen=True, eq=False)
class Stage:
    """Fold of a stretch of the rows (`span`): into the state's sample and factor, or just held where it has none."""

    state: StreamState
    maps: tuple[RowMap, ...]
    factor: np.ndarray
    span: tuple[int, int]
    dtype: np.dtype[Any]
    side: int = ROWS

    def block(self, x: np.ndarray, at: tuple[int, int], held: Any, scratch: dict[str, np.ndarray]) -> Any:
        rows = np.arange(*at) + self.span[0]
        for apply in self.maps:
            x, rows = apply(x, rows)
        if not len(x):
            return held
        if self.state.factor is None:  # which features have values at all is seen when all of them are here
            return [*(held or []), (int(rows[0]), x.astype(np.float64) * self.factor, rows)]
        z = standardised(x, np.zeros(x.shape[1]), self.factor)
        found = _Block.of(self.state, z, _keys(self.state, rows))
        return found if held is None else held.joined(found, self.state)

    def combine(self, a: Any, b: Any) -> Any:
        if a is None or b is None:
            return b if a is None else a
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
    told: Callable[[StreamState], None] | None = None
    """Who is told the last state, so that the stream can go on."""
    name: ClassVar[str] = "stream"

    def surveyed(self) -> bool:
        return False

    def cost(self, X: Matrix) -> Cost:
        state = begun(X, self.settings, self.options)
        n, d = X.shape
        held = 8 * d * (state.size + state.rank)
        return Cost(1, ROWS, held, 3 * 8 * d * X.block_height + 2 * held, 8 * held, 8.0 * n * d * (state.k + 10))

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
        return Stage(state.state, state.maps, factor_of(X, present), (state.at, state.end), X.work_dtype)

    def step(self, X: Matrix, state: Reading, summary: Any) -> Reading:
        at, present = state.state, state.present
        if at.factor is None:
            parts = sorted(summary or [], key=lambda part: part[0])
            z = np.concatenate([part for _, part, _ in parts]) if parts else np.zeros((0, X.shape[1]))
            present = np.asarray(~np.isnan(z).all(axis=0)) if len(z) else np.ones(X.shape[1], bool)
            at = absorbed(at, np.where(present, z, 0.0))
        elif summary is not None:
            at = _after(at, summary)
        n = X.shape[0]
        if state.end >= n:
            return replace(state, state=at, present=present, reason=COMPLETE)
        at = looked_over(at)
        return replace(
            state, state=at, present=present, at=state.end, end=_stage_end(X, state.end, _LONGER * state.end)
        )

    def done(self, state: Reading) -> str | None:
        return state.reason

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
    cuts = (replace(cut, mean=cut.mean * back, lens=cut.lens * factor[:, None]) for cut in found.sieve.cuts)
    return replace(found, subspace=subspace, sieve=Sieve(tuple(cuts)))


def _stage_end(X: Matrix, start: int, least: int) -> int:
    """The first cut of the matrix at or after `least`, so that no stored chunk is read twice."""
    later = X.cuts[(X.cuts >= least) & (X.cuts > start)]
    return int(later[0]) if later.size else X.shape[0]
