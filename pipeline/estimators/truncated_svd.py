"""`TruncatedSVD`: the leading singular vectors of data as it is, not centred."""

from __future__ import annotations

from typing import Any

from pipeline.estimators.components import Components, settings_of
from pipeline.solvers import Settings

__all__ = ["TruncatedSVD"]


class TruncatedSVD(Components):
    """Truncated singular value decomposition of matrices of any size, with a certificate; PCA without centring.

    Parameters and attributes are those of `PCA`; `explained_variance_` is the variance of the scores and its ratio is
    over the variance of the data about its mean, as in scikit-learn.

    Examples
    --------
    >>> import numpy as np
    >>> svd = TruncatedSVD(n_components=1).fit(np.diag([3.0, 2.0, 1.0]))
    >>> svd.singular_values_.round(6).tolist(), abs(svd.components_).round(6).tolist()
    ([3.0], [[1.0, 0.0, 0.0]])
    """

    def __init__(
        self,
        n_components: int | float | str | None = 2,
        scale: str | None = None,
        solver: str = "auto",
        tol: float | None = None,
        missing: str = "error",
        memory_limit: int | str | None = None,
        checkpoint: Any = None,
        random_state: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.scale = scale
        self.solver = solver
        self.tol = tol
        self.missing = missing
        self.memory_limit = memory_limit
        self.checkpoint = checkpoint
        self.random_state = random_state

    def settings(self) -> Settings:
        """What is asked of a solver; raises InputError for parameters that cannot be."""
        return settings_of(self, False, self.scale)
