"""Who does the work of a walk: the workers of a cluster, or threads of this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.threaded
import psutil
from dask.base import get_scheduler
from dask.system import CPU_COUNT

from pipeline.allocator import trim

__all__ = ["Crew", "at_most", "crew", "give_back", "locally", "memory_here", "workers_of"]

_PATIENCE = 1  # seconds that a fit which has ended waits for workers
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_most: ContextVar[int | None] = ContextVar("most", default=None)


@dataclass(frozen=True)
class Crew:
    """Who does the work: a `distributed.Client` or None, how many processes, threads in all and bytes a process."""

    client: Any
    workers: int
    threads: int
    memory: int | None
    schedule: Callable[..., Any]
    """Dask's function that carries out a graph: of the client, or of the local scheduler."""

    @property
    def threads_each(self) -> int:
        """Threads of one worker."""
        return max(1, -(-self.threads // max(self.workers, 1)))


def crew() -> Crew:
    """The active Dask cluster, or the local scheduler that Dask's configuration names (threads by default)."""
    # Dask looks for a client by importing distributed, which takes as long as a small fit; who has one did so before.
    named = "distributed" in sys.modules or dask.config.get("scheduler", None)
    schedule = (get_scheduler() if named else None) or dask.threaded.get
    client = getattr(schedule, "__self__", None)
    if client is not None and hasattr(client, "scheduler_info"):
        workers = workers_of(client).values()
        memory = min((w["memory_limit"] for w in workers if w["memory_limit"]), default=None)
        threads = sum(w["nthreads"] for w in workers)
        return Crew(client, max(1, len(workers)), max(1, threads), memory, schedule)
    threads = 1 if schedule is dask.local.get_sync else dask.config.get("num_workers", None) or CPU_COUNT
    return Crew(None, 1, min(threads, _most.get() or threads), None, schedule)


def workers_of(client: Any) -> dict[str, Any]:
    """What the scheduler knows of each worker, by address; of none where it is out of reach.

    What `Client.scheduler_info` gives is overwritten every two seconds by an answer in which there are no workers.
    """
    if client.scheduler is None:
        return {}
    try:
        return dict(client.sync(client.scheduler.identity, n_workers=-1)["workers"])
    except OSError:
        return {}


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """So many threads of this process have a block at a time, and no more, however many there are."""
    before = _most.set(threads)
    try:
        yield
    finally:
        _most.reset(before)


def locally() -> bool:
    """Whether tasks run in this process and see its memory."""
    at_work = crew()
    return at_work.client is None and getattr(at_work.schedule, "__module__", "") != "dask.multiprocessing"


def give_back() -> None:
    """What has been released goes back to the system, of this process or of each worker that has time for it."""
    at_work = crew()
    if at_work.client is None:
        trim()
        return
    from distributed import wait

    # As tasks: they come to the workers by the same way as the word that something is released, and after it.
    addresses = workers_of(at_work.client)
    how: dict[str, Any] = {"allow_other_workers": True, "pure": False, "priority": 1}
    trimmed = [at_work.client.submit(trim, workers=[address], **how) for address in addresses]
    with suppress(TimeoutError):
        wait(trimmed, timeout=_PATIENCE)


def memory_here() -> int:
    """Bytes that this process can have: those of the machine, or of its control group (a container, a batch job)."""
    limits = [psutil.virtual_memory().total]
    for name in ("memory.max", "memory.high", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            limits.append(int((_CONTROL_GROUP / name).read_text()))
    return min(limits)
