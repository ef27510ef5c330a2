"""`run_job`: a job from its source to its outputs, in one process or on a cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from pipeline.errors import InputError, PipelineError, StoreError
from pipeline.estimators.anomaly_detector import AnomalyDetector
from pipeline.estimators.pca import PCA
from pipeline.estimators.robust_pca import RobustPCA
from pipeline.estimators.truncated_svd import TruncatedSVD
from pipeline.jobs.cluster import cluster_client
from pipeline.jobs.spec import JobSpec, ModelSpec, OutputSpec, SourceSpec, scalar
from pipeline.matrix import Matrix, open_matrix
from pipeline.plans import Plan, plan
from pipeline.store import history, load, save
from pipeline.store.checkpoint import checkpoint_at
from pipeline.store.head import ROOT
from pipeline.store.probe import probe
from pipeline.store.read import is_icechunk, locate
from pipeline.subspace import Subspace

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "JobResult",
    "anomalies_of",
    "check_job",
    "check_outputs",
    "count_above",
    "head_of",
    "make_estimator",
    "open_source",
    "place_of",
    "run_job",
    "scores_of",
]


@dataclass(frozen=True)
class JobResult:
    """What a job found, how it was planned, and where everything was written."""

    model: str
    scores: str | None
    report: str | None
    subspace: Subspace
    plan: Plan


def check_job(spec: JobSpec, client: Client | None = None) -> Plan:
    """What can be known of a job before any work: its plan; raises as `run_job` does before it begins."""
    _place(spec, None)
    with _working(spec, client):
        return plan(open_source(spec.source), make_estimator(spec.model))


def run_job(spec: JobSpec, *, client: Client | None = None, job: str | None = None) -> JobResult:
    """Fit the model of a job and write it, then its scores and report where they are asked for.

    Parameters
    ----------
    spec : JobSpec
        From `load_job` or `parse_job`.
    client : distributed.Client, optional
        Of the cluster to work on; default: the job's own cluster, else the one in Dask's configuration, else threads.
    job : str, optional
        The id of a submitted job, which the model then carries: where it is there already, as the job was killed after
        that, it is not fitted again.

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
    place, head, done = _place(spec, job)
    if done is not None:  # so is what stands beside it
        output = output.model_copy(update={"overwrite": True})
    with _working(spec, client):
        matrix = open_source(spec.source)
        # The checkpoint goes when the model is stored, not before.
        with checkpoint_at(spec.model.checkpoint) as checkpoint:
            estimator = make_estimator(spec.model).set_params(checkpoint=checkpoint)
            if done is None:
                done, planned = estimator.fit(matrix, start=spec.model.start).subspace_, estimator.plan_
                done = replace(done, provenance={**done.provenance, "job": job}) if job else done
                save(done, place, overwrite=output.overwrite, parent=head)
            else:
                estimator, planned = estimator.from_subspace(done), plan(matrix, estimator)
        try:
            _write_products(spec.name, output, matrix, estimator, place)
        except PipelineError as error:
            raise StoreError(f"{error} (the model itself is complete in {output.model})") from error
    return JobResult(output.model, output.scores, output.report, done, planned)


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
    parameters = {**spec.model_dump(exclude={"estimator", "start", *unasked}), "center": spec.center is not False}
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


def anomalies_of(
    subspace: Subspace,
    spec: SourceSpec,
    out: str,
    *,
    normal: str | None = None,
    threshold: str | float = 0.99,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the anomaly scores of a source to `out`, and count those above a threshold fitted to normal samples.

    Returns samples, and with `normal` threshold and anomalies; raises as `AnomalyDetector` does.
    """
    value = scalar(threshold) if isinstance(threshold, str) else threshold
    detector = AnomalyDetector(subspace, value)
    source = spec.path if spec == SourceSpec(path=spec.path) else open_source(spec)
    if normal is not None:
        # Opened as the source is, so that the same variables and dims are meant.
        detector.fit(normal if source == spec.path else open_source(spec.model_copy(update={"path": normal})))
    scores = detector.score(source, out=out, overwrite=overwrite)
    facts: dict[str, Any] = {"samples": int(scores.size)}
    if normal is None:
        return facts
    above = count_above(scores, detector.threshold_)
    return facts | {"threshold": detector.threshold_, "anomalies": above}


def count_above(scores: xr.DataArray, threshold: float) -> int:
    """How many stored scores are above a threshold, in bounded memory."""
    lengths = range(0, scores.shape[0], max(1, 2**22 // max(scores[:1].size, 1)))
    return sum(int((scores[i : i + lengths.step].values > threshold).sum()) for i in lengths)


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


def _check_apart(spec: JobSpec) -> None:
    """A checkpoint has a place of its own."""
    kept = spec.model.checkpoint
    if kept is None or "://" in kept:
        return
    place, output = Path(kept).resolve(), spec.output
    for other in filter(None, (spec.source.path, output.model, output.scores, output.report)):
        taken = Path(other).resolve()
        if "://" not in other and (place == taken or place in taken.parents or taken in place.parents):
            raise InputError(f"the checkpoint {kept} cannot lie where {other} is: choose a place of its own")


def place_of(output: OutputSpec) -> str:
    """Where the model of a job is kept, as `save` and `load` take it."""
    return f"icechunk:{output.model}" if output.store == "icechunk" else output.model


def head_of(output: str, overwrite: bool) -> str | None:
    """Id of the version that a model is to follow: if it is another one in the end, somebody else was faster.

    What a model replaces must be a model; an array under a mistyped name is not.
    """
    local = "://" not in output and not is_icechunk(locate(output))
    if local and not (Path(output) / ROOT).exists():
        return None
    try:
        head = history(output).head
    except StoreError:
        if local:
            raise
        return None  # nothing is there, or what is wrong is told when it is written to
    if not overwrite:
        raise StoreError(f"{output} exists already: choose another place, or replace it with overwrite (--overwrite)")
    return head


def _place(spec: JobSpec, job: str | None) -> tuple[str, str | None, Subspace | None]:
    """Where the model goes, the version that it is to follow, and the model where this very job has published it."""
    output = spec.output
    for product in filter(None, (output.scores, output.report)):
        if "://" in product:
            raise InputError(
                f"{product} cannot be written: scores and reports go to a local disk, only models elsewhere"
            )
    place = place_of(output)
    done = None if job is None or not _may_exist(output.model) else _published(place, job)
    overwrite = output.overwrite or done is not None
    check_outputs([output.model, output.scores, output.report], spec.source.path, overwrite=overwrite)
    _check_apart(spec)
    if "://" in output.model:
        told = probe(place)
        if why := told["read"] or told["write"]:
            raise StoreError(f"{output.model} cannot be written: {why}")
    return place, head_of(place, overwrite), done


def _may_exist(output: str) -> bool:
    return "://" in output or Path(output).exists()


def _published(place: str, job: str) -> Subspace | None:
    try:
        found = load(place)
    except StoreError:
        return None  # nothing is there, or what is wrong is told when it is written to
    return found if found.provenance.get("job") == job else None


@contextmanager
def _working(spec: JobSpec, client: Client | None) -> Iterator[None]:
    with cluster_client(spec=spec.cluster) if client is None else client.as_current():
        yield


def _write_products(
    name: str | None, output: OutputSpec, matrix: Matrix, estimator: PCA | TruncatedSVD, place: str
) -> None:
    scores, distances = None, None
    if output.scores is not None:
        scores = estimator.transform(matrix, out=output.scores, overwrite=output.overwrite)
    if output.report is not None:
        from pipeline.report import write_report  # Matplotlib takes a second to import

        if isinstance(estimator, RobustPCA) and scores is not None:
            distances = estimator.distances(matrix)
        write_report(estimator.subspace_, output.report, scores=scores, title=name, distances=distances, model=place)
