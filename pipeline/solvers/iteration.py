"""What the iterative solvers share: one pass an iteration, along either side, and a certificate out of every pass.

A pass multiplies the second-moment operator C with an orthonormal block Q. The products at hand give the answer so far
and, with no pass more, its certificate; probe columns that are independent of the basis, and deflated by it, bound what
lies outside. What the next block is, and which products are kept, is all that solvers differ in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from pipeline.folds import ColumnFactor, ColumnProduct, Products, RowProduct
from pipeline.folds.columns import Dual, Factor
from pipeline.kernels.blocks import check_energy, doubled, fits_single, single, spread_of
from pipeline.kernels.linalg import eigh_descending, orthonormal
from pipeline.kernels.rounding import rounding_probes
from pipeline.matrix import Matrix
from pipeline.solvers import extraction
from pipeline.solvers.basis import Basis, Probes
from pipeline.solvers.dual_gram import beyond, factored, right_sines, standard
from pipeline.solvers.extraction import Leading, Ritz
from pipeline.solvers.gram import gram_rounding
from pipeline.solvers.solver import COMPLETE, CONVERGED, LIMIT, NO_GAP, STALLED, Answer, Cost, Settings
from pipeline.sources import COLUMNS, ROWS
from pipeline.subspace import Subspace

__all__ = ["Applied", "Iteration", "IterationState", "dear", "moved_by"]

_PROBES, _WARM_PROBES = 8, 32  # few passes sharpen the bound of the latter: there must be more of them
_DEAR = 256 << 20  # bytes from which on a pass counts
_WARM = 2  # passes from a start, without a tol
_AGREE, _FAINT = 1e-9, 1e-8


@dataclass(frozen=True)
class IterationState:
    """What the next pass needs, and the answer of the last."""

    passes: int
    dtype: Any
    basis: Basis
    probes: Probes
    ritz: Ritz | None = None
    left: np.ndarray | None = None
    squares: np.ndarray | None = None
    residual: np.ndarray | None = None
    sines: np.ndarray | None = None
    rounding: float = 0.0
    steady: bool = True
    """Whether no fewer components are wanted than after the pass before."""
    moved: float = np.inf
    history: tuple[float, ...] = ()
    n: float = 0.0
    spread: float = 0.0
    loud: float = 0.0
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    reason: str | None = None
    factor: Factor | None = None

    @classmethod
    def of(cls, state: IterationState) -> Self:
        """The same as the state of a solver that adds to it."""
        return cls(**{name: getattr(state, name) for name in IterationState.__dataclass_fields__})

    @property
    def rank(self) -> int:
        """How many components there are."""
        return 0 if self.squares is None else len(self.squares)


@dataclass(frozen=True)
class Applied:
    """C Q whichever side was walked: the product (m, l + r), sums of squares, rounding, weight, columns with values.

    `loud` is the sum of squares as it was accumulated: what rounding errors are relative to.
    """

    product: np.ndarray
    spread: float
    energy: float
    loud: float
    rounding: float
    n: float
    present: int


@dataclass(frozen=True)
class Iteration:
    """Base of the solvers for leading eigenvectors of Z^T Z (walking rows) or Z Z^T (walking columns)."""

    settings: Settings
    side: int = ROWS
    n_oversamples: int | None = None
    name: ClassVar[str]
    exact: ClassVar[bool] = False

    def advance(self, state: IterationState, basis: Basis, ritz: Ritz | None, most: int) -> Basis:
        """The next block and what is known beside it.

        Parameters
        ----------
        state : IterationState
            With the basis of the pass that has just ended.
        basis : Basis
            All that is known now; its block is the image of the block of that pass.
        ritz : Ritz
            Of all that is known, where the answer is `due`.
        most : int
            Dimension of the space that there is.
        """
        raise NotImplementedError

    def passes(self, X: Matrix) -> int:
        """Passes without a tol."""
        raise NotImplementedError

    def effort(self, X: Matrix) -> int:
        """Passes without a tol, from where it starts."""
        warm = self.settings.start is not None and self.side == ROWS
        return min(_WARM, self.passes(X)) if warm else self.passes(X)

    def due(self, X: Matrix, state: IterationState) -> bool:
        """Whether an answer is to be drawn from the products of this pass."""
        return True

    def settled(self, X: Matrix, state: IterationState) -> bool:
        """Whether, without a tol, further passes would not change the answer by what counts."""
        return False

    def squared(self, X: Matrix) -> bool:
        """Whether the answer is to be drawn by Nystrom extraction, where that is better."""
        return False

    def doubtful(self, X: Matrix, state: IterationState, answer: Leading, theta: np.ndarray) -> bool:
        """Whether, without a tol, that answer is worth a pass more, as Ritz values (q,) show it."""
        return False

    @property
    def n_probes(self) -> int:
        """Columns that bound what lies outside the basis."""
        return _PROBES if self.settings.start is None else _WARM_PROBES

    def width(self, X: Matrix) -> int:
        """Columns of a block: more than asked for, since the extra ones cost little beside the reading."""
        rank, short = self.settings.rank, min(X.shape)
        k = rank.most(*X.shape) if not rank.open else min(32, short)
        return min(k + (max(16, k // 4) if self.n_oversamples is None else self.n_oversamples), short)

    def dtype(self, X: Matrix) -> np.dtype[Any]:
        """In which blocks are multiplied: float32 also for integers that it holds, where an answer may be coarser."""
        return np.dtype(np.float32) if fits_single(X.dtype) and not X.source.implicit and dear(X) else X.block_dtype

    def n_blocks(self, X: Matrix) -> int:
        """Blocks of a basis at most."""
        return 1

    def cost(self, X: Matrix) -> Cost:
        n, d = X.shape
        l, m, dtype = self.width(X) + self.n_probes, X.shape[1 - self.side], self.dtype(X)
        long = 0 if self.side == ROWS else 8 * 3 * d * l
        passes = self.effort(X) + (self.side == COLUMNS)
        basis = self.n_blocks(X) * self.width(X)
        # A basis and its images; in one piece each, what leaks, and two more to extract; and six blocks: what is
        # multiplied, as it is sent, its product, and Ritz vectors with theirs.
        most, held = (8 * m * (blocks * basis + 6 * l) for blocks in (7, 2))
        flops = 4.0 * n * d * l
        return Cost(
            passes, self.side, 8 * m * l, dtype.itemsize * m * l, most + long, flops, state_bytes=held, dtype=dtype
        )

    def init(self, X: Matrix) -> IterationState:
        self.settings.rank.most(*X.shape)
        rng, m, start = np.random.default_rng(self.settings.seed), X.shape[1 - self.side], self.settings.start
        block = rng.standard_normal((m, self.width(X)))
        if start is not None and self.side == ROWS:
            lead = start.basis[: block.shape[1]].conj().T
            block = np.hstack([lead, block[:, lead.shape[1] :]])
        state = IterationState(0, self.dtype(X), Basis.begun(orthonormal(block)), Probes.none(m))
        if start is None or self.side == COLUMNS:
            return state
        # The probes of a warm start see its first pass: it may be the last.
        return replace(self._probed(state, (), block), scale=start.scale)

    def fold(self, X: Matrix, state: IterationState) -> Any:
        dtype = np.dtype(state.dtype)
        if state.reason is not None:
            assert state.left is not None
            return ColumnFactor(dtype, standard(X, self.settings), state.left)
        thin = np.hstack([state.basis.block, state.probes.columns])
        probes = rounding_probes(thin.shape[1], [self.settings.seed, state.passes])
        if self.side == COLUMNS:
            return ColumnProduct(dtype, standard(X, self.settings), probes, thin)
        return RowProduct(dtype, _factor(X, state)[:, None] * thin, state.passes == 0, probes, X.sample_weights)

    def step(self, X: Matrix, state: IterationState, summary: Any) -> IterationState:
        if isinstance(summary, Factor):
            return replace(state, passes=state.passes + 1, factor=summary)
        first = state.passes == 0
        if self.side == ROWS:
            applied, state = self._rows(X, state, summary)
        else:
            applied = self._columns(X, summary)
        state = replace(state, passes=state.passes + 1, n=applied.n, spread=applied.spread, loud=applied.loud)
        if first and state.mean is not None and np.isnan(state.mean).any():
            state, applied = _on_features(state, applied)
        if first and self.side == ROWS and self.settings.scale is not None:
            # The spread became known in this pass: its product is of other units than its basis, and still a start.
            return replace(state, basis=replace(state.basis, block=orthonormal(applied.product[:, : self.width(X)])))
        return self._decide(X, self._multiplied(X, state, applied))

    def done(self, state: IterationState) -> str | None:
        if state.reason is None or (self.side == COLUMNS and state.factor is None):
            return None
        return state.reason

    def result(self, X: Matrix, state: IterationState) -> Subspace:
        if self.side == ROWS:
            return self._answer(X, state)
        assert state.ritz is not None
        return factored(X, state, self.settings, np.linalg.norm(state.ritz.images[:, : state.rank], axis=0))

    def _answer(self, X: Matrix, state: IterationState) -> Subspace:
        assert state.left is not None
        assert state.squares is not None
        assert state.mean is not None
        assert state.residual is not None
        assert state.sines is not None
        dof = max(state.n - 1.0, 0.0) if self.settings.center else state.n
        return Answer(
            state.left,
            np.sqrt(np.maximum(state.squares, 0.0)),
            state.mean,
            state.scale,
            state.n,
            state.spread / dof if dof else 0.0,
            state.residual,
            state.sines,
            state.passes,
        ).subspace(X, self.settings)

    def _rows(self, X: Matrix, state: IterationState, summary: Products) -> tuple[Applied, IterationState]:
        s = self.settings
        thin = np.hstack([state.basis.block, state.probes.columns])
        lens = _factor(X, state)[:, None] * thin
        sums = summary.centred(lens)
        n, mean, present = sums.about.n, sums.about.mean, ~sums.about.absent
        if state.passes == 0:
            nan = np.where(present, 1.0, np.nan)
            scale = spread_of(s.scale, sums.squares / n, mean) * nan if s.scale else None
            state = replace(state, mean=mean * nan, scale=scale)
        factor = _factor(X, state) * present
        spread, loud = state.spread, state.loud
        if state.passes == 0:
            spread, loud = float(factor**2 @ sums.squares), float(factor**2 @ sums.energy)
        product = factor[:, None] * sums.product.conj().T
        middle = np.sqrt(n) * mean * factor
        if not s.center:
            product += np.outer(middle.conj(), np.sqrt(n) * (mean @ lens))
        energy = spread if s.center else spread + float(np.vdot(middle, middle).real)
        rounding = sums.rounding.norm(factor)
        return Applied(product, spread, energy, energy + loud, rounding, n, int(present.sum())), state

    def _columns(self, X: Matrix, summary: Dual) -> Applied:
        n = float(X.shape[0] if X.sample_weights is None else X.sample_weights.sum())
        rounding = summary.rounding.norm(np.ones(X.shape[0]))
        energy = summary.energy
        return Applied(summary.product, summary.squares, energy, summary.loud, rounding, n, summary.present)

    def _multiplied(self, X: Matrix, state: IterationState, applied: Applied) -> IterationState:
        """The state with one product more: the next block, and the answer so far where it is due."""
        check_energy(applied.energy)
        l = state.basis.block.shape[1]
        image = np.ascontiguousarray(applied.product[:, :l])
        most = min(min(X.shape), applied.present)
        grown = state.basis.grown(image)
        if not self.due(X, state):
            state = self._probed(state, grown.known, applied.product[:, l:])
            return replace(state, basis=self.advance(state, grown, None, most))
        whole, images = np.hstack(grown.known), np.hstack(grown.images)
        products = extraction.Products.of(whole, images)
        theta, turn = eigh_descending(products.inner)
        k = self.settings.rank.resolve(np.maximum(theta, 0.0), applied.energy, X.shape[0], applied.present)
        if k > theta.size - min(8, theta.size // 4) and theta.size < most:
            return self._widened(state, images, min(theta.size, most - theta.size))
        k = min(k, theta.size)
        rounding = applied.rounding + gram_rounding(
            state.dtype, applied.loud, float(theta[0]), X.block_height, X.shape[1 - self.side]
        )
        outside = beyond(whole.shape[0], applied.present)
        if theta.size < whole.shape[0]:  # also of as many columns as C has rank: the first of them are random
            state = self._probed(state, grown.known, applied.product[:, l:])
            unseen = max(applied.energy - float(theta.sum()), 0.0) + 1e-14 * applied.energy
            outside = min(unseen, state.probes.bound())
        # As values rise, fewer of them make up a share.
        state = replace(state, steady=not self.settings.rank.open or 0 < state.rank <= k)
        last = self.settings.tol is None and self._enough(X, state)
        if last and self.squared(X) and theta.size < most:
            answer = extraction.nystrom(products, lambda values: k, applied.energy, outside, rounding)
            # Squares lose what is faint; and where both agree, norms of scores are known exactly for Ritz vectors only.
            clear = answer.values[-1] > max(_FAINT * float(theta[0]), 2 * rounding)
            if clear and np.any(answer.values > theta[:k] * (1 + _AGREE)):
                if self.doubtful(X, state, answer, theta):
                    return replace(state, basis=self.advance(state, grown, None, most))
                return self._answered(X, state, answer, theta)
        width = k if last else min(theta.size, max(l, k + 16))
        answer, ritz = extraction.rayleigh_ritz(products, theta, turn, k, width, outside, rounding)
        moved = state.moved if state.ritz is None else moved_by(state.ritz.theta, theta, k)
        state = replace(self._answered(X, state, answer, theta), ritz=ritz, rounding=rounding, moved=moved)
        if last:
            return state
        return replace(
            state,
            basis=self.advance(state, grown, ritz, most),
            history=(*state.history, float(np.linalg.norm(ritz.leak[:, :k]))),
        )

    def _answered(self, X: Matrix, state: IterationState, answer: Leading, theta: np.ndarray) -> IterationState:
        sines, largest = answer.sines, float(theta[0])
        if self.side == COLUMNS:
            sines = right_sines(sines, answer.values, largest, X.shape[0], state.dtype)
        floor = max(np.finfo(float).eps * largest, np.finfo(float).tiny)
        residual = answer.sizes / np.maximum(answer.values, floor)
        return replace(state, left=answer.vectors, squares=answer.values, residual=residual, sines=sines)

    def fresh(self, state: IterationState, width: int, *stream: int) -> np.ndarray:
        """Random columns (m, width), those of a stream of numbers, zero at features without values."""
        rng = np.random.default_rng([self.settings.seed, *stream])
        columns = rng.standard_normal((len(state.basis.block), width))
        if self.side == ROWS and state.mean is not None:
            columns *= np.isfinite(state.mean)[:, None]
        return columns

    def _widened(self, state: IterationState, images: np.ndarray, more: int) -> IterationState:
        """A wider block, where more components are wanted than the basis can hold."""
        fresh = self.fresh(state, more, images.shape[1])
        basis = Basis.begun(orthonormal(np.hstack([images, fresh])))
        return replace(state, basis=basis, probes=Probes.none(len(images)), ritz=None, sines=None, squares=None)

    def _probed(self, state: IterationState, known: Sequence[np.ndarray], image: np.ndarray) -> IterationState:
        """With probes that bound what the basis leaves of C, or sharpen that bound, in the next pass."""
        if state.probes:
            return replace(state, probes=state.probes.sharpened(known, image))
        # Only now: a random basis, that of the first pass, would hide a part.
        return replace(state, probes=self.fresh_probes(state))

    def fresh_probes(self, state: IterationState, beside: Sequence[np.ndarray] = ()) -> Probes:
        """Random ones, without their part in blocks that every later basis has in it."""
        return Probes.drawn(len(state.basis.block), self.n_probes, [self.settings.seed, 1, state.passes], beside)

    def _decide(self, X: Matrix, state: IterationState) -> IterationState:
        """Go on, or stop with a reason; float32 that stands in the way of tol is left for float64."""
        tol, ritz = self.settings.tol, state.ritz
        exhausted = state.passes >= self.settings.max_passes
        if tol is None:
            enough = self._enough(X, state) and state.squares is not None
            return replace(state, reason=COMPLETE) if enough else state
        if ritz is None or state.sines is None:
            return replace(state, reason=LIMIT) if exhausted and state.squares is not None else state
        if state.sines[-1] <= tol:
            return replace(state, reason=CONVERGED)
        if exhausted:
            return replace(state, reason=LIMIT)
        last, following = float(ritz.theta[state.rank - 1]), float(ritz.theta[state.rank : state.rank + 1].sum())
        gap = last - following
        full = state.basis.block.shape[1] == 0
        stuck = full or (len(state.history) > 4 and state.history[-1] > 0.9 * state.history[-4])
        if 2 * state.rounding < tol * gap and not stuck:
            return state
        if single(state.dtype):
            return self._in_float64(state)
        if gap <= 1e-9 * last or state.rounding >= gap:
            return replace(state, reason=NO_GAP) if full or len(state.history) > 4 else state
        return replace(state, reason=STALLED) if stuck else state

    def _enough(self, X: Matrix, state: IterationState) -> bool:
        """Whether it has done, without a tol, what it sets out to do."""
        known = state.steady or state.passes >= self.settings.max_passes
        return known and (state.passes >= self.effort(X) or self.settled(X, state))

    def _in_float64(self, state: IterationState) -> IterationState:
        """Begin again in float64 from the best block so far: products made in float32 are no use any more."""
        assert state.ritz is not None
        width = max(state.basis.block.shape[1], min(state.ritz.theta.size, state.rank + 16))
        basis = Basis.begun(orthonormal(state.ritz.images[:, :width]))
        return replace(state, dtype=doubled(state.dtype), history=(), basis=basis)


def moved_by(before: np.ndarray, now: np.ndarray, k: int) -> float:
    """The largest change of the leading k eigenvalues, over the next one: per-vector error of Feng et al. (2024)."""
    following = float(now[min(k, len(now) - 1)])
    k = min(k, len(before))
    with np.errstate(over="ignore"):  # nothing follows
        return float(np.abs(now[:k] - before[:k]).max() / max(following, np.finfo(float).tiny))


def dear(X: Matrix) -> bool:
    """Whether a pass over a matrix costs so much that one less is worth an answer that is somewhat coarser."""
    return (X.bytes_a_pass if X.source.implicit else X.nbytes) > _DEAR


def _on_features(state: IterationState, applied: Applied) -> tuple[IterationState, Applied]:
    """A first block without what it has, random as it is, at features that turned out to have no values."""
    assert state.mean is not None
    l = state.basis.block.shape[1]
    left, sizes, right = np.linalg.svd(state.basis.block * np.isfinite(state.mean)[:, None], full_matrices=False)
    kept = sizes > 1e-8
    image = applied.product[:, :l] @ (right[kept].conj().T / sizes[kept])
    state = replace(state, basis=replace(state.basis, block=left[:, kept]))
    return state, replace(applied, product=np.hstack([image, applied.product[:, l:]]))


def _factor(X: Matrix, state: IterationState) -> np.ndarray:
    """(d,) weights / scale as far as the scale is known."""
    factor = np.ones(X.shape[1]) if X.weights is None else X.weights
    return factor if state.scale is None else np.nan_to_num(factor / state.scale)
