"""`work`: what a worker does of a job that was submitted, in one long task; and `check`, what it knows before.

It runs what `pipeline run` runs, beside the blocks that it sends to the same cluster, and keeps its record in the job's
store.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.console import PlainLines
from pipeline.errors import PipelineError, StoreError
from pipeline.jobs.record import Record, now, store_of
from pipeline.jobs.run import check_job, run_job
from pipeline.jobs.spec import JobSpec
from pipeline.progress import listening

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["LOOK", "check", "work"]

LOOK = 0.5
"""Seconds between two looks for a cancel."""
_SIGN = 5.0  # seconds between two signs of life
_LIVES = 3  # attempts, before a job is given up whose workers are lost again and again
_LINES = 5000


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
        job.join(LOOK)
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


def _ended(record: Record, state: str, **facts: Any) -> str:
    record.end(state, **facts)
    return state


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
