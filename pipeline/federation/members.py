"""`Members`: the subspaces that are to be agreed on, checked and in the form that aggregations take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import InputError
from pipeline.kernels.linalg import orthonormal
from pipeline.subspace import Subspace

__all__ = ["Aggregation", "Agreement", "Members"]


@dataclass(frozen=True)
class Members:
    """What each member says, in float64: `subspaces`, their bases (k_i, d), and weights (m,) that sum to 1."""

    subspaces: tuple[Subspace, ...]
    bases: tuple[np.ndarray, ...]
    weights: np.ndarray

    @classmethod
    def of(cls, subspaces: Sequence[Subspace], k: int) -> Members:
        """Members weighted by n_samples, each with up to k directions in which its samples vary."""
        subspaces = tuple(replace(s, components=s.components.astype(np.float64)) for s in subspaces)
        n = np.array([s.n_samples for s in subspaces])
        if not np.isfinite(n).all() or (n <= 0).any():
            worst = int(np.argmax(~(n > 0)))
            raise InputError(f"subspace {worst} is of {n[worst]:g} samples: there is nothing to weigh it by")
        return cls(subspaces, tuple(_directions(s, k) for s in subspaces), n / n.sum())


@dataclass(frozen=True)
class Agreement:
    """An agreed basis (k, d) of orthonormal rows.

    `trust` (m,) is the weight that each member had, zero for those left out; `steps` were taken, and `rests` says
    whether they came to rest.
    """

    basis: np.ndarray
    trust: np.ndarray
    steps: int = 1
    rests: bool = True


Aggregation = Callable[..., Agreement]
"""One rule, a file each: members, number of components and its options to what they agree on."""


def _directions(s: Subspace, k: int) -> np.ndarray:
    """(k_i, d) the leading rows along which there is variance, orthonormal to rounding."""
    values = s.singular_values[:k]
    some = values > 1e-12 * values.max(initial=0.0)
    rows = s.basis[:k][some]
    error = np.abs(rows @ rows.T - np.eye(len(rows))).max(initial=0.0)
    if error > 1e-12:  # stored in single precision
        turn = orthonormal(rows.T).T
        rows = turn * np.sign(np.einsum("ij,ij->i", turn, rows))[:, None]
    return rows
