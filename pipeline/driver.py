"""The one loop: it walks, lets the solver step, and stops with a reason; every solver runs in it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pipeline.errors import ConvergenceError, InputError, NonfiniteError
from pipeline.folds import ColumnScores, Defects, RowMeans, RowScores
from pipeline.keep import Keep
from pipeline.matrix import Matrix
from pipeline.solvers import Solver
from pipeline.solvers.dual_gram import standard
from pipeline.solvers.solver import COMPLETE, CONVERGED, LIMIT, NO_GAP, STALLED
from pipeline.sources import ROWS
from pipeline.subspace import Subspace
from pipeline.walk import walk

__all__ = ["check_entries", "scores", "solve"]

_WHY = {
    LIMIT: "the limit of passes was reached",
    STALLED: "further passes do not improve it (rounding)",
    NO_GAP: "the spectrum has no gap after the last component that arithmetic can resolve",
    CONVERGED: "its storage precision is coarser than that",
    COMPLETE: "",
}


def solve(X: Matrix, solver: Solver[Any], keep: Keep | None = None) -> Subspace:
    """Run a solver on a matrix until it is done.

    Parameters
    ----------
    X : Matrix
    solver : Solver
    keep : Keep, optional
        Blocks that stay decoded between the passes; whoever made it releases it.

    Returns
    -------
    Subspace
        With `provenance` of the solver, the reason of its end and the cost of each pass.

    Raises
    ------
    InputError
        When entries are NaN or Inf (it names the first), or the settings do not fit the matrix.
    ConvergenceError
        When `tol` could not be met; it carries the best subspace.
    """
    cost, tol = solver.cost(X), solver.settings.tol
    state = solver.init(X)
    fills = solver.settings.missing != "error"
    open_ended = tol is not None or solver.settings.missing == "em" or cost.open_ended
    passes = None if open_ended else cost.passes + fills
    walks: list[dict[str, Any]] = []
    if fills:
        observed, tally = walk(X, RowMeans(X.work_dtype, X.sample_weights), pass_number=1, passes=passes)
        walks.append({"pass": 1, **asdict(tally)})
        if not np.isfinite(observed.mean).all():
            check_entries(X.filled(np.zeros(X.shape[1])))  # NaN is welcome, infinity is not
        X = X.filled(np.where(observed.weight > 0, observed.mean, np.nan))
    while (reason := solver.done(state)) is None:
        fold = solver.fold(X, state)
        matrix = X if fold.side == X.side else X.T
        span = getattr(fold, "span", None)  # of a fold that walks a stretch of the rows only
        matrix = matrix if span is None else matrix.rows(*span)
        try:
            summary, tally = walk(
                matrix,
                fold,
                summary_bytes=cost.summary_bytes,
                pass_number=len(walks) + 1,
                passes=passes,
                keep=keep if span is None else None,
            )
        except NonfiniteError as error:
            check_entries(X)
            raise InputError(f"{X.name}: {error}") from error
        walks.append({"pass": len(walks) + 1, **asdict(tally)})
        state = solver.step(X, state, summary)
    found = solver.result(X, state)
    story = {**found.provenance, "solver": solver.name, "reason": reason, "walks": _plain(walks)}
    found = replace(found, passes=len(walks), provenance=story)
    if tol is not None and np.sin(found.angle_bound) > tol:
        raise ConvergenceError(
            f"tol={tol:g} was not met: after {found.passes} passes the sine of the largest angle is certified to "
            f"{np.sin(found.angle_bound):.1e}, as {_WHY[reason]}; ask for a larger tol or another n_components",
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
    lens, cost = np.asarray(found.basis, np.float64).T, solver.cost(X)
    how: dict[str, Any] = {"summary_bytes": cost.summary_bytes, "keep": keep}
    if cost.side == ROWS:
        parts, _ = walk(X, RowScores(X.work_dtype, found.factor[:, None] * lens, found.offset), **how)
        return np.concatenate([part for _, part in sorted(parts, key=lambda part: part[0])])
    total, _ = walk(X.T, ColumnScores(X.work_dtype, standard(X, solver.settings), lens), **how)
    return np.asarray(total.astype(X.work_dtype))


def check_entries(X: Matrix, present: np.ndarray | None = None) -> None:
    """Raise InputError that names the first NaN or Inf among the entries, if there is one (one pass).

    Features that are NaN in every sample do not count, nor those outside `present` (d,) where it is given.
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
        out = "pass missing='mean' or 'em', fill them"
    raise InputError(
        f"{X.name} holds {what} at row {row}, feature {feature} ({where}), the first of {number} such entries: "
        f"{out}, or leave those samples or features out with select"
    )


def _plain(walks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"nbytes": "bytes"}
    return [{names.get(k, k): round(v, 6) if isinstance(v, float) else v for k, v in w.items()} for w in walks]
