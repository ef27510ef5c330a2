"""`krylov`: randomized block Krylov iteration: the fewest passes; it keeps the products of all of them.

After p passes the basis spans [Q, C Q, …, C^(p-1) Q] (Musco and Musco 2015). When it has grown to its limit it is
restarted from the leading Ritz vectors and their residual (thick restart, Wu and Simon 2000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from pipeline.folds import Products, SampleProduct, spans, spread_cuts
from pipeline.kernels.leading import leading
from pipeline.kernels.linalg import orthonormal, orthonormal_beside
from pipeline.matrix import Matrix
from pipeline.solvers.basis import Basis
from pipeline.solvers.extraction import Leading, Ritz
from pipeline.solvers.iteration import Iteration, IterationState, dear
from pipeline.solvers.lanczos import Lanczos
from pipeline.solvers.solver import Cost, unit_roundoff
from pipeline.sources import ROWS, Operator
from pipeline.sources.stream import Stream

__all__ = ["Krylov", "KrylovState"]

_BLOCKS = 8
# A sample: as many stretches of rows as there are blocks in so many, these few at least, and so many at most where they
# hold the rows, which are so many times the columns of a block, at least and at most; the walks over it, and how many
# of them, the last, make up a basis.
_ONE_IN, _FEWEST, _STRETCHES, _TIMES, _WALKS, _TOGETHER = 8, 4, 16, (8, 100), 5, 3
_NEARLY = 0.75  # of a block, from where on all of it is taken
_GOOD = 75  # rows for each column from where on a start from it is worth two passes; from fewer it is worth one
_SHAKEN = 0.1  # how much of that start is random, so that it has a part of what the sample does not show
_ALIKE = 0.02  # Ritz values and Nystrom's, from where on a pass more is not worth it
_GAP = 0.1  # after the last eigenvalue, from where on a pass more mostly certifies the answer
# Columns of a block up to which BLAS takes hardly longer; components for which it is much wider, and how many more
# columns there are for these after a sample, so that two passes reach as far as three did.
_WIDE, _FEW, _MORE = 64, 32, 16


@dataclass(frozen=True)
class Sampled:
    """The iteration over a sample of the rows, and the cuts of its walks."""

    state: IterationState
    cuts: np.ndarray


@dataclass(frozen=True)
class KrylovState(IterationState):
    """With the iteration over a sample, while that is walked."""

    sampled: Sampled | None = None


@dataclass(frozen=True)
class Krylov(Iteration):
    """Block Krylov iteration from a random block, or from what a sample of the rows shows.

    Without a `tol` it takes four passes and Nystrom extraction, for a worst eigenvalue error of about 1e-3 on spectra
    that decay slowly; two from the leading directions of a sample, where one can be taken and shows them; else three
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
        more, and blocks stay slender.
        """
        warm = self.settings.start is not None and self.side == ROWS
        return self._few(X) and not X.source.implicit and (warm or dear(X)) and self.sample(X) is None

    def _few(self, X: Matrix) -> bool:
        """Whether so few components are asked for that more columns cost little."""
        rank = self.settings.rank
        return not rank.open and self.n_oversamples is None and rank.most(*X.shape) <= _FEW

    def slender(self, X: Matrix) -> Krylov:
        """The same with blocks that take less memory, and a pass more."""
        return replace(self, n_oversamples=super().width(X) - self.settings.rank.most(*X.shape))

    def width(self, X: Matrix) -> int:
        if self.may_be_wide(X):
            return min(max(_WIDE, 3 * self.settings.rank.most(*X.shape) + 16), min(X.shape))
        return super().width(X) if self.sample(X) is None else self._sampled_width(X)

    def _sampled_width(self, X: Matrix) -> int:
        return min(super().width(X) + _MORE * self._few(X), min(X.shape))

    def passes(self, X: Matrix) -> int:
        """Three to six, or as many as fill the space after the random start."""
        most = 3 if self.may_be_wide(X) else 4 if dear(X) else 6 if X.source.implicit else 5
        return min(most, 1 - (-min(X.shape) // self.width(X)))

    def sample(self, X: Matrix) -> np.ndarray | None:
        """Stretches all over the matrix, where they are a small part of it and yet several times as many as columns."""
        s, n_blocks, width = self.settings, X.n_blocks, self._sampled_width(X)
        given = s.start is not None or s.rank.open
        unfit = self.side != ROWS or X.source.implicit or isinstance(X.source, Operator | Stream)
        if given or unfit or not dear(X) or min(X.shape) <= width:
            return None
        fewest, most = (times * width for times in _TIMES)
        number = min(max(_STRETCHES, -(-most // X.block_height)), max(_FEWEST, n_blocks // _ONE_IN))
        each = min(most // number, X.block_height)
        if each > _NEARLY * X.block_height:  # a chunk is decoded as a whole
            each = X.block_height
        fits = number * each >= fewest and n_blocks >= (_ONE_IN - 1) * number
        return spread_cuts(X.cuts, number, each) if fits else None

    def effort(self, X: Matrix) -> int:
        passes, cuts = super().effort(X), self.sample(X)
        if cuts is None:
            return passes
        rows = int(np.diff(spans(cuts)).sum())
        return max(passes - (2 if rows >= _GOOD * self._sampled_width(X) else 1), min(passes, 2))

    def cost(self, X: Matrix) -> Cost:
        cost, cuts = super().cost(X), self.sample(X)
        return cost if cuts is None else replace(cost, sample=cuts, sample_walks=self._walks)

    @property
    def _walks(self) -> int:
        """Over a sample; the first finds the spread, where that is divided by, and little more."""
        return _WALKS + (self.settings.scale is not None)

    def init(self, X: Matrix) -> KrylovState:
        first, cuts = super().init(X), self.sample(X)
        return replace(KrylovState.of(first), sampled=None if cuts is None else Sampled(first, cuts))

    def fold(self, X: Matrix, state: IterationState) -> Any:
        if not isinstance(state, KrylovState) or state.sampled is None:
            return super().fold(X, state)
        return SampleProduct.of(super().fold(X, state.sampled.state), state.sampled.cuts)

    def step(self, X: Matrix, state: IterationState, summary: Any) -> IterationState:
        if not isinstance(state, KrylovState) or state.sampled is None:
            return super().step(X, state, summary)
        return self._walked_sample(X, state, state.sampled, summary)

    def _walked_sample(self, X: Matrix, state: KrylovState, sampled: Sampled, summary: Products) -> IterationState:
        """The state after a walk over the sample."""
        over, sample = replace(state, sampled=None), sampled.state
        if not summary.about.n:  # no row of it counts
            return over
        applied, sample = self._rows(X, sample, summary)
        sample = replace(sample, passes=sample.passes + 1, spread=applied.spread, loud=applied.loud)
        if not 0 < applied.energy < np.inf:
            return over
        if sample.passes == self._walks:
            return self._started(over, sample, applied.product)
        if sample.passes <= self._walks - _TOGETHER:
            basis = Basis.begun(orthonormal(applied.product))
        else:
            basis = self.advance(sample, sample.basis.grown(applied.product), None, min(X.shape))
        return replace(state, sampled=replace(sampled, state=replace(sample, basis=basis)))

    def _started(self, state: KrylovState, sample: IterationState, product: np.ndarray) -> IterationState:
        """The state with a first block of the leading directions of a sample, and a little of the random one."""
        grown = sample.basis.grown(product)
        assert sample.mean is not None
        random = state.basis.block * np.isfinite(sample.mean)[:, None]  # nothing at features that have no values here
        lead = leading(grown.known, grown.images, random.shape[1], unit_roundoff(sample.dtype))
        block = orthonormal(lead + _SHAKEN * random)
        state = replace(state, basis=Basis.begun(block), scale=sample.scale)
        return state if self.settings.scale else replace(state, probes=self.fresh_probes(state, (block,)))

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
        return _BLOCKS + 1 if self.asked else self.effort(X) + (self.sample(X) is not None)

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
