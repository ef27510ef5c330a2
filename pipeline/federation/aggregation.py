"""`aggregate`: one subspace that many agree on, by any rule of the registry, with an honest bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np

from pipeline.errors import ConvergenceError, InputError
from pipeline.federation.flag_mean import flag_mean
from pipeline.federation.flag_median import flag_median
from pipeline.federation.geometric_median import geometric_median
from pipeline.federation.members import Aggregation, Agreement, Members
from pipeline.federation.merge import merge, merged
from pipeline.federation.procrustes import procrustes
from pipeline.federation.projector_mean import projector_mean
from pipeline.federation.trimmed import trimmed
from pipeline.kernels.linalg import fix_signs, principal_angles
from pipeline.merging import check_mergeable
from pipeline.subspace import Subspace

__all__ = ["AGGREGATIONS", "ROBUST", "aggregate", "check_options", "stored"]

AGGREGATIONS: dict[str, Aggregation] = {
    "flag_mean": flag_mean,
    "flag_median": flag_median,
    "geometric_median": geometric_median,
    "merge": merge,
    "procrustes": procrustes,
    "projector_mean": projector_mean,
    "trimmed": trimmed,
}
"""Name to rule: what `method=` takes."""
ROBUST = frozenset({"flag_median", "geometric_median", "trimmed"})


def aggregate(
    subspaces: Sequence[Subspace], method: str = "merge", n_components: int | None = None, **options: Any
) -> Subspace:
    """The subspace that several agree on, each weighted by its n_samples.

    Parameters
    ----------
    subspaces : sequence of Subspace
        Of the same features, with the same weights, scale and centring.
    method : str
        'merge': of all samples together, exact where each kept every direction of its own; 'projector_mean',
        'procrustes', 'flag_mean': averages of what they span; 'flag_median', 'geometric_median', 'trimmed': averages
        that withstand liars. None but 'merge' and 'projector_mean' is associative, and these are until they are cut.
    n_components : int, optional
        How many to keep; default: the most that any ('merge') or all of them have.
    **options
        `flag_type` of the flag averages, as (1, 3, 5); `refinements` of 'procrustes'; `trim` of 'trimmed', the share
        of the weight that may be left out.

    Returns
    -------
    Subspace
        Of mean, variances and number of samples of all members; of those that are believed where the method is robust.
        `angle_bound` is a bound on the angle to the subspace of all samples, or pi/2 where nothing is known: with
        robust methods, as they are for members that lie.

    Raises
    ------
    InputError
        When the subspaces cannot be compared, or the method or an option is not known.
    ConvergenceError
        When a median does not come to rest.

    Examples
    --------
    >>> from pipeline import PCA
    >>> X = np.random.default_rng(0).normal(size=(90, 5)) * [9, 5, 1, 1, 1]
    >>> parts = [PCA().fit(X[i : i + 30]).subspace_ for i in (0, 30, 60)]
    >>> bool(aggregate(parts, n_components=2).distance(PCA(2).fit(X).subspace_).max() < 1e-10)
    True
    """
    if not isinstance(method, str) or method not in AGGREGATIONS:
        raise InputError(f"method={method!r}: choose one of {', '.join(map(repr, AGGREGATIONS))}")
    members, k = _members(subspaces, method, n_components)
    check_options(method, AGGREGATIONS[method], options)
    agreed = AGGREGATIONS[method](members, k, **options)
    found = finished(members, agreed, method in ROBUST)
    dtype = np.result_type(*(s.components.dtype for s in subspaces))
    story = {"method": f"aggregate:{method}", "members": len(subspaces), "steps": agreed.steps}
    left_out = [j for j, t in enumerate(agreed.trust) if t == 0]
    found = replace(stored(found, dtype), provenance=story | ({"left_out": left_out} if method in ROBUST else {}))
    if not agreed.rests:
        raise ConvergenceError(f"{method} did not come to rest in {agreed.steps} steps: leave out outliers", found)
    return found


def check_options(name: str, maker: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise InputError where a method has no such option: those that it has are parameters with defaults."""
    known = [p.name for p in signature(maker).parameters.values() if p.default is not p.empty]
    for option in options:
        if option not in known:
            raise InputError(f"{name!r} has no option {option!r}: it has {', '.join(known) or 'none'}")


def finished(members: Members, agreed: Agreement, robust: bool) -> Subspace:
    """The agreed basis with the means and variances of the members that are believed, turned to its own axes."""
    believed = [s for s, good in zip(members.subspaces, _believed(members, agreed, robust), strict=True) if good]
    whole, basis = merged(believed), agreed.basis
    k = len(basis)
    turn, values, _ = np.linalg.svd((basis @ whole.basis.T) * whole.singular_values, full_matrices=False)
    values = np.append(values, np.zeros(k - values.size))
    rows = (turn.T if len(turn.T) == k else np.eye(k)) @ basis
    rows = rows * fix_signs(rows)[:, None]
    squares = values**2
    tail = np.max(whole.residual * np.square(whole.singular_values), initial=0.0)
    images = (rows @ whole.basis.T) * np.square(whole.singular_values) @ whole.basis
    miss = np.linalg.norm(images - squares[:, None] * rows, axis=1) + tail
    return replace(
        whole,
        components=np.where(whole.present, rows, np.nan),
        singular_values=values,
        residual=miss / np.maximum(squares, max(1e-16 * float(squares.max(initial=0.0)), np.finfo(float).tiny)),
        angle_bounds=np.full(k, np.pi / 2) if robust else _bounds(rows, whole),
        turn=None,
        left_out=None,
    )


def _bounds(rows: np.ndarray, whole: Subspace) -> np.ndarray:
    """Angles to the merged subspace plus its own bounds: largest principal angles obey the triangle inequality."""
    bounds = np.full(len(rows), np.pi / 2)
    for j in range(1, min(len(rows), whole.k) + 1):
        if whole.angle_bounds[j - 1] < np.pi / 2:
            angle = principal_angles(rows[:j], whole.basis[:j])[0]
            bounds[j - 1] = min(angle + whole.angle_bounds[j - 1], np.pi / 2)
    return bounds


def _believed(members: Members, agreed: Agreement, robust: bool) -> np.ndarray:
    """(m,) bool: robust rules believe no member that is far out, beside those that they left out themselves."""
    some = agreed.trust > 0
    if not robust:
        return some
    pull = np.where(some, agreed.trust / members.weights, 0.0)  # falls with the distance in a median
    order = np.argsort(-pull)
    middle = order[np.searchsorted(np.cumsum(members.weights[order]), 0.5)]
    return some & (pull >= pull[middle] / 2)


def _members(subspaces: Sequence[Subspace], method: str, n_components: Any) -> tuple[Members, int]:
    subspaces = [subspaces] if isinstance(subspaces, Subspace) else list(subspaces)
    if not subspaces:
        raise InputError("there are no subspaces to aggregate")
    for j, s in enumerate(subspaces):
        if not isinstance(s, Subspace):
            raise InputError(f"subspace {j} is a {type(s).__name__}: give Subspaces, as model.subspace_")
        if not (np.isfinite(s.basis).all() and np.isfinite(s.singular_values).all()):
            raise InputError(f"subspace {j} holds NaN or Inf")
        try:
            check_mergeable(subspaces[0], s)
        except InputError as error:
            raise InputError(f"subspace {j} beside subspace 0: {error}") from None
    ranks = [s.k for s in subspaces]
    k = n_components if n_components is not None else (max(ranks) if method == "merge" else min(ranks))
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise InputError(f"n_components={n_components!r}: give a number from 1")
    members = Members.of(subspaces, max(ranks) if method == "projector_mean" else int(k))
    found = [len(v) for v in members.bases]
    rooms = {"merge": sum(ranks) + len(ranks) - 1, "projector_mean": sum(found)}
    most = min(rooms.get(method, max(found)), subspaces[0].n_features)
    if k > most:
        raise InputError(f"n_components={k} is more than the {most} directions that the subspaces have: ask for fewer")
    return members, int(k)


def stored(found: Subspace, dtype: Any) -> Subspace:
    """In the members' precision; what rounding to it turns is in the bounds."""
    if dtype == np.float64:
        return found
    turned = np.sqrt(np.arange(1, found.k + 1)) * float(np.finfo(dtype).eps)
    bounds = np.minimum(found.angle_bounds + turned, np.pi / 2)
    return replace(found, components=found.components.astype(dtype), angle_bounds=bounds)
