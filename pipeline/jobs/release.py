"""`release`: a version of a model gets a name for those who use it, after its checks have passed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.drift import drift
from pipeline.store import history, load
from pipeline.store import tag as give_tag
from pipeline.subspace import Subspace

__all__ = ["Released", "release"]


@dataclass(frozen=True)
class Released:
    """The version that was checked, the one that has the name now (None: none has), and why a check failed."""

    version: int
    tag: str
    tagged: int | None
    before: int | None
    """The version that had the name when the checks began."""
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return not self.reasons

    def __str__(self) -> str:
        if self.reasons:
            stays = "nothing has the name" if self.tagged is None else f"it stays version {self.tagged}"
            return f"REFUSED: version {self.version} is not {self.tag!r}, {stays}: {'; '.join(self.reasons)}"
        if self.before == self.version:
            return f"nothing new: {self.tag!r} is version {self.version}"
        return f"{self.tag!r} is version {self.version} now" + ("" if self.before is None else f", was {self.before}")


def release(
    model: str,
    tag: str,
    *,
    min_samples: int | None = None,
    min_variance: float | None = None,
    max_bound: float | None = None,
    max_angle: float | None = None,
    max_outside: float | None = None,
) -> Released:
    """Tag the head of a model when its checks pass; when one fails, the tag stays where it is.

    That every chunk of the version is there and fits its checksum, and that no number in it is NaN or infinite where
    there is a feature, is always checked.

    Parameters
    ----------
    model : str
        Path or URL.
    tag : str
        Such as 'operational'. It only moves to newer versions here; `pipeline tag` moves it back.
    min_samples : int, optional
    min_variance : float, optional
        Share of the variance that the components explain at least.
    max_bound : float, optional
        Degrees that the certificate's bound of the largest angle to the true subspace may have.
    max_angle : float, optional
        Degrees that the largest principal angle to the version that has the tag may have.
    max_outside : float, optional
        Share of its variance that may lie outside of that version.

    Raises
    ------
    InputError
        When the tag is no name.
    StoreError
        When the model is damaged or cannot be written.
    ConflictError
        When a newer version has got the tag meanwhile.
    """
    told = history(model)
    head = next(v for v in told.versions if v.id == told.head)
    before = next((v for v in told.versions if v.id == told.tags.get(tag)), None)
    S = load(model, head.id)
    reasons = [*_of_its_own(S, min_samples, min_variance, max_bound)]
    if before is not None and before.id != head.id:
        reasons += _beside(load(model, before.id), S, max_angle, max_outside)
    number = None if before is None else before.number
    if reasons:
        return Released(head.number, tag, number, number, tuple(reasons))
    if before is None or before.id != head.id:
        give_tag(model, tag, head.id, forward=True)
    return Released(head.number, tag, head.number, number, ())


def _of_its_own(S: Subspace, min_samples: int | None, min_variance: float | None, max_bound: float | None) -> list[str]:
    reasons = []
    parts = S.basis, S.singular_values, S.mean[S.present]
    if not all(np.isfinite(part).all() for part in parts):
        reasons.append("it holds numbers that are not finite")
    if min_samples is not None and S.n_samples < min_samples:
        reasons.append(f"{S.n_samples:g} samples are fewer than {min_samples}")
    share = float(S.explained_variance_ratio.sum())
    if min_variance is not None and not share >= min_variance:
        reasons.append(f"it explains {100 * share:.4g} % of the variance, less than {100 * min_variance:g} %")
    bound = float(np.degrees(S.angle_bound))
    if max_bound is not None and not bound <= max_bound:
        reasons.append(f"it is certified to {bound:.3g} degrees, not to {max_bound:g}")
    return reasons


def _beside(before: Subspace, S: Subspace, max_angle: float | None, max_outside: float | None) -> list[str]:
    if max_angle is None and max_outside is None:
        return []
    found, reasons = drift(before, S), []
    angle = float(np.degrees(found.angles[0]))
    if max_angle is not None and angle > max_angle:
        reasons.append(f"it is turned by {angle:.4g} degrees, more than {max_angle:g}")
    if max_outside is not None and found.outside > max_outside:
        reasons.append(f"{100 * found.outside:.4g} % of its variance is new, more than {100 * max_outside:g} %")
    return reasons
