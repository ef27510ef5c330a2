"""`Kubernetes`: a `DaskCluster` resource, which the operator of dask-kubernetes turns into pods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field

from pipeline.jobs.clusters.opening import client_of, needed, started
from pipeline.jobs.spec import ClusterSpec, _Name

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Kubernetes"]

_RENAMED = {"dask-scheduler": ["dask", "scheduler"]}


class Kubernetes(ClusterSpec):
    """The cluster by its name: it is made where it is not there; keys to it come from the kubeconfig, never from here.

    The image must hold this package, in the same version.
    """

    kind: Literal["kubernetes"] = "kubernetes"
    name: _Name = Field(description="the name of the DaskCluster resource")
    namespace: _Name | None = Field(default=None, description="the name of a namespace")
    image: _Name = Field(description="the name of a container image that holds this package")
    workers: int = Field(ge=1, description="an int of at least 1")
    resources: dict[Literal["requests", "limits"], dict[str, str | int | float]] | None = Field(
        default=None, description="requests and limits, as Kubernetes writes them"
    )
    env: dict[str, str] | list[dict[str, Any]] | None = Field(
        default=None, description="variables as a section NAME: value, or as Kubernetes writes them"
    )
    worker_command: list[_Name] = Field(default=["dask", "worker"], description="a list of words")
    idle_timeout: int = Field(default=600, ge=0, description="seconds without work after which it goes; 0: never")

    @contextmanager
    def client(self, stays: bool = False) -> Iterator[Client]:
        """Make the resource, or connect to it where it is there; one that stays goes when it has been idle."""
        operator = needed("dask_kubernetes.operator", "kubernetes")
        resource = {"custom_cluster_spec": self._resource(operator), "namespace": self.namespace}
        options: dict[str, Any] = {**resource, "quiet": True, "shutdown_on_close": not stays}
        with started("kubernetes", operator.KubeCluster, **options) as cluster, client_of(cluster) as client:
            yield client

    def shown(self) -> str:
        """The resource as YAML, such as `kubectl apply` takes it."""
        return str(yaml.safe_dump(self._resource(needed("dask_kubernetes.operator", "kubernetes")), sort_keys=False))

    def _resource(self, operator: Any) -> dict[str, Any]:
        asked = self.model_dump(exclude={"kind", "workers", "namespace"}, exclude_none=True)
        made: dict[str, Any] = operator.make_cluster_spec(**asked, n_workers=self.workers)
        # What it says, dask-scheduler, is no command any more: Distributed has left its old scripts out.
        for container in made["spec"]["scheduler"]["spec"]["containers"]:
            container["args"] = [w for word in container["args"] for w in _RENAMED.get(word, [word])]
        if self.namespace is not None:
            made["metadata"]["namespace"] = self.namespace
        return made
