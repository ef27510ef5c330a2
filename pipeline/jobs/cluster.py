"""Which cluster the work of a command goes to: the one that is named, Dask's own setting, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dask

from pipeline.jobs.clusters import Address, load_cluster
from pipeline.jobs.spec import cluster_file

if TYPE_CHECKING:
    from distributed import Client

    from pipeline.jobs.spec import ClusterSpec

__all__ = ["cluster_client", "meant"]


@contextmanager
def cluster_client(address: str | None = None, spec: ClusterSpec | None = None) -> Iterator[Client | None]:
    """A client of the cluster that is meant, made the current one and closed at the end.

    Parameters
    ----------
    address : str, optional
        Of a running scheduler; goes before everything else.
    spec : ClusterSpec, optional
        From a job or a file of `conf/clusters`; goes before the scheduler address in Dask's configuration
        (`DASK_SCHEDULER_ADDRESS`).

    Yields
    ------
    Client or None
        None when no cluster is named anywhere: Dask then works in threads of this process.

    Raises
    ------
    PlanError
        When the scheduler does not answer within ten seconds, or workers cannot be started.
    """
    cluster = meant(address, spec=spec)
    if cluster is None:
        yield None
        return
    with cluster.client() as client:
        yield client


def meant(address: str | None, file: str | None = None, spec: ClusterSpec | None = None) -> ClusterSpec | None:
    """The cluster that is named: by an address (with the certificates beside it), by a file, in a job, or in Dask.

    Raises
    ------
    InputError
        When the file, or what it holds, is wrong.
    """
    if file is not None:
        spec = load_cluster(cluster_file(file))
    if address is None and spec is None:
        address = dask.config.get("scheduler-address", None)
    if not address:
        return spec
    tls = spec.tls if isinstance(spec, Address) and address.startswith("tls://") else None
    return Address(address=address, tls=tls)
