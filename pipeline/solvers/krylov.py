"""`krylov`: randomized block Krylov iteration: the fewest passes; it keeps the products of all of them.

After p passes the basis spans [Q, C Q, …, C^(p-1) Q] (Musco and Musco 2015). When it has grown to its limit it is
restarted from the leading Ritz vectors and their residual (thick restart, Wu and Simon 2000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import NonfiniteError
from pipeline.folds import RowSample, spans, spread_cuts
from pipeline.kernels.blocks import standardise_columns
from pipeline.kernels.leading import leading
from pipeline.kernels.linalg import orthonormal, orthonormal_beside
from pipeline.matrix import Matrix
from pipeline.solvers.basis import Basis
from pipeline.solvers.extraction import Leading, Ritz
from pipeline.solvers.iteration import Iteration, IterationState, dear
from pipeline.solvers.lanczos import Lanczos
from pipeline.solvers.solver import Cost
from pipeline.sources import ROWS, Operator
from pipeline.sources.stream import Stream

__all__ = ["Krylov"]

_BLOCKS = 8
# A sample: one block in so many gives a stretch of rows, these few at least and at most, and they lie so many blocks
# apart; its bytes at most, and its rows at least, as a multiple of the columns.
_ONE_IN, _FEWEST, _STRETCHES, _APART, _SAMPLE_BYTES, _TIMES = 24, 4, 16, 7, 160 << 20, 8
_SHAKEN = 0.3  # how much of a start from it is random, so that it has a part of what the sample does not show
_ALIKE = 0.02  # Ritz values and Nystrom's, from where on a pass more is not worth it
_GAP = 0.1  # after the last eigenvalue, from where on a pass more mostly certifies the answer
_WIDE, _FEW = 64, 32  # columns of a block up to which BLAS takes hardly longer; components for which it is much wider


@dataclass(frozen=True)
class Krylov(Iteration):
    """Block Krylov iteration from a random block, or from what a sample of the rows shows.

    Without a `tol` it takes four passes and Nystrom extraction, for a worst eigenvalue error of about 1e-3 on spectra
    that decay slowly; three from the leading directions of a sample, where one can be taken and shows them; else three
    over blocks of three times as many columns as are asked for, where these are few, which reach as far; five passes
    and Ritz vectors, whose norms of scores are known to the last digit, where a pass costs little. Of data that is
    not made dense every column of a block costs the same: there are fewer of them, and six passes; or, where nothing
    has to be read for a pass, those of `narrowed`: the same number of products then reaches much further.
    """

    name: ClassVar[str] = "krylov"

    def narrowed(self, X: Matrix) -> Lanczos | None:
        """What to do instead if passes cost no reading."""
        s = self.settings
        suits = not self.asked and s.start is None and X.source.implicit and not isinstance(X.source, Operator)
        return Lanczos(s, self.side) if suits else None

    def may_be_wide(self, X: Matrix) -> bool:
        """Whether blocks can be several times as wide as what is asked for, which saves a pass that costs.

        After a start too: it says nothing of what follows its vectors, which a certificate has to know. A sample saves
        the pass as well, and blocks stay slender.
        """
        rank, dense = self.settings.rank, not X.source.implicit
        few = not rank.open and self.n_oversamples is None and rank.most(*X.shape) <= _FEW
        warm = self.settings.start is not None and self.side == ROWS
        return few and dense and (warm or dear(X)) and self.sample(X) is None

    def slender(self, X: Matrix) -> Krylov:
        """The same with blocks that take less memory, and a pass more."""
        return replace(self, n_oversamples=super().width(X) - self.settings.rank.most(*X.shape))

    def width(self, X: Matrix) -> int:
        if self.may_be_wide(X):
            return min(max(_WIDE, 3 * self.settings.rank.most(*X.shape) + 16), min(X.shape))
        return super().width(X)

    def passes(self, X: Matrix) -> int:
        """Three to six, or as many as fill the space after the random start."""
        most = 3 if self.may_be_wide(X) else 4 if dear(X) else 6 if X.source.implicit else 5
        return min(most, 1 - (-min(X.shape) // self.width(X)))

    def sample(self, X: Matrix) -> np.ndarray | None:
        """Stretches all over the matrix, where they are a small part of it and yet several times as many as columns."""
        s, n_blocks, width = self.settings, X.n_blocks, super().width(X)
        given = s.start is not None or s.rank.open
        unfit = self.side != ROWS or X.source.implicit or isinstance(X.source, Operator | Stream)
        if given or unfit or not dear(X) or min(X.shape) <= width:
            return None
        number = min(max(n_blocks // _ONE_IN, _FEWEST), _STRETCHES)
        rows = min(_SAMPLE_BYTES // (X.shape[1] * self.dtype(X).itemsize), number * X.block_height)
        enough = rows >= _TIMES * width and n_blocks >= _APART * number
        return spread_cuts(X.cuts, number, rows) if enough else None

    def effort(self, X: Matrix) -> int:
        return super().effort(X) - (self.sample(X) is not None)

    def cost(self, X: Matrix) -> Cost:
        cost, cuts = super().cost(X), self.sample(X)
        if cuts is None:
            return cost
        taken = spans(cuts)
        rows, read = int(np.diff(taken).sum()), sum(X.source.touched(ROWS, span) for span in taken)
        return replace(cost, sample_bytes=rows * X.shape[1] * self.dtype(X).itemsize, sample_read=read)

    def init(self, X: Matrix) -> IterationState:
        return replace(super().init(X), sample=self.sample(X))

    def fold(self, X: Matrix, state: IterationState) -> Any:
        return super().fold(X, state) if state.sample is None else RowSample(np.dtype(state.dtype), state.sample)

    def step(self, X: Matrix, state: IterationState, summary: Any) -> IterationState:
        if state.sample is None:
            return super().step(X, state, summary)
        return self._begun(X, replace(state, sample=None), summary.rows(), spans(state.sample))

    def _begun(self, X: Matrix, state: IterationState, rows: np.ndarray, taken: np.ndarray) -> IterationState:
        """The state with a first block that spans the leading directions of the rows (m, d) that were taken, about."""
        s, counts = self.settings, None
        if X.sample_weights is not None:
            counts = np.concatenate([X.sample_weights[a:b] for a, b in taken])
        try:
            mean, scale, _ = standardise_columns(rows, X.weights, counts, s.center, s.scale)
        except NonfiniteError:  # the walk of all rows will say where
            return state
        random = state.basis.block * np.isfinite(mean)[:, None]  # nothing at features that have no values here
        lead = leading(rows, random.shape[1], np.random.default_rng([s.seed, 3]))
        block = orthonormal(lead + _SHAKEN * random)
        state = replace(state, basis=Basis.begun(block), scale=scale)
        return state if s.scale else replace(state, probes=self.fresh_probes(state, (block,)))

    def doubtful(self, X: Matrix, state: IterationState, answer: Leading, theta: np.ndarray) -> bool:
        """Whether a start from a sample was not so good.

        Then Ritz values are another answer, or nothing is certified where a gap of theirs lets expect it.
        """
        if self.sample(X) is None or state.passes >= self.passes(X):
            return False
        k = len(answer.values)
        parted = k < theta.size and theta[k] < (1 - _GAP) * theta[k - 1]
        return bool(np.any(answer.values > theta[:k] * (1 + _ALIKE)) or (parted and answer.sines[-1] >= 1))

    @property
    def asked(self) -> bool:
        """Whether every pass is to say how good the answer is."""
        return self.settings.tol is not None or self.settings.rank.open

    def n_blocks(self, X: Matrix) -> int:
        return _BLOCKS + 1 if self.asked else self.effort(X)

    def due(self, X: Matrix, state: IterationState) -> bool:
        return self.asked or state.passes >= self.effort(X)

    def squared(self, X: Matrix) -> bool:
        return self.settings.tol is None and self.side == ROWS and dear(X)

    def advance(self, state: IterationState, basis: Basis, ritz: Ritz | None, most: int) -> Basis:
        l = state.basis.block.shape[1]
        known, images, image = basis.known, basis.images, basis.block
        width = sum(b.shape[1] for b in known)
        if ritz is not None and width + l > _BLOCKS * l:
            known, images, image, width = (ritz.vectors[:, :l],), (ritz.images[:, :l],), ritz.leak[:, :l], l
        width = max(min(l, most - width), 0)
        spare = partial(self.fresh, state, width, 2, state.passes)
        return Basis(known, images, orthonormal_beside(known, image[:, :width], spare))
