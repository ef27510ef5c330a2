"""Where an answer comes from: method, parameters, source, versions and time, as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.folds import Content
from pipeline.matrix import Matrix
from pipeline.plans import Plan
from pipeline.sources import stamp_of_rows, view
from pipeline.subspace import Subspace

__all__ = ["plain", "provenance", "whereabouts"]

_LIBRARIES = ("subspace-pipeline", "numpy", "scipy", "dask", "distributed", "zarr", "xarray", "scikit-learn")


def provenance(
    found: Subspace,
    method: str,
    parameters: Mapping[str, Any],
    X: Matrix,
    plan: Plan | None = None,
    content: Content | None = None,
) -> Subspace:
    """The same subspace with the story of its making.

    Batches come without a plan, and with the content of the rows that were added or taken away; a fit has seen X.
    """
    seen = list(found.provenance.get("seen") or [])
    if seen and content is None:
        content = Content.of(seen[-1])
        seen[-1] = {**seen[-1], **whereabouts(X, X.shape[0])}
    story = {
        "method": method,
        "parameters": {name: plain(value) for name, value in parameters.items()},
        "source": {
            "name": X.name,
            "layout": X.source.layout,
            "shape": list(X.shape),
            "dtype": str(X.dtype),
            "sample_dims": list(X.samples.dims),
            "feature_dims": list(X.features.dims),
            **({} if content is None else {"content": content.id}),
        },
        "seed": plain(parameters.get("random_state")),
        "versions": dict(_versions()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **({} if plan is None else {"plan": str(plan)}),
        **found.provenance,
        **({"seen": seen} if seen else {}),
    }
    return replace(found, provenance=story)


@cache
def _versions() -> dict[str, str]:
    """Of the libraries in this process: to look them up takes as long as a small fit."""
    return {library: version(library) for library in _LIBRARIES}


def whereabouts(X: Matrix, stop: int, start: int = 0) -> dict[str, Any]:
    """Where rows that a model has seen were found, so that they are known again without being read."""
    local = "://" not in X.name and Path(X.name).exists()
    return {
        "name": str(Path(X.name).resolve()) if local else X.name,
        "view": view(X.source),
        "rows": [start, stop],
        "stamp": stamp_of_rows(X.source, stop),
    }


def plain(value: Any) -> Any:
    """A parameter as a JSON value."""
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, int | float | str | bool | None) else str(value)
