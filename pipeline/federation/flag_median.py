"""`flag_median`: the flag of least chordal distances, by reweighted means (Mankovich and Birdal 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.federation.members import Agreement, Members
from pipeline.flag import checked_type
from pipeline.kernels.averages import compressed
from pipeline.kernels.flags import chordal_median

__all__ = ["flag_median"]


def flag_median(members: Members, k: int, flag_type: Sequence[int] | None = None) -> Agreement:
    """Nested subspaces of the dimensions `flag_type` (default: (k,)); up to half move it little. Not associative."""
    kind = (k,) if flag_type is None else checked_type(flag_type, k)
    span, bases = compressed(members.bases)
    basis, trust, steps, rests = chordal_median([v[: kind[-1]] for v in bases], members.weights, kind)
    return Agreement(basis @ span, trust, steps, rests)
