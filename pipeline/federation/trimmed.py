"""`trimmed`: the projector mean without the members that stand out, alone or together."""

from __future__ import annotations

from dataclasses import replace
from numbers import Real

import numpy as np

from pipeline.errors import InputError
from pipeline.federation.geometric_median import geometric_median
from pipeline.federation.members import Agreement, Members
from pipeline.federation.projector_mean import projector_mean
from pipeline.kernels.averages import compressed, procrustes

__all__ = ["trimmed"]


def trimmed(members: Members, k: int, trim: float = 0.35) -> Agreement:
    """Leave out up to the share `trim` of the weight, and average the rest. Not associative.

    About the geometric median each member is a tangent vector. Liars who agree with each other stretch the cloud of
    these along one direction, however small their lie is beside the noise of a single member; liars who do not are far
    out. So the member that is farthest along the cloud's longest axis goes, again and again (the filter of Diakonikolas
    et al. 2019).
    """
    if not isinstance(trim, Real) or not 0 <= trim < 0.5:
        raise InputError(f"trim={trim!r}: give a share of at least 0 and below one half")
    first = geometric_median(members, k)
    span, bases = compressed(members.bases)
    center = first.basis @ span.T
    tangents = np.stack([(procrustes(v, center) - center).ravel() for v in bases])
    kept = np.ones(len(bases), bool)
    while True:
        weights = np.where(kept, members.weights, 0.0)
        spread = tangents - (weights / weights.sum()) @ tangents
        gram = spread @ spread.T * np.sqrt(np.outer(weights, weights))
        along = np.linalg.eigh(gram)[1][:, -1] / np.sqrt(np.where(kept, members.weights, np.inf))
        worst = int(np.argmax(np.abs(along)))
        if weights.sum() - weights[worst] < 1 - trim - 1e-12 or kept.sum() == 1:
            break
        kept[worst] = False
    few = replace(
        members,
        subspaces=tuple(s for s, good in zip(members.subspaces, kept, strict=True) if good),
        bases=tuple(v for v, good in zip(members.bases, kept, strict=True) if good),
        weights=members.weights[kept] / members.weights[kept].sum(),
    )
    trust = np.where(kept, members.weights, 0.0)
    return Agreement(projector_mean(few, k).basis, trust / trust.sum(), first.steps, first.rests)
