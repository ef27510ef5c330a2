"""Robust location, scatter and outlier tests of a few thousand rows in a few dimensions: pure functions on arrays.

What decides which rows of a large matrix lie: a sample of its rows, projected on some tens of directions, is tested
here, and the tests that fail come back as cuts that any other row can be held against.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import chi2, f, norm, poisson, t

from pipeline.kernels.groups import apart

__all__ = [
    "Verdict",
    "center_and_spread",
    "examine",
    "excess_cut",
    "filter_tolerance",
    "geometric_median",
    "hills",
    "inflation",
    "normal_ball",
    "outlying",
    "robust_scatter",
    "squared_distances",
    "tail_cutoff",
]

_STEPS, _SETTLED = 30, 1e-4  # of concentration: how many, and the change of a scatter that is none
_INNER = 0.98  # quantile from which on a tail is looked at
_CHANCE = 3e-5  # over n rows, of a tail that is no work of chance: many directions are looked at, again and again
_WORTH, _MAD_WORTH = 0.5, 0.37  # share of the rows that the robust scatter, and a median deviation, are worth
_BULK = 0.95  # of the honest rows, that lie about a scatter that is theirs
_MANY = 0.28  # share of rows that lie from which on they may be a group denser than the bulk
_TAKEN = 0.25  # share of eps, that is cut off where groups are looked for
_LEAST, _SPARED = 0.9, 0.02  # of the honest rows, that a group beside them may leave; share that may lie after it
_ENOUGH = 50  # rows for each direction, to tell a group from chance
_CORE = 0.9  # of normal data, that is sure to be apart from rows that lie
_STRETCHED = 1.1  # times that distances may be longer than those of the bulk can be
_CONSISTENT = float(1 / norm.ppf(0.75))
_BORNE, _ROWS_A_DIRECTION = 0.45, 8  # outliers that `outlying` bears, rows that it wants for each direction
_LEVEL = 0.975  # of normal data, that lies in what counts as its bulk
_SURE = 2.0  # standard errors by which fewer may lie there, where all are to be normal


def center_and_spread(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians and median absolute deviations (times 1.4826: standard deviations of normal data) of the columns.

    >>> center, spread = center_and_spread(np.array([[1.0], [2.0], [3.0], [4.0], [100.0]]))
    >>> center.tolist(), spread.round(4).tolist()
    ([3.0], [1.4826])
    """
    columns = np.array(z.T, order="C")
    center = _middles(columns)
    return center, _CONSISTENT * _middles(np.abs(columns - center[:, None]))


def _middles(rows: np.ndarray) -> np.ndarray:
    """(m,) medians of rows (m, n) without NaN, which are put in another order; some times as fast as `np.median`."""
    half = rows.shape[1] // 2
    if not rows.shape[1]:
        return np.full(len(rows), np.nan)
    rows.partition(half, axis=1)
    upper = rows[:, half]
    return upper.copy() if rows.shape[1] % 2 else (upper + rows[:, :half].max(axis=1)) / 2


def squared_distances(z: np.ndarray, center: np.ndarray, whitener: np.ndarray) -> np.ndarray:
    """(n,) squared norms of (z - center) @ whitener."""
    y = (z - center) @ whitener
    return np.einsum("ij,ij->i", y, y)


def whitener_of(scatter: np.ndarray) -> np.ndarray:
    """(m, m) matrix W with W W^T the inverse of the scatter; directions without any spread count as tiny ones."""
    values, vectors = np.linalg.eigh(scatter)
    largest = float(values[-1])
    return vectors / np.sqrt(np.maximum(values, 1e-12 * largest if largest > 0 else 1.0))


def geometric_median(z: np.ndarray, passes: int = 100, tol: float = 1e-9) -> np.ndarray:
    """The point (m,) with the least sum of distances to the rows, by Weiszfeld's iteration with the step of Vardi and
    Zhang (2000) where it meets a row.

    >>> geometric_median(np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])).tolist()
    [0.0, 0.0]
    """
    point = np.median(z, axis=0)
    for _ in range(passes):
        distance = np.linalg.norm(z - point, axis=1)
        apart = distance > 1e-12 * max(float(distance.max(initial=0.0)), np.finfo(float).tiny)
        if not apart.any():
            return point
        weights = 1 / distance[apart]
        there = weights @ z[apart] / weights.sum()
        pull = float(np.linalg.norm((there - point) * weights.sum()))
        stay = min(1.0, float((~apart).sum()) / pull) if pull > 0 else 1.0
        step = (1 - stay) * (there - point)
        point = point + step
        if np.linalg.norm(step) <= tol * float(np.median(distance)):
            break
    return point


def robust_scatter(z: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Center (m,) and scatter (m, m) of the bulk of the rows, on the scale of normal data.

    The minimum covariance determinant over a bit less than 1 - eps of the rows, by concentration from deterministic
    starts (Hubert, Rousseeuw and Verdonck 2012), then reweighted once (Rousseeuw and Van Driessen 1999).
    """
    n, m = z.shape
    honest, many = 1 - eps, _telling(z, eps)
    held = min(n, max(int(np.ceil((1 - 1.2 * eps) * n)), (n + m + 1) // 2))
    middle, unit = center_and_spread(z)
    deviation = z.std(axis=0)
    unit = np.where(unit > 1e-9 * deviation, unit, np.where(deviation > 0, deviation, 1.0))
    w = (z - middle) / unit
    level = held / n if held < n else 0.5
    most = _stretch(min(level / honest, 0.999), level, m)

    def end(start: tuple[np.ndarray, np.ndarray]) -> _End:
        size, center, scatter = _concentrated(w, *start, held)
        distance = squared_distances(w, center, whitener_of(scatter))
        factor = float(np.quantile(distance, level) / chi2.ppf(level, m))
        inside = distance <= factor * chi2.ppf(_LEVEL, m)
        # A dense minority has the least determinant, but not as many rows about it as the bulk has, or others than
        # normal ones: these are farther out than any share of liars beyond them explains.
        dense = inside.sum() < _BULK * honest * n or (many and factor > _STRETCHED * most)
        return _End(bool(dense), size, center, scatter, factor, inside)

    ends: list[_End] = []
    for start in _starts(w):
        ends.append(end(start))
        if ends[-1].inside.sum() >= _LEVEL * n - _SURE * np.sqrt(_LEVEL * (1 - _LEVEL) * n):
            break  # all rows are as normal ones about it, so that there is nothing that other starts could be bent by
    if many and all(each.dense for each in ends):  # the bulk is elsewhere then
        rests = (w[~each.inside] for each in ends)
        ends += [end((rest.mean(axis=0), np.cov(rest.T).reshape(m, m))) for rest in rests if len(rest) > 2 * m]
    *_, center, scatter, factor, inside = min(ends, key=lambda each: each[:2])
    if factor > 0 and inside.sum() > 2 * m:
        if many:  # as if all who may lie lay farther out, and then on, as far as rows lie close
            nearer = factor * chi2.ppf(level, m) / chi2.ppf(min(level / honest, 0.999), m)
            distance = squared_distances(w, center, whitener_of(scatter))
            center, scatter = _grown(w, distance <= nearer * chi2.ppf(_CORE, m))
        else:
            center, scatter = _reweighted(w[inside], _LEVEL)
    else:
        scatter = scatter * (factor if factor > 0 else 1.0)
    if not np.trace(scatter) > 0:  # more than half of the rows are one
        center, scatter = w.mean(axis=0), np.atleast_2d(np.cov(w.T))
    return middle + unit * center, scatter * np.outer(unit, unit)


def _telling(z: np.ndarray, eps: float) -> bool:
    """Whether so many may lie that they can be a group, and there are the rows (n, m) to tell."""
    return eps >= _MANY and len(z) >= _ENOUGH * z.shape[1]


def hills(z: np.ndarray, eps: float) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Cuts between groups of rows (n, m), of which eps lets one lie; none of one hill, or of too few rows."""
    return apart(z, len(z) // 4)[0] if _telling(z, eps) else []


def _reweighted(rows: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Center and scatter of normal rows, of those (n, m) in the ellipsoid that holds a share `level` of them."""
    center, m = rows.mean(axis=0), rows.shape[1]
    part = rows - center
    return center, part.T @ part / len(rows) * (level / chi2.cdf(chi2.ppf(level, m), m + 2))


def _grown(w: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Center and scatter of the rows in the ellipsoid that they give, from the one that some (n,) bool give.

    It holds fewer than all of a bulk, so that rows which lie close to it do not pull it out to where they are.
    """
    found = _reweighted(w[inside], _CORE)
    for _ in range(_STEPS):
        before, inside = inside, squared_distances(w, found[0], whitener_of(found[1])) <= chi2.ppf(_CORE, w.shape[1])
        if inside.sum() <= 2 * w.shape[1] or (before == inside).all():
            break
        found = _reweighted(w[inside], _CORE)
    return found


def _stretch(share: float, level: float, m: int) -> float:
    """By how much the squared distances of normal rows, in the metric of a nearest share of them, are too long at their
    quantile `share`, if that is taken for the quantile `level`."""
    radius = chi2.ppf(share, m)
    return float(radius / chi2.ppf(level, m) * share / chi2.cdf(radius, m + 2))


class _End(NamedTuple):
    """Where concentration ended: whether too few rows for the bulk lie about it, the log determinant, the rest."""

    dense: bool
    size: float
    center: np.ndarray
    scatter: np.ndarray
    factor: float
    inside: np.ndarray


def _starts(w: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Centers and scatters: robust ones along the eigenvectors of matrices that no small part of the rows decides, of
    signs, of squashed entries, of the core."""
    size = np.linalg.norm(w, axis=1)
    core = w[np.argsort(size, kind="stable")[: len(w) // 2 + 1]]
    for rows in (w / np.where(size > 0, size, 1.0)[:, None], np.tanh(w), core):
        _, axes = np.linalg.eigh(rows.T @ rows)
        middle, length = center_and_spread(w @ axes)
        length = np.maximum(length, 1e-6 * max(float(length.max(initial=0.0)), np.finfo(float).tiny))
        yield axes @ middle, (axes * length**2) @ axes.T


def _concentrated(
    w: np.ndarray, center: np.ndarray, scatter: np.ndarray, held: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Log determinant, center and scatter where concentration steps from a start end."""
    for _ in range(_STEPS):
        nearest = np.argpartition(squared_distances(w, center, whitener_of(scatter)), held - 1)[:held]
        center = w[nearest].mean(axis=0)
        part = w[nearest] - center
        before, scatter = scatter, part.T @ part / held
        unit = np.sqrt(np.diag(scatter))
        if (np.abs(scatter - before) <= _SETTLED * np.outer(unit, unit)).all():
            break
    values = np.maximum(np.linalg.eigvalsh(scatter), np.finfo(float).tiny)
    return float(np.log(values).sum()), center, scatter


def excess_cut(squares: np.ndarray, dims: int, worth: float) -> float:
    """Where the tail of squared distances is to be cut so that it is as long as that of normal data; inf: nowhere.

    The adaptive rule of Gervini and Yohai (2002), with their supremum taken only where it is no work of chance: on
    clean normal data nothing is cut, so nothing is lost. Distances in an estimated metric are distributed as
    Hotelling's T^2; the estimate is worth that of so many rows (Hardin and Rocke 2005).
    """
    n = squares.size
    ordered = np.sort(squares)
    first = int(np.searchsorted(ordered, chi2.ppf(_INNER, dims)))
    if first >= n:
        return np.inf
    dof = max(worth, dims + 1.0)
    ratio = ordered[first:] * (dof - dims + 1) / (dof * dims)
    beyond, expected = n - np.arange(first, n), n * f.sf(ratio, dims, dof - dims + 1)
    surprising = np.asarray(poisson.sf(beyond - 1, expected) < _CHANCE / n)
    if not surprising.any():
        return np.inf
    cut = int(np.ceil((beyond - expected)[surprising].max()))
    # Between two rows, so that rounding moves none of them across.
    return float((ordered[n - cut] + ordered[n - cut - 1]) / 2) if cut < n else 0.0


class Verdict(NamedTuple):
    """Cuts as (whitener (m, p), center (p,), threshold): a row z lies outside where |z @ whitener - center|^2 is at
    least the threshold; and which rows (n,) are left inside all."""

    cuts: list[tuple[np.ndarray, np.ndarray, float]]
    inside: np.ndarray


def examine(z: np.ndarray, eps: float, budget: int, reference: np.ndarray | None = None) -> Verdict:
    """Hold rows (n, m) against normal data: all directions at once, then one by one.

    Parameters
    ----------
    z : (n, m) array
        Coordinates of the rows.
    eps : float
        Share of the rows that may lie.
    budget : int
        How many rows may be cut off.
    reference : (r, m) array, optional
        Clean rows that say what is normal; by default the bulk of the rows themselves does.

    Notes
    -----
    Distances in the metric of the robust scatter find outliers that many directions share, tests along single
    directions those that one hides: eigenvectors of what is left, and those of its fourth moments (Peña and Prieto
    2001), which turn to small far groups. Where many may lie, and what is left has groups in it, these are taken off
    first, and the rest is held against normal data.
    """
    verdict = _held(z, eps, budget, reference)
    least = int(np.ceil(_LEAST * (1 - eps) * len(z)))
    enough = reference is None and (~verdict.inside).sum() >= _TAKEN * eps * len(z)
    before, after = (hills(rows, eps) if enough else [] for rows in (z, z[verdict.inside]))
    seen = after or before
    if not seen:
        return verdict
    cuts, inside = apart(z, least, np.hstack([lens for lens, *_ in seen]))
    out = int((~inside).sum())
    if not cuts or out >= budget:
        return verdict
    rest = _held(z[inside], max(eps - out / len(z), _SPARED) * len(z) / inside.sum(), budget - out, None)
    explained = after or (~rest.inside).sum() <= _SPARED * len(z)
    inside[inside] = rest.inside
    # Columns of few values have hills too, and keep them.
    return Verdict(cuts + rest.cuts, inside) if explained and not hills(z[inside], eps) else verdict


def _held(z: np.ndarray, eps: float, budget: int, reference: np.ndarray | None) -> Verdict:
    """Rows held against normal data, as they are."""
    if reference is None:
        center, scatter = robust_scatter(z, eps)
    else:
        center, scatter = reference.mean(axis=0), np.atleast_2d(np.cov(reference.T))
    whitener = whitener_of(scatter)
    y = (z - center) @ whitener
    known = None if reference is None else (reference - center) @ whitener
    # How many rows the metric of all directions, and the scale along one, are worth.
    worth = (_WORTH * len(y), _MAD_WORTH * len(y)) if known is None else (len(known), len(known))
    verdict = Verdict([], np.ones(len(z), bool))
    verdict = _cut(y, np.eye(y.shape[1]), verdict, budget, worth[0])
    if not verdict.inside.any():
        return _in_place(verdict, center, whitener)
    left = y[verdict.inside] - y[verdict.inside].mean(axis=0)
    size = np.einsum("ij,ij->i", left, left)
    fourth = (left * np.minimum(size, np.quantile(size, 0.999))[:, None]).T @ left
    axes = np.eye(z.shape[1])
    # Back along the axes of z, along those that are longest in the robust metric, and along the fourth moments.
    seen = [np.linalg.pinv(whitener) @ axes, np.linalg.eigh(left.T @ left)[1], np.linalg.eigh(fourth)[1]]
    directions = np.hstack(seen)
    for direction in directions.T[_long_tailed(y[verdict.inside], known, directions, worth[1])]:
        if not verdict.inside.any():
            break
        middle, spread = _scale(y[verdict.inside], known, direction[:, None])
        if spread[0] > 0:
            verdict = _cut(y, direction[:, None] / spread, verdict, budget, worth[1], float(middle[0] / spread[0]))
    return _in_place(verdict, center, whitener)


def _long_tailed(y: np.ndarray, known: np.ndarray | None, directions: np.ndarray, worth: float) -> np.ndarray:
    """(q,) bool: directions along which more rows than by chance lie beyond one of some quantiles."""
    middle, spread = _scale(y, known, directions)
    beyond = np.abs(y @ directions - middle) / np.where(spread > 0, spread, np.inf)
    levels = np.array([1 - _INNER, 5e-3, 1e-3, 1e-4, 1e-6, 1e-9])
    counts = np.stack([(beyond >= level).sum(axis=0) for level in t.isf(levels / 2, max(worth, 2.0))])
    chance = np.asarray(poisson.sf(counts - 1, len(y) * levels[:, None]))
    return np.asarray((chance < _CHANCE / len(y)).any(axis=0))


def _scale(y: np.ndarray, known: np.ndarray | None, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middles and spreads along directions: of clean rows where there are some, else robust ones."""
    if known is None:
        return center_and_spread(y @ directions)
    along = known @ directions
    return along.mean(axis=0), along.std(axis=0)


def _in_place(verdict: Verdict, center: np.ndarray, whitener: np.ndarray) -> Verdict:
    """The same cuts in the coordinates of the rows as they were given."""
    shift = center @ whitener
    cuts = [(whitener @ lens, (shift @ lens) + c, threshold) for lens, c, threshold in verdict.cuts]
    return Verdict(cuts, verdict.inside)


def _cut(y: np.ndarray, lens: np.ndarray, verdict: Verdict, budget: int, worth: float, middle: float = 0.0) -> Verdict:
    """One more cut, if the tail along the lens is too long; as far out as the budget wants."""
    squares = np.square(y @ lens - middle).sum(axis=1)
    threshold = excess_cut(squares[verdict.inside], lens.shape[1], worth)
    left = budget - int((~verdict.inside).sum())
    if not np.isfinite(threshold) or left <= 0:
        return verdict
    if (squares[verdict.inside] >= threshold).sum() > left:
        last = np.sort(squares[verdict.inside])[-left - 1 :][:2]
        threshold = float(np.nextafter(last[0], np.inf) if last[1] == last[0] else last.mean())
    inside = verdict.inside & (squares < threshold)
    if inside.all() or (inside == verdict.inside).all():
        return verdict
    return Verdict([*verdict.cuts, (lens, np.full(lens.shape[1], middle), threshold)], inside)


def outlying(z: np.ndarray, k: int, removed: float) -> Verdict:
    """What is outlying among rows (n, m) to a scatter that bears nearly half of all rows, of which a share was removed
    before; along as many of the leading columns as the rows can tell, and at least k."""
    borne = (_BORNE - removed) / (1 - removed) if removed < _BORNE else 0.0
    m = min(z.shape[1], max(k, len(z) // _ROWS_A_DIRECTION))
    verdict = examine(z[:, :m], borne, len(z) // 2) if borne else Verdict([], np.ones(len(z), bool))
    rest = np.zeros((z.shape[1] - m, 1))
    cuts = [(np.vstack([w, np.repeat(rest, w.shape[1], axis=1)]), c, limit) for w, c, limit in verdict.cuts]
    return Verdict(cuts, verdict.inside)


def normal_ball(z: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Center (m,), whitener (m, m) and squared radius of the ellipsoid that holds 97.5 % of rows that are normal."""
    center, scatter = robust_scatter(z, eps)
    return center, whitener_of(scatter), float(chi2.ppf(_LEVEL, z.shape[1]))


def inflation(z: np.ndarray) -> float:
    """The largest ratio of a variance to its robust counterpart, along the columns of z; 1 for normal data.

    Columns of which more than half the entries are one number have no robust scale, and are not judged.
    """
    _, spread = center_and_spread(z)
    seen = spread > 1e-9 * z.std(axis=0)
    return float((z[:, seen].var(axis=0) / spread[seen] ** 2).max(initial=1.0)) if seen.any() else 1.0


def filter_tolerance(eps: float, n: int) -> float:
    """How large `inflation` may be: the 3 eps log(1/eps) of the certificate, and what n rows do by chance."""
    return 1.0 + (3 * eps * np.log(1 / eps) if eps > 0 else 0.0) + 8 / np.sqrt(max(n, 1))


def tail_cutoff(distances: np.ndarray, level: float = 0.975) -> float:
    """Quantile of distances of normal data, robustly: by Wilson and Hilferty, their powers 2/3 are normal
    (Hubert, Rousseeuw and Vanden Branden 2005)."""
    center, spread = center_and_spread(np.cbrt(np.square(distances))[:, None])
    return float(np.sqrt((center[0] + norm.ppf(level) * spread[0]) ** 3))
