"""`submit_job`: a job that goes on when whoever submitted it is gone.

The job is one long Dask task. It runs what `pipeline run` runs, beside the blocks that it sends to the same cluster,
and keeps its record in the job's store. When its worker is lost, Dask starts the task again on another one, and the
job goes on from its checkpoint where it has one; when the model was published already, it is not fitted again.
"""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipeline import __version__
from pipeline.console import PlainLines
from pipeline.crew import workers_of
from pipeline.errors import InputError, PipelineError, PlanError, StoreError
from pipeline.jobs.record import ENDED, Record, now, records_in, whoever
from pipeline.jobs.run import check_job, run_job
from pipeline.jobs.spec import ClusterSpec, JobSpec, TLSSpec
from pipeline.progress import listening

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Submitted", "cancel_job", "jobs_on", "store_of", "submit_job"]

_NAMES = "pipeline-job-"  # of the tasks, and of the datasets that keep them wanted when their clients are gone
_LIVES = 3  # attempts, before a job is given up whose workers are lost again and again
_LOOK, _SIGN = 0.5, 5.0  # seconds between two looks for a cancel, and between two signs of life
_PATIENCE = 30.0  # seconds for the check on a worker
_LINES = 5000


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
        time.sleep(_LOOK)
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
                time.sleep(2 * _LOOK)
    except PlanError:
        pass  # the scheduler is gone, and the task with it
    if len(record.attempts()) == before:
        record.end("cancelled")


def work(store: str, id: str) -> str:
    """The task: run a job whose record is in a store, until it ends, is cancelled or begins elsewhere."""
    from distributed import get_worker, secede

    secede()  # the thread is free for the blocks
    worker, record = get_worker(), Record(store, id)
    ended = record.get("ended")
    if ended is not None:  # Dask does a task again whose result went with its worker
        return str(ended["state"])
    number = record.start({"worker": worker.address, "name": str(worker.name), "version": __version__})
    log = _Log(record, record.log)
    if record.get("cancel") is not None:
        return _ended(record, "cancelled")
    if number > _LIVES:
        sentence = f"it was given up after {_LIVES} workers were lost at it: look at their memory"
        return _ended(record, "failed", error={"sentence": sentence, "traceback": ""})
    log.tell(f"attempt {number} begins on {worker.address}")
    spec = JobSpec.model_validate(record.get("submitted")["job"])
    with _beside() as client:
        job = _Job(spec, client, id, log)
        job.start()
        stopped = _watch(job, record, number)
    if stopped == "elsewhere":
        return stopped
    error = None if stopped else job.error
    log.tell(f"failed: {_sentence(error)}" if error else stopped or "done")
    log.keep()
    if stopped:
        return _ended(record, stopped)
    if error is None:
        return _ended(record, "done", result=job.result)
    text = "".join(traceback.format_exception(error))
    return _ended(record, "failed", error={"sentence": _sentence(error), "traceback": text})


class _Job(threading.Thread):
    """The job itself, in a thread that is no worker's, so that the client it works with is its own."""

    def __init__(self, spec: JobSpec, client: Client, id: str, log: _Log) -> None:
        super().__init__(name=f"job {id}", daemon=True)
        self.spec, self.client, self.id, self.log = spec, client, id, log
        self.error: Exception | None = None
        self.result: dict[str, Any] | None = None

    def run(self) -> None:
        lines = PlainLines(tell=self.log.tell)
        try:
            with listening(lines):
                done = run_job(self.spec, client=self.client, job=self.id)
            lines.close()
            self.log.tell(str(done.subspace))
            self.result = {"model": done.model, "scores": done.scores, "report": done.report, "n": done.subspace.k}
        except Exception as error:
            self.error = error


def _watch(job: _Job, record: Record, number: int) -> str:
    """Until the job is over: keep its log, give signs of life, stop it when it is cancelled or has begun elsewhere.

    What it waits for is called off at every look until it has ended. Its client is open until then: a call to the
    scheduler that is lost with a client never returns.
    """
    stopped, signed = "", time.monotonic()
    while job.is_alive():
        job.join(_LOOK)
        if stopped:
            _call_off(job.client)
        try:
            job.log.keep()
            if time.monotonic() - signed > _SIGN:
                record.put("alive", now())
                signed = time.monotonic()
            if not stopped and len(record.attempts()) > number:
                stopped = "elsewhere"
            elif not stopped and record.get("cancel") is not None:
                stopped = "cancelled"
        except StoreError:
            pass  # a store that is away for a while; the job goes on
    return stopped if job.error is not None or stopped == "elsewhere" else ""


def _call_off(client: Client) -> None:
    """Cancel all that a client waits for now; one that has lost its scheduler and is closed waits for nothing."""
    from distributed import Future

    if client.status != "closed":
        client.cancel([Future(key, client) for key in list(client.futures)], force=True)


@dataclass
class _Log:
    """Lines of a job, in memory and, when they are kept, in its record."""

    record: Record
    lines: list[str] = field(default_factory=list)
    kept: int = 0

    def tell(self, line: str) -> None:
        """One more line."""
        self.lines.append(f"{now()} {' '.join(line.split())}")

    def keep(self) -> None:
        """Write down what is new."""
        if self.kept == len(self.lines):
            return
        count = len(self.lines)
        self.record.put("log", self.lines[-_LINES:])
        self.kept = count


@contextmanager
def _beside() -> Iterator[Client]:
    """A client of its own for a task on a worker, with the worker's certificates."""
    from distributed import Client, Security, get_worker

    worker = get_worker()
    security = worker.security
    # A worker started by `dask worker --tls-cert` has none for clients.
    if security.tls_ca_file and not security.tls_client_cert:
        security = Security(
            tls_ca_file=security.tls_ca_file,
            tls_client_cert=security.tls_worker_cert,
            tls_client_key=security.tls_worker_key,
            require_encryption=True,
        )
    with Client(worker.scheduler.address, security=security, set_as_default=False) as client:
        yield client


def check(text: str) -> tuple[str, str]:
    """The task: what a worker knows of a job before any work, as its version and the plan; raises as `check_job`."""
    from distributed import secede

    secede()
    spec = JobSpec.model_validate_json(text)
    Record(store_of(spec), ".check").get("submitted")  # is the job's store within reach?
    found: list[Any] = []

    def look() -> None:
        try:
            found.append(str(check_job(spec, client)))
        except Exception as error:
            found.append(error)

    with _beside() as client:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return __version__, found[0]


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


def store_of(spec: JobSpec) -> str:
    """Where the records of a job lie: where it says, else in `jobs.zarr` beside the model."""
    if spec.output.jobs is not None:
        return spec.output.jobs
    above, slash, _ = spec.output.model.removeprefix("icechunk:").rstrip("/").rpartition("/")
    return f"{above}{slash}jobs.zarr"


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


def _ended(record: Record, state: str, **facts: Any) -> str:
    record.end(state, **facts)
    return state


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
