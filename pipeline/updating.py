"""What may change in the data of a subspace, and what it becomes then; nothing old is read again.

Scatters add up, with a term for the means (Chan, Golub and LeVeque 1983), and so they subtract:
C' = C - C_part - n_part n / n' g g^T, with g the distance of the part's mean from that of all. All terms are of low
rank, so that a small eigenproblem in the span of the components and the rows gives the answer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.errors import InputError, NonfiniteError
from pipeline.kernels.linalg import eigh_descending, fix_signs, orthonormal
from pipeline.labels import Labels
from pipeline.merging import check_mergeable, tail_of
from pipeline.subspace import Subspace

__all__ = ["aligned", "check_change", "discounted", "extended", "reweighed", "subtracted"]

_EPS, _TINY = np.finfo(float).eps, np.finfo(float).tiny


def check_change(forget: float, align: str | None) -> None:
    """Raise InputError for what `discounted` and `aligned` would refuse, before anything is read."""
    if not isinstance(forget, int | float | np.number) or not 0 < forget <= 1:
        raise InputError(f"forget={forget!r}: give what old samples count from now on, above 0 and at most 1")
    if align not in (None, "procrustes"):
        raise InputError(f"align={align!r}: choose None or 'procrustes'")


def aligned(found: Subspace, before: Subspace, how: str | None) -> Subspace:
    """A version made comparable with the one before it; raises InputError for an unknown way."""
    check_change(1.0, how)
    return found if how is None or not before.k else found.align(before)


def discounted(S: Subspace, factor: float) -> Subspace:
    """The subspace of samples each of which counts `factor` times what it did; raises InputError outside (0, 1]."""
    check_change(factor, None)
    if factor == 1:
        return S
    n = S.n_samples * factor
    dof = max(n - 1.0, 0.0) if S.centered else n
    spread = S.total_variance * S.dof * factor
    return replace(
        S,
        singular_values=S.singular_values * np.sqrt(factor),
        n_samples=n,
        total_variance=spread / dof if dof else 0.0,
        turn=None if S.turn is None else S.turn * np.sqrt(factor),
        left_out=None if S.left_out is None else S.left_out * factor,
    )


def subtracted(S: Subspace, part: Subspace) -> Subspace:
    """The inverse of `merge`: the subspace of the samples of S that are not those of `part`.

    Exact up to the root of the roundoff when both kept every direction of their data; otherwise the certificate says
    what may have been lost. Raises InputError when `part` cannot be a part of S.
    """
    S, part = _real(S), _real(part)
    check_mergeable(S, part)
    n = S.n_samples - part.n_samples
    if n < 1 - 1e-9:
        raise InputError(
            f"{part.n_samples:g} samples cannot be taken away from {S.n_samples:g}: at least one must stay"
        )
    shift = (np.where(S.present, part.mean, 0.0) - np.where(S.present, S.mean, 0.0)) * S.factor
    own, theirs = (s.singular_values[:, None] * np.asarray(s.basis, np.float64) for s in (S, part))
    gap = [np.sqrt(part.n_samples * S.n_samples / n) * shift[None, :]] if S.centered else []
    # C' = C - C_part - n_part n / n' g g^T: the inverse of Chan's formula.
    away = np.concatenate([theirs, *gap])
    q = orthonormal(np.concatenate([own, away]).T)
    inner, outer = own @ q, away @ q
    theta, vectors = eigh_descending(inner.T @ inner - outer.T @ outer)
    loud = float(np.square(inner).sum() + np.square(outer).sum())
    spread = S.total_variance * S.dof - part.total_variance * part.dof
    spread -= S.n_samples * part.n_samples / n * float(shift @ shift)
    tail = tail_of(S) + tail_of(part) + (10 + np.sqrt(len(theta))) * _EPS * loud
    scale = max(float(S.singular_values.max(initial=0.0)) ** 2, _TINY)
    if spread < -1e-9 * (S.total_variance * S.dof + _TINY) or theta[-1] < -max(tail, 1e-9 * scale):
        raise InputError("these rows cannot have been among the samples: there is less variance without them than none")
    mean = S.mean + (S.mean - part.mean) * (part.n_samples / n)
    return _cut(S, theta, vectors, q, tail, n, max(spread, 0.0), mean)


def reweighed(S: Subspace, weights: np.ndarray) -> Subspace:
    """The subspace with other feature weights (d,); raises InputError where a weight of zero would have to grow.

    What the kept components leave of the variance is counted at the largest change of a weight.
    """
    S = _real(S)
    new = np.asarray(weights, np.float64)
    if new.shape != (S.n_features,) or not np.isfinite(new).all() or (new < 0).any():
        raise InputError(f"weights must be {S.n_features} finite numbers that are not negative")
    old = np.ones(S.n_features) if S.weights is None else S.weights
    if ((old == 0) & (new > 0) & S.present).any():
        raise InputError("features of weight zero have left no trace in the subspace: fit anew to weigh them")
    change = np.divide(new, old, out=np.zeros_like(new), where=(old > 0) & S.present)
    most = float(change.max(initial=0.0)) ** 2
    own = S.singular_values[:, None] * np.asarray(S.basis, np.float64) * change
    q = orthonormal(own.T)
    theta, vectors = eigh_descending((own @ q).T @ (own @ q))
    energy = _energy(S)
    rest = max(energy - float(np.square(S.singular_values, dtype=np.float64).sum()), 0.0)
    spread = float(theta.sum()) + (rest * most if rest > 1e-12 * energy else 0.0)
    turned = replace(S, weights=new)
    if not S.centered:
        spread -= S.n_samples * float(np.square(np.where(S.present, S.mean, 0.0) * turned.factor).sum())
    tail = tail_of(S) * most + (10 + np.sqrt(len(theta))) * _EPS * float(theta.sum())
    return _cut(turned, theta, vectors, q, tail, S.n_samples, max(spread, 0.0), S.mean)


def extended(S: Subspace, columns: np.ndarray, scores: np.ndarray, weights: np.ndarray | None) -> Subspace:
    """The subspace of the same samples with more features beside; raises InputError where shapes do not fit."""
    S = S if S.turn is not None else _real(S)
    columns, scores = np.asarray(columns, np.float64), np.asarray(scores, np.float64)
    if columns.ndim != 2 or scores.shape != (len(columns), S.k):
        raise InputError(f"columns {columns.shape} and scores {scores.shape}: (n, c) and (n, {S.k}) are needed")
    if len(columns) != S.n_samples:
        raise InputError(f"{len(columns)} rows: the subspace is that of {S.n_samples:g} samples, each counted once")
    if S.scale is not None:
        raise InputError("features of a scaled subspace cannot be added: their scale would have to be found first")
    if not np.isfinite(columns).all():
        raise NonfiniteError("columns hold NaN or Inf: fill them first")
    c = columns.shape[1]
    own = None if weights is None and S.weights is None else np.ones(c) if weights is None else np.asarray(weights)
    if own is not None and own.shape != (c,):
        raise InputError(f"weights have shape {own.shape}: {c} are needed")
    mean = columns.mean(axis=0) if len(columns) else np.zeros(c)
    spread = (columns - mean) * (1.0 if own is None else own)
    z = spread if S.centered else columns * (1.0 if own is None else own)
    r = np.linalg.qr(np.hstack([scores, z]), mode="r")
    _, values, turn = np.linalg.svd(r, full_matrices=False)
    k = min(S.k, values.size)
    lens = np.zeros((S.k + c, S.n_features + c))
    lens[: S.k, : S.n_features], lens[S.k :, S.n_features :] = S.basis, np.eye(c)
    squares = values**2
    # Z^T Z couples what the kept components leave with the new columns.
    rest = tail_of(S)
    tail = rest + np.sqrt(rest) * float(np.linalg.norm(z, 2)) if rest > 0 else 0.0
    old = np.ones(S.n_features) if S.weights is None else S.weights
    joined = replace(
        S,
        mean=np.concatenate([S.mean, mean]),
        weights=None if own is None else np.concatenate([old, own]),
        components=np.zeros((0, S.n_features + c), S.components.dtype),
        features=Labels.plain("feature", S.n_features + c) if S.features is not None else None,
        turn=None,
    )
    total = S.total_variance * S.dof + float(np.square(spread).sum())
    return _cut(joined, squares, turn.T, lens.T, tail, S.n_samples, total, joined.mean, k)


def _real(S: Subspace) -> Subspace:
    """The principal form; raises InputError for complex components, which can only be added to."""
    if S.components.dtype.kind == "c":
        raise InputError("the components are complex: only adding rows is offered for them")
    return S.principal


def _energy(S: Subspace) -> float:
    """Trace of Z^T Z."""
    energy = S.total_variance * S.dof
    if not S.centered:
        energy += S.n_samples * float(np.square(np.where(S.present, S.mean, 0) * S.factor).sum())
    return energy


def _cut(
    S: Subspace,
    theta: np.ndarray,
    vectors: np.ndarray,
    q: np.ndarray,
    tail: float,
    n: float,
    spread: float,
    mean: np.ndarray,
    k: int | None = None,
) -> Subspace:
    """The leading components of q vectors diag(theta) vectors^T q^T, with what `tail` may have turned."""
    k = min(S.k if k is None else k, len(theta))
    dtype = S.components.dtype
    components = (q @ vectors[:, :k]).T
    components *= fix_signs(components)[:, None]
    room = theta[:k] - np.append(theta, 0.0)[1 : k + 1] - tail
    sine = np.divide(tail, room, out=np.ones(k), where=room > tail)
    dof = max(n - 1.0, 0.0) if S.centered else n
    return replace(
        S,
        components=np.where(np.isfinite(mean), components, np.nan).astype(dtype),
        singular_values=np.sqrt(np.maximum(theta[:k], 0.0)),
        mean=mean,
        n_samples=n,
        total_variance=spread / dof if dof else 0.0,
        residual=tail / np.maximum(theta[:k], _TINY),
        angle_bounds=np.arcsin(np.clip(sine, 0.0, 1.0)),
        turn=None,
        # No longer a sum of positive semidefinite parts: nothing but the norm bounds it.
        left_out=np.array([0.0, tail + float(np.abs(theta[k:]).max(initial=0.0))]),
    )
