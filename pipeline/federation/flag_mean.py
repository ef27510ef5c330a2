"""`flag_mean`: the flag of least squared chordal distances (Mankovich and Birdal 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.federation.members import Agreement, Members
from pipeline.flag import checked_type
from pipeline.kernels.averages import compressed
from pipeline.kernels.flags import chordal_mean

__all__ = ["flag_mean"]


def flag_mean(members: Members, k: int, flag_type: Sequence[int] | None = None) -> Agreement:
    """Nested subspaces of the dimensions `flag_type` (default: (k,), which is `projector_mean`). Not associative."""
    kind = (k,) if flag_type is None else checked_type(flag_type, k)
    span, bases = compressed(members.bases)
    basis, steps, rests = chordal_mean([v[: kind[-1]] for v in bases], np.asarray(members.weights), kind)
    return Agreement(basis @ span, members.weights, steps, rests)
