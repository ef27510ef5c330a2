"""`run_job`: a job from its source to its outputs, in one process or on a cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from pipeline.errors import InputError, PipelineError, StoreError
from pipeline.estimators import PCA, RobustPCA, TruncatedSVD
from pipeline.jobs.cluster import cluster_client
from pipeline.jobs.spec import JobSpec, ModelSpec, SourceSpec
from pipeline.matrix import Matrix, open_matrix
from pipeline.plans import Plan
from pipeline.store import save
from pipeline.store.head import ROOT, Head
from pipeline.subspace import Subspace

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["JobResult", "check_outputs", "make_estimator", "open_source", "run_job", "scores_of"]


@dataclass(frozen=True)
class JobResult:
    """What a job found, how it was planned, and where everything was written."""

    model: str
    scores: str | None
    report: str | None
    subspace: Subspace
    plan: Plan


def run_job(spec: JobSpec, *, client: Client | None = None) -> JobResult:
    """Fit the model of a job and write it, then its scores and report where they are asked for.

    Parameters
    ----------
    spec : JobSpec
        From `load_job` or `parse_job`.
    client : distributed.Client, optional
        Of the cluster to work on; default: the job's own cluster, else the one in Dask's configuration, else threads.

    Raises
    ------
    InputError
        When source, data or a parameter is wrong.
    PlanError
        When the work does not fit into memory, or a scheduler does not answer.
    StoreError
        Before any work when an output exists already or cannot be written; afterwards when a store fails. Each output
        is whole or not there.
    ConvergenceError
        When the accuracy asked for is not reached.
    """
    output = spec.output
    check_outputs([output.model, output.scores, output.report], spec.source.path, overwrite=output.overwrite)
    _check_is_model(output.model)
    with ExitStack() as stack:
        if client is None:
            stack.enter_context(cluster_client(spec=spec.cluster))
        else:
            stack.enter_context(client.as_current())
        matrix = open_source(spec.source)
        estimator = make_estimator(spec.model).fit(matrix)
        save(estimator.subspace_, output.model, overwrite=output.overwrite)
        try:
            _write_products(spec, matrix, estimator)
        except PipelineError as error:
            raise StoreError(f"{error} (the model itself is complete in {output.model})") from error
    return JobResult(output.model, output.scores, output.report, estimator.subspace_, estimator.plan_)


def open_source(spec: SourceSpec) -> Matrix:
    """The matrix that a job reads; raises InputError and StoreError as `open_matrix` does."""
    return open_matrix(
        spec.path,
        variable=spec.variable,
        sample_dims=spec.sample_dims,
        weights=spec.weights,
        select=spec.indexers(),
    )


_ESTIMATORS: dict[str, Any] = {"PCA": PCA, "RobustPCA": RobustPCA, "TruncatedSVD": TruncatedSVD}


def make_estimator(spec: ModelSpec) -> PCA | TruncatedSVD:
    """The estimator of a job, not fitted yet."""
    kind = _ESTIMATORS[spec.estimator]
    unasked = {name for name in ("method", "eps") if getattr(spec, name) is None}
    parameters = {**spec.model_dump(exclude={"estimator", *unasked}), "center": spec.center is not False}
    known = kind._get_param_names()
    return kind(**{name: value for name, value in parameters.items() if name in known})


def scores_of(subspace: Subspace, spec: SourceSpec, out: str | None = None, *, overwrite: bool = False) -> xr.DataArray:
    """Scores of a source on the components of a model, in memory or written to `out`; raises as `transform` does."""
    estimator = _ESTIMATORS.get(subspace.provenance.get("method", ""), PCA).from_subspace(subspace)
    # A bare path is opened with the model's own variables and sample dims.
    source = spec.path if spec == SourceSpec(path=spec.path) else open_source(spec)
    matrix = estimator.matrix(source)
    if out is not None:
        return estimator.transform(matrix, out=out, overwrite=overwrite)
    samples = matrix.samples
    values = estimator.transform(matrix).reshape(*samples.sizes, subspace.k)
    return xr.DataArray(values, samples.xarray_coords(), (*samples.dims, "mode"))


def check_outputs(outputs: Sequence[str | None], source: str | None = None, *, overwrite: bool = False) -> None:
    """See before any work that every output can be written and replaces nothing by accident.

    Raises
    ------
    InputError
        When two outputs, or an output and the source, are the same place.
    StoreError
        When an output exists (and `overwrite` is not set) or its directory cannot be written to.
    """
    taken = {} if source is None or "://" in source else {Path(source).resolve(): "the source"}
    for output in filter(None, outputs):
        if "://" in output:
            continue  # what a remote store allows is known when it is written to
        place = Path(output).resolve()
        for other, what in taken.items():
            if place == other or place in other.parents:
                raise InputError(f"{output} cannot be written, it holds {what}: choose another place")
        taken[place] = f"the output {output}"
        if place.exists() and not overwrite:
            raise StoreError(
                f"{output} exists already: choose another place, or replace it with overwrite (--overwrite)"
            )
        _check_writable(output, place)


def _check_writable(output: str, place: Path) -> None:
    above = next(p for p in place.parents if p.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=above):
            pass
    except OSError as error:
        raise StoreError(f"{output} cannot be written ({error.strerror} in {above}): choose another place") from error


def _check_is_model(output: str) -> None:
    """What a model replaces must be a model; an array under a mistyped name is not."""
    root = Path(output) / ROOT
    if root.exists():
        Head.parse(root.read_bytes(), output)


def _write_products(spec: JobSpec, matrix: Matrix, estimator: PCA | TruncatedSVD) -> None:
    output, scores = spec.output, None
    if output.scores is not None:
        scores = estimator.transform(matrix, out=output.scores, overwrite=output.overwrite)
    if output.report is not None:
        from pipeline.report import write_report  # Matplotlib takes a second to import

        write_report(estimator.subspace_, output.report, scores=scores, title=spec.name)
