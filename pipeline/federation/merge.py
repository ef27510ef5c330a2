"""`merge`: the subspace of all samples together, means included (Iwen and Ong 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.federation.members import Agreement, Members
from pipeline.subspace import Subspace

__all__ = ["merge", "merged"]


def merge(members: Members, k: int) -> Agreement:
    """Exact, and associative, where every member kept all directions of its samples; else up to what was cut off."""
    return Agreement(merged(members.subspaces).truncate(k).components, members.weights)


def merged(subspaces: Sequence[Subspace]) -> Subspace:
    """All members as one, in a tree of pairs and with nothing cut off: at most sum_i (k_i + 1) or d components."""
    level = list(subspaces)
    while len(level) > 1:
        pairs = [(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = [a.merge(b, n_components=a.k + b.k + 1) for a, b in pairs] + level[2 * len(pairs) :]
    return level[0]
