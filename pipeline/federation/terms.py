"""`Terms`: what sites agree to do before the first round."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.federation.privacy import DP

__all__ = ["Terms"]


@dataclass(frozen=True)
class Terms:
    """The same for every site, and part of every request.

    `k` components are wanted and `local` asked of a site that gives its own; `scale` is None or 'std', by the spread
    that sites have together ('global') or each by its own ('site').
    """

    k: int
    local: int
    center: bool = True
    scale: str | None = None
    standardise: str = "global"
    rounds: int | None = None
    tol: float = 1e-8
    seed: int = 0
    privacy: DP | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What sites need to know of it."""
        facts = {"k": self.local, "center": self.center, "scale": self.scale, "standardise": self.standardise}
        return facts if self.privacy is None else {**facts, "privacy": self.privacy.to_dict()}

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)
