"""Where an answer comes from: method, parameters, source, versions and time, as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from pipeline.folds import Content
from pipeline.matrix import Matrix
from pipeline.plans import Plan
from pipeline.subspace import Subspace

__all__ = ["provenance"]

_LIBRARIES = ("subspace-pipeline", "numpy", "scipy", "dask", "distributed", "zarr", "xarray", "scikit-learn")


def provenance(
    found: Subspace, method: str, parameters: Mapping[str, Any], X: Matrix, plan: Plan | None = None
) -> Subspace:
    """The same subspace with the story of its making; batches are added without a plan."""
    seen = found.provenance.get("seen") or []
    content = {"content": Content.of(seen[-1]).id} if seen else {}
    story = {
        "method": method,
        "parameters": {name: _plain(value) for name, value in parameters.items()},
        "source": {
            "name": X.name,
            "layout": X.source.layout,
            "shape": list(X.shape),
            "dtype": str(X.dtype),
            "sample_dims": list(X.samples.dims),
            "feature_dims": list(X.features.dims),
            **content,
        },
        "seed": _plain(parameters.get("random_state")),
        "versions": {library: version(library) for library in _LIBRARIES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **({} if plan is None else {"plan": str(plan)}),
        **found.provenance,
    }
    return replace(found, provenance=story)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, int | float | str | bool | None) else str(value)
