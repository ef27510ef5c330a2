"""`submit_job`: a job that goes on when whoever submitted it is gone.

It is one long Dask task (`pipeline.jobs.tasks`). When its worker is lost, Dask starts the task again on another one,
and the job goes on from its checkpoint where it has one; when the model was published already, it is not fitted again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipeline import __version__
from pipeline.crew import workers_of
from pipeline.errors import InputError, PipelineError, PlanError, StoreError
from pipeline.jobs.record import ENDED, Record, records_in, store_of, whoever
from pipeline.jobs.spec import ClusterSpec, JobSpec, TLSSpec
from pipeline.jobs.tasks import LOOK, check, work

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Submitted", "cancel_job", "jobs_on", "submit_job"]

_NAMES = "pipeline-job-"  # of the tasks, and of the datasets that keep them wanted when their clients are gone
_PATIENCE = 30.0  # seconds for the check on a worker


@dataclass(frozen=True)
class Submitted:
    """A job on its way: its record, and what is worth telling about it."""

    record: Record
    told: list[str]


def submit_job(spec: JobSpec, cluster: ClusterSpec, client: Client) -> Submitted:
    """Start a job on a cluster and leave it there.

    Parameters
    ----------
    spec : JobSpec
        Relative paths in it are meant from here; workers must see the same files.
    cluster : ClusterSpec
        How `cancel_job` finds the scheduler again.
    client : distributed.Client

    Raises
    ------
    InputError, StoreError, PlanError
        When the job cannot succeed, as far as a worker can tell before any work, or writes where another job does.
    """
    spec, cluster = settled(spec), _settled_cluster(cluster.again(client))
    store = store_of(spec)
    _check_free(spec, store)
    told = _checked_on_worker(spec, client)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    record = Record(store, f"{_slug(spec)}-{stamp}-{uuid4().hex[:4]}")
    about = {
        "name": spec.name,
        **whoever(),
        "version": __version__,
        "scheduler": client.scheduler.address,
        "cluster": cluster.model_dump(mode="json"),
        "outputs": {name: place for name, place in _places(spec).items() if name != "checkpoint"},
        "job": spec.model_dump(mode="json"),
    }
    record.put("submitted", about)
    try:
        future = client.submit(work, store, record.id, key=_NAMES + record.id, pure=False)
        client.publish_dataset({"job": future, "store": store}, name=_NAMES + record.id)
    except Exception as error:
        record.end("failed", error={"sentence": f"it could not be given to the scheduler: {error}", "traceback": ""})
        raise PlanError(f"the scheduler does not take the job: {error}") from error
    return Submitted(record, told)


def jobs_on(client: Client) -> dict[str, tuple[Record, str]]:
    """The jobs that a scheduler knows: id to record and what Dask says of the task."""
    found = {}
    for name in client.list_datasets():
        if isinstance(name, str) and name.startswith(_NAMES):
            kept = client.get_dataset(name)
            id = name.removeprefix(_NAMES)
            found[id] = Record(kept["store"], id), str(kept["job"].status)
    return found


def cancel_job(record: Record, connect: Callable[[ClusterSpec], Any], *, patience: float = 60.0) -> str:
    """Stop a job; what it had published, and its checkpoint, stay.

    Parameters
    ----------
    record : Record
    connect : function
        From a cluster to a client, as a context; only for a job that has not begun.
    patience : float
        Seconds to wait until it has stopped.

    Returns
    -------
    str
        How it ended: 'cancelled', or 'done' or 'failed' where it was faster.

    Raises
    ------
    InputError
        When it had ended before.
    PlanError
        When it does not stop in time; the request stays.
    """
    facts = record.facts()
    if facts["state"] in ENDED:
        raise InputError(f"{record.id} has ended already: {facts['state']} at {facts['ended']}")
    record.put("cancel", whoever())
    if facts["state"] in ("queued", "lost") or facts["started"] is None:
        _drop(record, connect)
    deadline = time.monotonic() + patience
    while (ended := record.get("ended")) is None:
        if time.monotonic() > deadline:
            raise PlanError(f"{record.id} has not stopped within {patience:g} s: it does when it next looks")
        time.sleep(LOOK)
    return str(ended["state"])


def _drop(record: Record, connect: Callable[[ClusterSpec], Any]) -> None:
    """Take a task that does not run off its scheduler, if that is there; a job that begins meanwhile sees it itself."""
    from pipeline.jobs.clusters import read_cluster

    before = len(record.attempts())
    try:
        with connect(read_cluster(record.get("submitted")["cluster"])) as client:
            name = _NAMES + record.id
            if name in client.list_datasets():
                client.cancel(client.get_dataset(name)["job"], force=True)
                client.unpublish_dataset(name)
                time.sleep(2 * LOOK)
    except PlanError:
        pass  # the scheduler is gone, and the task with it
    if len(record.attempts()) == before:
        record.end("cancelled")


def _checked_on_worker(spec: JobSpec, client: Client) -> list[str]:
    if not workers_of(client):
        return ["the cluster has no workers yet: the job begins when one comes"]
    asked: Future = client.submit(check, spec.model_dump_json(), pure=False, priority=100)
    try:
        version, plan = asked.result(timeout=_PATIENCE)
    except PipelineError:
        raise
    except TimeoutError:
        return ["the workers are busy: the job is looked at when it begins"]
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise PlanError(
            f"the workers cannot run this job ({type(error).__name__}: {why}): `pipeline doctor` says what they lack"
        ) from error
    finally:
        asked.release()
    told = [line.strip() for line in plan.splitlines() if line.strip()]
    if version != __version__:
        told.append(f"the workers have version {version} of this package, here is {__version__}")
    return told


def _check_free(spec: JobSpec, store: str) -> None:
    """No two jobs that run write to the same place."""
    mine = set(filter(None, _places(spec).values()))
    for record in records_in(store):
        facts = record.facts()
        if facts["state"] in (*ENDED, "lost"):
            continue
        theirs = set(_places(JobSpec.model_validate(facts["job"])).values())
        for place in sorted(mine & theirs):
            raise StoreError(
                f"the job {record.id}, which is {facts['state']}, writes to {place}: wait for it (`pipeline logs -f`), "
                "or cancel it"
            )


def settled(spec: JobSpec) -> JobSpec:
    """The same job with paths that mean the same everywhere."""
    source = spec.source.model_copy(update={"path": _absolute(spec.source.path)})
    kept = {name: _absolute(getattr(spec.model, name)) for name in ("checkpoint", "start")}
    output = {name: _absolute(getattr(spec.output, name)) for name in ("model", "scores", "report", "jobs")}
    return spec.model_copy(
        update={
            "source": source,
            "model": spec.model.model_copy(update=kept),
            "output": spec.output.model_copy(update=output),
            "cluster": None,
        }
    )


def _places(spec: JobSpec) -> dict[str, str | None]:
    names = ("model", "scores", "report")
    return {**{n: getattr(spec.output, n) for n in names}, "checkpoint": spec.model.checkpoint}


def _settled_cluster(cluster: ClusterSpec) -> ClusterSpec:
    tls = getattr(cluster, "tls", None)
    if not isinstance(tls, TLSSpec):
        return cluster
    files = {name: _absolute(place) for name, place in tls.model_dump().items()}
    return cluster.model_copy(update={"tls": TLSSpec(**files)})


def _absolute(place: str | None) -> Any:
    if place is None or "://" in place:
        return place
    prefix = "icechunk:" if place.startswith("icechunk:") else ""
    return prefix + str(Path(place.removeprefix("icechunk:")).absolute())


def _slug(spec: JobSpec) -> str:
    """
    >>> from pipeline.jobs.spec import parse_job
    >>> _slug(parse_job({"source": {"path": "x"}, "output": {"model": "out/El Nino.zarr"}}))
    'el-nino'
    """
    name = spec.name or Path(spec.output.model.rstrip("/")).stem
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "job"
