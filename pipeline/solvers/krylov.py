"""`krylov`: randomized block Krylov iteration: the fewest passes; it keeps the products of all of them.

After p passes the basis spans [Q, C Q, …, C^(p-1) Q] (Musco and Musco 2015). When it has grown to its limit it is
restarted from the leading Ritz vectors and their residual (thick restart, Wu and Simon 2000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from pipeline.folds import spread_cuts
from pipeline.kernels.linalg import orthonormal_beside
from pipeline.matrix import Matrix
from pipeline.solvers.basis import Basis
from pipeline.solvers.extraction import Ritz
from pipeline.solvers.iteration import Iteration, IterationState, dear
from pipeline.solvers.lanczos import Lanczos
from pipeline.sources import ROWS, Operator
from pipeline.sources.stream import Stream

__all__ = ["Krylov"]

_BLOCKS = 8
# A sample: one block in so many gives a stretch of rows, these few at least and at most, and they lie so many blocks
# apart; its bytes at most, and its rows at least, as a multiple of the columns.
_ONE_IN, _FEWEST, _STRETCHES, _APART, _SAMPLE_BYTES, _TIMES = 24, 4, 16, 7, 160 << 20, 8
_WIDE, _FEW = 64, 32  # columns of a block up to which BLAS takes hardly longer; components for which it is much wider


@dataclass(frozen=True)
class Krylov(Iteration):
    """Block Krylov iteration from a random block.

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

        A sample saves it too, and blocks stay slender.
        """
        rank, dense = self.settings.rank, not X.source.implicit
        few = not rank.open and self.n_oversamples is None and rank.most(*X.shape) <= _FEW
        return few and dense and dear(X) and self.sample(X) is None

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
