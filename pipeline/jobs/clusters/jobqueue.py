"""`Slurm` and `Pbs`: workers as jobs of a batch system, through dask-jobqueue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import InputError
from pipeline.jobs.clusters.opening import client_of, needed, refuse_to_stay, started
from pipeline.jobs.spec import ClusterSpec, _Bytes, _Name

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Pbs", "Slurm"]


class _Queue(ClusterSpec):
    """What all batch systems are asked for; the scheduler runs where the command does, on a login node."""

    made_by: ClassVar[str]

    jobs: int = Field(ge=1, description="an int of at least 1: how many jobs are queued, each with its workers")
    cores: int = Field(ge=1, description="an int of at least 1: threads of a job")
    memory: _Bytes = Field(description="bytes of a job, or a size such as 32GB")
    processes: int = Field(default=1, ge=1, description="an int of at least 1: workers of a job")
    queue: _Name | None = Field(default=None, description="the name of a queue or partition")
    account: _Name | None = Field(default=None, description="whom the time is charged to")
    walltime: _Name | None = Field(default=None, description="text such as '02:00:00'")
    tls: bool = Field(default=True, description="true or false: certificates made for this cluster alone")
    options: dict[str, Any] = Field(default={}, description="further arguments of dask-jobqueue, by their names")

    @contextmanager
    def client(self, stays: bool = False) -> Iterator[Client]:
        """Queue the jobs; their workers come when the batch system lets them, and work begins with the first."""
        if stays:
            refuse_to_stay(f"the scheduler of a {self.kind} cluster ends with the command that starts it")
        with started(self.kind, self._start()) as cluster, client_of(cluster) as client:
            cluster.scale(jobs=self.jobs)
            client.wait_for_workers(1)
            yield client

    def shown(self) -> str:
        """The script of one job."""
        with started(self.kind, self._start()) as cluster:
            return str(cluster.job_script())

    def _start(self) -> Any:
        kind = getattr(needed("dask_jobqueue", "jobqueue"), self.made_by)
        asked = self.model_dump(exclude={"kind", "jobs", "tls", "options"}, exclude_none=True)
        twice = sorted(asked.keys() & self.options.keys())
        if twice:
            raise InputError(f"cluster.options.{twice[0]} is a key of the cluster itself: write cluster.{twice[0]}")
        options = {"scheduler_options": {"dashboard": False}, **asked, **self.options}
        return lambda: kind(**options, security=self.tls or None)


class Slurm(_Queue):
    """Workers as SLURM jobs."""

    made_by = "SLURMCluster"
    kind: Literal["slurm"] = "slurm"


class Pbs(_Queue):
    """Workers as PBS jobs."""

    made_by = "PBSCluster"
    kind: Literal["pbs"] = "pbs"
