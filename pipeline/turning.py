"""Components that are turned inside their span, to lie near those of another subspace, and turned back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.errors import InputError
from pipeline.kernels.blocks import magnitudes
from pipeline.kernels.linalg import fix_signs
from pipeline.subspace import Subspace

__all__ = ["outside", "principal", "turned"]

_TINY = np.finfo(float).tiny


def turned(S: Subspace, other: Subspace) -> Subspace:
    """S with its components as near as they can lie to those of `other` (orthogonal Procrustes, Schönemann 1966).

    Raises InputError when the features differ, or `other` has fewer components.
    """
    S.check_same_features(other)
    if other.k < S.k:
        raise InputError(f"cannot align {S.k} components to {other.k}: truncate({other.k}) first")
    if S.turn is not None:
        return turned(principal(S), other)
    a, b = S.wide_basis, other.wide_basis
    u, _, vt = np.linalg.svd(b[: S.k] @ a.conj().T)
    turn = u @ vt
    squares = np.square(S.singular_values, dtype=np.float64)
    moments = (turn * squares) @ turn.conj().T
    values = np.sqrt(np.maximum(np.diag(moments).real, 0.0))
    coupling = np.linalg.norm(moments - np.diag(np.diag(moments)), axis=1)
    leaks = np.sqrt(magnitudes(turn) @ (S.residual * squares) ** 2)
    components = (turn @ np.where(S.present, S.components, 0)).astype(S.components.dtype)
    return replace(
        S,
        components=np.where(S.present, components, np.nan).astype(S.components.dtype),
        singular_values=values,
        residual=np.hypot(coupling, leaks) / np.maximum(values**2, _TINY),
        # A turn mixes the components: what is certified is their whole span, and so every part of it is not.
        angle_bounds=np.append(np.full(S.k - 1, np.pi / 2), S.angle_bound)[: S.k],
        turn=turn * np.asarray(S.singular_values, np.float64),
    )


def principal(S: Subspace) -> Subspace:
    """S with principal components, in which the scores are uncorrelated."""
    turn = S.turn
    if turn is None or not np.allclose(np.linalg.norm(turn, axis=1), S.singular_values, rtol=1e-6):
        return S if turn is None else replace(S, turn=None)
    left, values, _ = np.linalg.svd(turn, full_matrices=False)
    components = left.conj().T @ S.wide_basis
    components = components * fix_signs(components)[:, None]
    return replace(
        S,
        components=np.where(S.present, components, np.nan).astype(S.components.dtype),
        singular_values=values,
        residual=np.full(S.k, float(np.max(outside(S), initial=0.0))) / np.maximum(values**2, _TINY),
        angle_bounds=np.append(np.full(S.k - 1, np.pi / 2), S.angle_bound)[: S.k],
        turn=None,
    )


def outside(S: Subspace) -> np.ndarray:
    """(k,) norms of what C maps out of the span, as far as the residuals tell; a turn stays inside."""
    squares = np.square(S.singular_values, dtype=np.float64)
    if S.turn is None:
        return S.residual * squares
    moments = S.turn @ S.turn.conj().T
    coupling = np.linalg.norm(moments - np.diag(np.diag(moments)), axis=1)
    return np.sqrt(np.maximum((S.residual * squares) ** 2 - coupling**2, 0.0))
