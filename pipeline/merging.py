"""The subspace of two sets of samples together, and of a few samples; what truncated tails may have changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.errors import InputError, NonfiniteError
from pipeline.kernels.blocks import doubled, like, magnitudes
from pipeline.kernels.linalg import fix_signs, orthonormal
from pipeline.subspace import Subspace, same
from pipeline.turning import outside

__all__ = ["check_mergeable", "left_out", "merged", "of_rows", "tail_of"]


def merged(a: Subspace, b: Subspace, n_components: int | None) -> Subspace:
    """The subspace of both sets of samples (Iwen and Ong 2016, with means); raises as `check_mergeable` does."""
    if a.turn is not None or b.turn is not None:
        return merged(a.principal, b.principal, n_components)
    check_mergeable(a, b)
    n = a.n_samples + b.n_samples
    gap = (np.where(a.present, a.mean, 0.0) - np.where(b.present, b.mean, 0.0)) * a.factor
    shift = np.sqrt(a.n_samples * b.n_samples / n) if n else 0.0
    rows = [s.singular_values[:, None] * s.wide_basis for s in (a, b)]
    if a.centered:
        rows.append(shift * gap[None, :])
    stacked = np.concatenate(rows)
    # The SVD of a few long rows through the QR of their transpose: d x r, never d x d.
    q = orthonormal(stacked.conj().T)
    _, values, vt = np.linalg.svd(stacked @ q, full_matrices=False)
    spread = sum(s.total_variance * s.dof for s in (a, b)) + shift**2 * float(np.vdot(gap, gap).real)
    mean = (a.n_samples * a.mean + b.n_samples * b.mean) / n if n else a.mean
    dof = max(n - 1.0, 0.0) if a.centered else n
    k = min(n_components or max(a.k, b.k), values.size)
    tails = tails_of(a) + tails_of(b)
    tail = float(tails.sum())
    dtype = like(a.components.dtype, b.components)
    components = (vt[:k] @ q.conj().T).astype(dtype)
    components = components * fix_signs(components)[:, None].astype(dtype)
    squares = np.append(values**2, 0.0)
    room = squares[:k] - squares[1 : k + 1] - tail
    sine = np.divide(tail, room, out=np.ones(k), where=room > tail)
    return replace(
        a,
        components=np.where(a.present, components, np.nan).astype(dtype),
        singular_values=values[:k],
        mean=mean,
        n_samples=n,
        total_variance=spread / dof if dof else 0.0,
        residual=tail / np.maximum(squares[:k], max(1e-16 * float(squares[0]), np.finfo(float).tiny)),
        angle_bounds=np.arcsin(np.clip(sine, 0.0, 1.0)),
        passes=max(a.passes, b.passes),
        left_out=tails + np.array([squares[k], 0.0]),
    )


def of_rows(S: Subspace, rows: np.ndarray, sample_weights: np.ndarray | None) -> Subspace:
    """The exact, untruncated subspace of a few samples (m, d), with the weights, scale and centring of S.

    Raises InputError when width or weights do not fit, NonfiniteError when entries are NaN or Inf.
    """
    rows = rows.toarray() if hasattr(rows, "toarray") else np.atleast_2d(np.asarray(rows))
    rows = rows.astype(doubled(rows.dtype), copy=False)
    S.check_width(rows)
    values = rows[:, S.present]
    if not np.isfinite(values).all():
        raise NonfiniteError("rows to update with hold NaN or Inf: fill or leave out those samples")
    counts = np.ones(len(rows)) if sample_weights is None else np.asarray(sample_weights, np.float64)
    if counts.shape != (len(rows),) or not np.isfinite(counts).all() or (counts < 0).any():
        raise InputError(f"sample_weights must be {len(rows)} finite numbers that are not negative")
    n, mean = float(counts.sum()), np.full(S.n_features, np.nan, rows.dtype)
    pilot = values[0] if len(rows) else 0.0
    mean[S.present] = pilot + (counts / n) @ (values - pilot) if n else 0.0
    spread = (np.where(S.present, rows, 0.0) - np.where(S.present, mean, 0.0)) * S.factor
    z = spread if S.centered else np.where(S.present, rows, 0.0) * S.factor
    roots = np.sqrt(counts)[:, None]
    _, s, vt = np.linalg.svd(z * roots, full_matrices=False)
    part = replace(S, mean=mean, n_samples=n, turn=None, left_out=None)
    return replace(
        part,
        components=vt,
        singular_values=s,
        total_variance=float(magnitudes(spread * roots).sum() / part.dof) if part.dof else 0.0,
        residual=np.zeros(s.size),
        angle_bounds=np.zeros(s.size),
    )


def tail_of(S: Subspace) -> float:
    """Bound on the spectral norm of what the kept components leave of Z^T Z."""
    return float(tails_of(S).sum())


def tails_of(S: Subspace) -> np.ndarray:
    """Bounds on the norms of the two parts of it: what was left out, and what couples with the components.

    Merging adds the parts up. The first one is positive semidefinite, so that its trace, which is known, bounds it.
    """
    squares = np.square(S.singular_values, dtype=np.float64)
    energy = S.total_variance * S.dof
    if not S.centered:
        energy += S.n_samples * float(magnitudes(np.where(S.present, S.mean, 0) * S.factor).sum())
    rest = max(energy - float(squares.sum()), 0.0) + 1e-14 * energy
    if S.left_out is not None:
        return np.array([min(rest, float(S.left_out[0])), float(S.left_out[1])])
    return np.array([min(rest, float(squares.min(initial=np.inf))), float(np.max(outside(S), initial=0.0))])


def left_out(S: Subspace, k: int) -> np.ndarray | None:
    """What is left out when only the first k components stay; None where the residuals tell."""
    if S.left_out is None and S.turn is None:
        return None
    factor = np.diag(np.asarray(S.singular_values, np.float64)) if S.turn is None else S.turn
    dropped = np.linalg.norm(factor[k:], 2) ** 2, np.linalg.norm(factor[:k] @ factor[k:].conj().T, 2)
    return tails_of(S) + np.array(dropped)


def check_mergeable(a: Subspace, b: Subspace) -> None:
    """Raise InputError when features, weights, scale or centring differ."""
    a.check_same_features(b)
    for name in ("scale", "weights", "centered"):
        if not same(getattr(a, name), getattr(b, name)):
            raise InputError(f"cannot merge: the subspaces were fitted with different {name}")
    if not np.array_equal(a.present, b.present):
        raise InputError("cannot merge: the subspaces miss different features")
