"""`Gateway`: a cluster that a Dask Gateway starts for whoever it knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field

from pipeline.errors import PlanError
from pipeline.jobs.clusters.opening import needed, quiet, started
from pipeline.jobs.spec import ClusterSpec, _Name

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Gateway"]


class Gateway(ClusterSpec):
    """Where the gateway listens and what it is asked for.

    Passwords come from the environment, as Dask Gateway reads it: `DASK_GATEWAY__AUTH__KWARGS__PASSWORD` for `basic`,
    `JUPYTERHUB_API_TOKEN` for `jupyterhub`.
    """

    kind: Literal["gateway"] = "gateway"
    address: _Name = Field(description="the URL of the gateway, such as https://gateway.example")
    proxy_address: _Name | None = Field(default=None, description="the URL of its scheduler proxy, where it is another")
    auth: Literal["basic", "kerberos", "jupyterhub"] | None = Field(
        default=None, description="basic, kerberos or jupyterhub"
    )
    name: _Name | None = Field(default=None, description="the name of a cluster that is running; default: a new one")
    workers: int = Field(ge=1, description="an int of at least 1")
    options: dict[str, Any] = Field(default={}, description="what this gateway lets users choose, by its names")

    @contextmanager
    def client(self, stays: bool = False) -> Iterator[Client]:
        """Start a cluster, or connect to the one that is named, which stays."""
        gateway = needed("dask_gateway", "gateway")
        known = {"address": self.address, "proxy_address": self.proxy_address, "auth": self.auth}
        if self.name is None:
            start, asked = gateway.GatewayCluster, {**known, "shutdown_on_close": not stays, **self.options}
        else:
            start, asked = gateway.GatewayCluster.from_name, {**known, "cluster_name": self.name}
        with started("gateway", start, **asked) as cluster:
            if self.name is None:
                cluster.scale(self.workers)
            with quiet(), cluster.get_client(set_as_default=False) as client, client.as_current():
                try:
                    client.wait_for_workers(1, timeout=300)
                except TimeoutError as error:
                    raise PlanError(f"{self.address} gave no worker within 300 s: look at {cluster.name}") from error
                yield client

    def again(self, client: Client) -> Gateway:
        """The same cluster by its name."""
        return self.model_copy(update={"name": client.cluster.name})

    def shown(self) -> str:
        """What the gateway is asked for."""
        asked = {"address": self.address, "workers": self.workers, "options": self.options}
        return str(yaml.safe_dump(asked, sort_keys=False))
