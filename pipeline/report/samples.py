"""What a page shows of samples: their scores, and how far each lies from the subspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StoreError
from pipeline.estimators.anomaly_detector import AnomalyDetector
from pipeline.estimators.robust_pca import RobustPCA
from pipeline.jobs.run import scores_of
from pipeline.jobs.spec import SourceSpec
from pipeline.subspace import Subspace

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["measured_samples", "stored_scores"]


def measured_samples(subspace: Subspace, source: str) -> tuple[xr.DataArray, np.ndarray]:
    """Scores of a source, and score distance and orthogonal distance of each sample (n, 2): two passes over it.

    Raises InputError and StoreError as `transform` does.
    """
    scores = scores_of(subspace, SourceSpec(path=source))
    if "robust" in subspace.provenance:
        return scores, RobustPCA.from_subspace(subspace).distances(source)
    rows = np.abs(scores.values.reshape(-1, subspace.k))
    spread = np.sqrt(subspace.explained_variance)
    floor = 1e-9 * float(spread.max(initial=0.0)) or 1.0
    inside = np.linalg.norm(rows / np.maximum(spread, floor), axis=1)
    outside = np.sqrt(np.asarray(AnomalyDetector(subspace).score(source))).reshape(-1)
    return scores, np.column_stack([inside, outside])


def stored_scores(store: str) -> Any:
    """Scores as `transform` or `fit --scores` wrote them, in memory; raises StoreError where there are none."""
    import xarray as xr

    try:
        with xr.open_zarr(store, consolidated=False) as ds:
            return ds["scores"].load()
    except Exception as error:  # whatever the storage below raises, the way out is the same
        raise StoreError(f"{store} holds no scores that can be read ({error}): write them with transform") from error
