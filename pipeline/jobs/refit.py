"""`refit`: the fit that runs every night: a new version where there is something new, and nothing where not."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.folds import Content
from pipeline.jobs.cluster import cluster_client
from pipeline.jobs.run import JobResult, head_of, make_estimator, open_source, place_of, run_job
from pipeline.jobs.spec import JobSpec
from pipeline.jobs.update import content_of
from pipeline.matrix import Matrix
from pipeline.provenance import plain, whereabouts
from pipeline.store import load

__all__ = ["refit"]


def refit(spec: JobSpec) -> JobResult | None:
    """Run a job whose model becomes the next version, from its checkpoint where an earlier run was killed.

    Parameters
    ----------
    spec : JobSpec
        `output.overwrite` is taken for true. Without a `model.checkpoint`, MODEL.checkpoint beside the model is one.

    Returns
    -------
    JobResult or None
        None where the head was fitted with the same parameters to the same entries, which are read once to know.

    Raises
    ------
    As `run_job`; ConflictError when somebody else has published meanwhile.
    """
    output = spec.output.model_copy(update={"overwrite": True})
    model = spec.model
    if model.checkpoint is None and "://" not in output.model:
        model = model.model_copy(update={"checkpoint": f"{output.model}.checkpoint"})
    spec = spec.model_copy(update={"output": output, "model": model})
    with cluster_client(spec=spec.cluster) as client:
        return None if _known(spec) else run_job(spec, client=client)


def _known(spec: JobSpec) -> bool:
    place = place_of(spec.output)
    if head_of(place, overwrite=True) is None:
        return False
    S, X = load(place), open_source(spec.source)
    story, asked = S.provenance, make_estimator(spec.model).get_params()
    asked = {name: plain(value) for name, value in asked.items() if name != "checkpoint"}
    parameters = {name: value for name, value in story.get("parameters", {}).items() if name != "checkpoint"}
    if (story.get("method"), parameters, story.get("parent")) != (spec.model.estimator, asked, None):
        return False
    return _same_entries(X, list(story.get("seen") or [])) and _same_weights(S.weights, X.weights)


def _same_entries(X: Matrix, seen: list[dict[str, Any]]) -> bool:
    here = whereabouts(X, X.shape[0])
    if len(seen) != 1 or any(seen[0].get(key) != here[key] for key in ("name", "view", "rows")):
        return False
    return content_of(X, Content.of(seen[0])).id == Content.of(seen[0]).id


def _same_weights(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
