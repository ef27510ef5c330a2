"""The one loop: it walks, lets the solver step, and stops with a reason; every solver runs in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline import speed
from pipeline.errors import ConvergenceError, InputError, NonfiniteError
from pipeline.fold import Fold, Tally
from pipeline.folds import ColumnScores, Content, Defects, RowMeans, RowScores, SampleProduct, Witness, witnessed
from pipeline.folds.means import Observed
from pipeline.keep import Keep
from pipeline.kernels.blocks import doubled
from pipeline.matrix import Matrix
from pipeline.pour import pour
from pipeline.solvers import Solver
from pipeline.solvers.dual_gram import standard
from pipeline.solvers.solver import COMPLETE, CONVERGED, LIMIT, NO_GAP, STALLED
from pipeline.sources import ROWS, Operator, likeness
from pipeline.sources.stream import Stream
from pipeline.store.checkpoint import Checkpoint
from pipeline.store.state import nbytes_of, pack
from pipeline.stretches import EVERY, Half, walk_in_stretches
from pipeline.subspace import Subspace
from pipeline.walk import walk

__all__ = ["FILLINGS", "Run", "check_entries", "scores", "solve"]

FILLINGS = ("mean", "em")
"""Values of `missing` that allow for NaN, of most solvers."""

_WHY = {
    LIMIT: "the limit of passes was reached",
    STALLED: "further passes do not improve it (rounding)",
    NO_GAP: "the spectrum has no gap after the last component that arithmetic can resolve",
    CONVERGED: "its storage precision is coarser than that",
    COMPLETE: "",
}


@dataclass(frozen=True)
class Run:
    """How far a fit has come: all that one which goes on elsewhere needs."""

    state: Any
    walks: tuple[dict[str, Any], ...] = ()
    content: Content | None = None
    observed: Observed | None = None
    half: Half | None = None

    @property
    def passes(self) -> int:
        """Walks over all rows; a sample of them is number 0."""
        return sum(walk["pass"] > 0 for walk in self.walks)

    def walked(self, number: int, tally: Tally) -> Run:
        """The run after a walk; all those of a sample, which have the same number, are one record."""
        walks = self.walks
        if walks and walks[-1]["pass"] == number:
            walks, last = walks[:-1], walks[-1]
            tally = tally + Tally(**{name: last[name] for name in asdict(tally)})
        return replace(self, walks=(*walks, {"pass": number, **asdict(tally)}), half=None)


def solve(
    X: Matrix,
    solver: Solver[Any],
    keep: Keep | None = None,
    checkpoint: Checkpoint | None = None,
    checkpoint_every: float = EVERY,
) -> Subspace:
    """Run a solver on a matrix until it is done.

    Parameters
    ----------
    X : Matrix
    solver : Solver
    keep : Keep, optional
        Blocks that stay decoded between the passes; whoever made it releases it.
    checkpoint : Checkpoint, optional
        Where the state is kept after each pass and inside of it, and from where the run goes on.
    checkpoint_every : float
        Seconds after which a pass is kept at the next occasion even where that costs much.

    Returns
    -------
    Subspace
        With `provenance` of the solver, the reason of its end, the cost of each pass and what the rows held.

    Raises
    ------
    InputError
        When entries are NaN or Inf (it names the first), or the settings do not fit the matrix.
    StoreError
        When the checkpoint belongs to other data or other settings, or cannot be read or written.
    ConvergenceError
        When `tol` could not be met; it carries the best subspace.
    """
    cost, tol = solver.cost(X).entries_of(X), solver.settings.tol
    fills = solver.settings.missing != "error"
    open_ended = tol is not None or solver.settings.missing == "em" or cost.open_ended
    passes = None if open_ended else cost.passes + fills
    if checkpoint is not None and isinstance(X.source, Stream):
        raise InputError(f"{X.name} can be read only once, so that nothing could go on from a checkpoint: leave it out")
    keeper = _Keeper(checkpoint, {} if checkpoint is None else _about(X, solver), checkpoint_every)
    run = keeper.begun() or Run(solver.init(X))
    if fills:
        if run.observed is None:
            observed, run = _pass(
                X, RowMeans(cost.dtype or X.block_dtype, X.sample_weights), run, keeper, passes=passes
            )
            if not np.isfinite(observed.mean).all():
                check_entries(X.filled(np.zeros(X.shape[1])))  # NaN is welcome, infinity is not
            run = keeper.keep(replace(run, observed=observed))
        assert run.observed is not None
        X = X.filled(np.where(run.observed.weight > 0, run.observed.mean, np.nan))
    while (reason := solver.done(run.state)) is None:
        fold = solver.fold(X, run.state)
        try:
            summary, run = _pass(X, fold, run, keeper, passes=passes, summary_bytes=cost.summary_bytes, keep=keep)
        except NonfiniteError as error:
            check_entries(X, fillings=getattr(solver, "fillings", FILLINGS))
            raise InputError(f"{X.name}: {error}") from error
        run = keeper.keep(replace(run, state=solver.step(X, run.state, summary)))
    found = solver.result(X, run.state)
    seen = [] if run.content is None else [run.content.plain()]
    story = {"solver": solver.name, "reason": reason, "walks": _plain(run.walks), "seen": seen}
    found = replace(found, passes=run.passes, provenance={**story, **found.provenance})
    if tol is not None and np.sin(found.angle_bound) > tol:
        unknown = solver.settings.missing == "em" and reason == CONVERGED
        why = "no bound is known where entries are missing" if unknown else _WHY[reason]
        raise ConvergenceError(
            f"tol={tol:g} was not met: after {found.passes} pass{'es' * (found.passes != 1)} the sine of the largest "
            f"angle is certified to {np.sin(found.angle_bound):.1e}, as {why}; ask for a larger tol, another "
            "n_components or another solver",
            found,
        )
    if reason == LIMIT and solver.settings.missing == "em":
        raise ConvergenceError(
            f"missing='em' has not converged after {found.passes} passes: ask for fewer components, or leave out "
            "the features or samples of which little is seen",
            found,
        )
    return found


def scores(X: Matrix, solver: Solver[Any], found: Subspace, keep: Keep) -> np.ndarray:
    """Scores (n, k) of the samples that `found` was fitted to, from the blocks that were kept as far as they go."""
    lens, cost = np.asarray(found.basis, doubled(found.basis.dtype)).conj().T, solver.cost(X).entries_of(X)
    dtype = cost.dtype or X.block_dtype
    how: dict[str, Any] = {"summary_bytes": cost.summary_bytes, "keep": keep}
    if cost.side == ROWS:
        rows = RowScores(dtype, found.factor[:, None] * lens, found.offset)
        parts, _ = walk(X, witnessed(rows, *X.shape, looking=False), **how)
        whole = np.concatenate([part for _, part in sorted(parts, key=lambda part: part[0])])
        return whole.astype(X.work_dtype, copy=False)
    columns = ColumnScores(dtype, standard(X, solver.settings), lens)
    total, _ = walk(X.T, witnessed(columns, *X.shape, looking=False), **how)
    return np.asarray(total.astype(X.work_dtype))


def _pass(X: Matrix, fold: Fold[Any], run: Run, keeper: _Keeper, **told: Any) -> tuple[Any, Run]:
    """One pass over X: its summary, and the run after it; the first one also takes down what the rows held."""
    matrix, sampled = X if fold.side == X.side else X.T, isinstance(fold, SampleProduct)
    cuts = getattr(fold, "cuts", None)  # of a fold that walks some stretches of the rows only
    if cuts is not None:
        matrix = matrix.stretch(cuts)
        if not sampled:  # where it ends says nothing of where blocks do
            told.pop("keep", None)
    # Of an operator no entries are known, and of a stream not how many there will be.
    looking = run.content is None and cuts is None and not isinstance(X.source, Operator | Stream)
    seeing = witnessed(fold, *X.shape, X.seen_dtype, looking=looking)
    number = 0 if sampled else run.passes + 1
    if isinstance(X.source, Stream):
        summary, tally = pour(matrix, fold)
    elif sampled:  # a short walk is kept when it is over
        summary, tally = walk(matrix, fold, pass_number=number, **told)
    else:
        summary, tally = keeper.walked(run, matrix, seeing, pass_number=number, **told)
    speed.observe(matrix, tally)
    run = run.walked(number, tally)
    if not looking:
        return summary, run
    assert isinstance(seeing, Witness)
    return summary.summary, replace(run, content=seeing.content(summary))


@dataclass(frozen=True)
class _Keeper:
    """What keeps the run, if anything does, and for which data and settings; `every` so many seconds at the least."""

    checkpoint: Checkpoint | None
    about: dict[str, str]
    every: float

    def begun(self) -> Run | None:
        """The run that goes on here."""
        return None if self.checkpoint is None else self.checkpoint.read(self.about)

    def keep(self, run: Run) -> Run:
        """The same run, written down."""
        if self.checkpoint is not None:
            self.checkpoint.write(self.about, run)
        return run

    def walked(self, run: Run, matrix: Matrix, fold: Fold[Any], **told: Any) -> tuple[Any, Tally]:
        """A walk, in stretches where it is kept between them."""
        if self.checkpoint is None:
            return walk(matrix, fold, **told)
        told.pop("keep", None)  # what is walked in stretches is read again
        return walk_in_stretches(matrix, fold, half=run.half, keep=partial(self._keep_half, run), **told)

    def _keep_half(self, run: Run, half: Half, read: int, seconds: float) -> bool:
        going = replace(run, half=half)
        if seconds < self.every and not Checkpoint.due(nbytes_of(going), read):
            return False
        self.keep(going)
        return True


def _about(X: Matrix, solver: Solver[Any]) -> dict[str, str]:
    """What a checkpoint is valid for, in a few words: the data and the settings."""
    start = solver.settings.start
    asked = replace(solver, settings=replace(solver.settings, start=None))  # type: ignore[type-var]
    tree, arrays = pack([asked, X.weights, X.sample_weights, None if start is None else start.basis])
    settings = json.dumps([solver.name, tree, {name: array.tolist() for name, array in arrays.items()}])
    return {
        "data": f"{likeness(X.source)} {X.shape[0]} x {X.shape[1]} {X.dtype}",
        "settings": f"{solver.name} {hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()}",
    }


def check_entries(X: Matrix, present: np.ndarray | None = None, fillings: tuple[str, ...] = FILLINGS) -> None:
    """Raise InputError that names the first NaN or Inf among the entries, if there is one (one pass).

    Features that are NaN in every sample do not count, nor those outside `present` (d,) where it is given; `fillings`
    are the values of `missing` that would allow for NaN.
    """
    rows = X if X.side == ROWS else X.T
    found, _ = walk(rows, Defects(X.work_dtype))
    place = found.place(present)
    if place is None:
        return
    row, feature, number = place
    value = rows.rows(row, row + 1).read(0)[0, feature]
    where = f"{X.samples.describe(row)}; {X.features.describe(feature)}"
    what, out = "infinity (inf)", "fill them"
    if np.isnan(value):
        what = "NaN" if X.code is None else f"a missing call ({X.code:g} or NaN)"
        ways = f"pass missing={' or '.join(map(repr, fillings))}, " if fillings else ""
        out = f"{ways}fill them"
    raise InputError(
        f"{X.name} holds {what} at row {row}, feature {feature} ({where}), the first of {number} such entries: "
        f"{out}, or leave those samples or features out with select"
    )


def _plain(walks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"nbytes": "bytes"}
    return [{names.get(k, k): round(v, 6) if isinstance(v, float) else v for k, v in w.items()} for w in walks]
