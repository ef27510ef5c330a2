"""Subspace Pipeline: certified dominant subspaces of matrices far larger than memory.

>>> import numpy as np
>>> from pipeline import PCA, open_matrix
>>> X = open_matrix(np.random.default_rng(0).normal(size=(200, 6)) * [9, 5, 1, 1, 1, 1])
>>> model = PCA(n_components=2).fit(X)
>>> model.components_.shape
(2, 6)
>>> bool(model.subspace_.angle_bound < 1e-10)
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline import errors as errors
    from pipeline.adjoint import dottest as dottest
    from pipeline.estimators.anomaly_detector import AnomalyDetector as AnomalyDetector
    from pipeline.estimators.federated_pca import FederatedPCA as FederatedPCA
    from pipeline.estimators.pca import PCA as PCA
    from pipeline.estimators.robust_pca import RobustPCA as RobustPCA
    from pipeline.estimators.truncated_svd import TruncatedSVD as TruncatedSVD
    from pipeline.federation import DP as DP
    from pipeline.federation import Site as Site
    from pipeline.federation import aggregate as aggregate
    from pipeline.flag import Flag as Flag
    from pipeline.matrix import Matrix as Matrix
    from pipeline.matrix import open_matrix as open_matrix
    from pipeline.plans import plan as plan
    from pipeline.sources import Operator as Operator
    from pipeline.store import load as load
    from pipeline.subspace import Subspace as Subspace

# Where each public name lives. Names are imported at their first use: Dask, xarray and scikit-learn cost seconds,
# and `import pipeline` (as `pipeline --help`) must not.
_HOME = {
    "AnomalyDetector": "pipeline.estimators.anomaly_detector",
    "DP": "pipeline.federation",
    "FederatedPCA": "pipeline.estimators.federated_pca",
    "Flag": "pipeline.flag",
    "Matrix": "pipeline.matrix",
    "Operator": "pipeline.sources",
    "PCA": "pipeline.estimators.pca",
    "RobustPCA": "pipeline.estimators.robust_pca",
    "Site": "pipeline.federation",
    "Subspace": "pipeline.subspace",
    "TruncatedSVD": "pipeline.estimators.truncated_svd",
    "aggregate": "pipeline.federation",
    "dottest": "pipeline.adjoint",
    "errors": "pipeline.errors",
    "load": "pipeline.store",
    "open_matrix": "pipeline.matrix",
    "plan": "pipeline.plans",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    home = import_module(_HOME[name])
    value = home if name == "errors" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
