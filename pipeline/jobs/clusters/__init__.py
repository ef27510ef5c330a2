"""Clusters: where the work of a job runs, a kind a file. Each is thin: it hands its settings to the library that knows.

>>> kind_of({"workers": 2})[0].__name__, kind_of({"kind": "slurm", "cores": 8})[0].__name__
('Local', 'Slurm')
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pipeline.errors import InputError
from pipeline.jobs.clusters.address import Address
from pipeline.jobs.clusters.gateway import Gateway
from pipeline.jobs.clusters.jobqueue import Pbs, Slurm
from pipeline.jobs.clusters.kubernetes import Kubernetes
from pipeline.jobs.clusters.local import Local
from pipeline.jobs.spec import ClusterSpec, load_spec, parse

__all__ = ["KINDS", "Address", "kind_of", "load_cluster", "read_cluster"]

KINDS: dict[str, type[ClusterSpec]] = {
    "local": Local,
    "address": Address,
    "slurm": Slurm,
    "pbs": Pbs,
    "kubernetes": Kubernetes,
    "gateway": Gateway,
}


def load_cluster(path: str) -> ClusterSpec:
    """The cluster that a YAML file describes; raises InputError that names file, line and what was expected."""
    return load_spec(ClusterSpec, path)


def read_cluster(settings: Mapping[str, Any]) -> ClusterSpec:
    """The cluster that nested settings describe; raises InputError that names the first setting that is wrong."""
    return parse(ClusterSpec, settings)


def kind_of(settings: Any) -> tuple[type[ClusterSpec], Any]:
    """Which kind of cluster settings mean, and the same settings; address or workers alone say it too.

    Raises
    ------
    InputError
        When no kind is named, or one that is not known.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"cluster is {settings!r}; expected a section of keys such as workers, or the name of a file")
    kind = settings.get("kind")
    if kind is None:
        if ("address" in settings) and ("workers" in settings):
            raise ValueError("give either address, of a running scheduler, or workers, of a local cluster")
        if not settings:
            raise ValueError(f"give either address, of a running scheduler, or workers, or kind: {', '.join(KINDS)}")
        return (Address if "address" in settings else Local), settings
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        way_out = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KINDS)}"
        raise InputError(f"cluster.kind is {kind!r}; {way_out}")
    return KINDS[kind], settings
