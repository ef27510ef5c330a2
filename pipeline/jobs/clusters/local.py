"""`Local`: processes of this machine, for the time of the job."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.errors import PlanError
from pipeline.jobs.clusters.opening import client_of, quiet, refuse_to_stay
from pipeline.jobs.spec import ClusterSpec, _Bytes

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Local"]


class Local(ClusterSpec):
    """How many processes, with how many threads and how much memory each."""

    kind: Literal["local"] = "local"
    workers: int = Field(ge=1, description="an int of at least 1")
    threads_per_worker: int = Field(default=1, ge=1, description="an int of at least 1")
    memory_limit: _Bytes | None = Field(default=None, description="bytes a worker, or a size such as 2GB")

    @contextmanager
    def client(self, stays: bool = False) -> Iterator[Client]:
        """Start the processes; raises PlanError when they cannot be started."""
        from distributed import LocalCluster

        if stays:
            refuse_to_stay("local processes end with the command that starts them")
        try:
            cluster = LocalCluster(**self._options(), silence_logs=logging.CRITICAL)
        except (OSError, RuntimeError) as error:
            raise PlanError(f"{self.workers} local workers cannot be started ({error}): ask for fewer") from error
        with quiet(), cluster, client_of(cluster) as client:
            yield client

    def shown(self) -> str:
        """The call that starts them."""
        return f"distributed.LocalCluster({', '.join(f'{k}={v!r}' for k, v in self._options().items())})"

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"n_workers": self.workers, "threads_per_worker": self.threads_per_worker}
        if self.memory_limit is not None:
            options["memory_limit"] = self.memory_limit
        return {**options, "processes": True, "dashboard_address": None}
