"""Who does the work of a walk: the workers of a cluster, or threads of this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask
from dask.base import get_scheduler
from dask.system import CPU_COUNT

__all__ = ["Crew", "crew", "locally"]


@dataclass(frozen=True)
class Crew:
    """Who does the work: a `distributed.Client` or None, how many processes, threads in all and bytes a process."""

    client: Any
    workers: int
    threads: int
    memory: int | None

    @property
    def threads_each(self) -> int:
        """Threads of one worker."""
        return max(1, -(-self.threads // max(self.workers, 1)))


def crew() -> Crew:
    """The active Dask cluster, or the local scheduler that Dask's configuration names (threads by default)."""
    schedule = get_scheduler()
    client = getattr(schedule, "__self__", None)
    if client is not None and hasattr(client, "scheduler_info"):
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        memory = min((w["memory_limit"] for w in workers if w["memory_limit"]), default=None)
        return Crew(client, max(1, len(workers)), max(1, sum(w["nthreads"] for w in workers)), memory)
    if schedule is dask.local.get_sync:
        return Crew(None, 1, 1, None)
    return Crew(None, 1, dask.config.get("num_workers", None) or CPU_COUNT, None)


def locally() -> bool:
    """Whether tasks run in this process and see its memory."""
    return crew().client is None and getattr(get_scheduler(), "__module__", "") != "dask.multiprocessing"
