"""Where the work of a job runs: a scheduler that is running, local processes for the time of the job, or threads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dask

from pipeline.errors import PlanError

if TYPE_CHECKING:
    from distributed import Client

    from pipeline.jobs.spec import ClusterSpec

__all__ = ["cluster_client"]


@contextmanager
def cluster_client(address: str | None = None, spec: ClusterSpec | None = None) -> Iterator[Client | None]:
    """A client of the cluster that is meant, made the current one and closed at the end.

    Parameters
    ----------
    address : str, optional
        Of a running scheduler; goes before everything else.
    spec : ClusterSpec, optional
        An address, or how many local processes to start; goes before the scheduler address in Dask's configuration
        (`DASK_SCHEDULER_ADDRESS`).

    Yields
    ------
    Client or None
        None when no cluster is named anywhere: Dask then works in threads of this process.

    Raises
    ------
    PlanError
        When the scheduler does not answer within ten seconds, or local workers cannot be started.
    """
    if address is None:
        address = spec.address if spec else dask.config.get("scheduler-address", None)
    if address:
        with _connected(address) as client:
            yield client
    elif spec:
        with _local(spec) as client:
            yield client
    else:
        yield None


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    from distributed import Client
    from distributed.comm import resolve_address

    try:
        resolve_address(address)  # a client of what is no address takes long to give up, and does so with a traceback
        with _quiet():
            # Not as default: one that cannot connect would stay the default for whatever runs later.
            client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise PlanError(
            f"the scheduler at {address} does not answer: check that it runs and that the address is right"
        ) from error
    with client, client.as_current():
        yield client


@contextmanager
def _local(spec: ClusterSpec) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    options: dict[str, Any] = {"threads_per_worker": spec.threads_per_worker or 1}
    if spec.memory_limit is not None:
        options["memory_limit"] = spec.memory_limit
    try:
        cluster = LocalCluster(
            n_workers=spec.workers, processes=True, dashboard_address=None, silence_logs=logging.CRITICAL, **options
        )
    except (OSError, RuntimeError) as error:
        raise PlanError(f"{spec.workers} local workers cannot be started ({error}): ask for fewer") from error
    with _quiet(), cluster, Client(cluster, set_as_default=False) as client, client.as_current():
        yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """What Distributed logs about connections that end is no news to people who read one sentence of ours."""
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
