"""`procrustes`: bases turned to a reference and averaged (Charisopoulos, Benson and Damle 2021)."""

from __future__ import annotations

from numbers import Integral

import numpy as np

from pipeline.errors import InputError
from pipeline.federation.members import Agreement, Members
from pipeline.kernels.averages import polar_rows
from pipeline.kernels.averages import procrustes as turned

__all__ = ["procrustes"]


def procrustes(members: Members, k: int, refinements: int = 2) -> Agreement:
    """The first reference is the heaviest member; each refinement takes the average so far. Not associative."""
    if not isinstance(refinements, Integral) or refinements < 0:
        raise InputError(f"refinements={refinements!r}: give a number from 0")
    full = [j for j, v in enumerate(members.bases) if len(v) == k]
    if not full:
        raise InputError(f"no member has {k} components to turn the others to: ask for fewer")
    basis = members.bases[max(full, key=lambda j: members.weights[j])]
    for _ in range(1 + refinements):
        average = sum(w * turned(v, basis) for w, v in zip(members.weights, members.bases, strict=True))
        basis = polar_rows(np.asarray(average))
    return Agreement(basis, members.weights, 1 + refinements)
