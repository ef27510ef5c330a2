"""`examine`: what stands in the way of a job here and on a cluster, before one is submitted."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from threadpoolctl import threadpool_info

from pipeline.crew import workers_of
from pipeline.store.probe import probe

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["OK", "WARNING", "WRONG", "Finding", "examine"]

OK, WARNING, WRONG = "ok", "warning", "wrong"
# Tasks are sent as these write them: other versions may not read it, or do something else.
_SAME = ("python", "subspace-pipeline", "dask", "distributed", "cloudpickle", "msgpack", "zarr")
_NEARLY = ("numpy", "scipy", "xarray", "scikit-learn", "zarrs", "toolz", "tornado")
_HERE = "here"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: 'ok', 'warning' or 'wrong', and why."""

    what: str
    verdict: str
    words: str

    def __str__(self) -> str:
        return f"{self.verdict:8s} {self.what:10s} {self.words}"

    def to_dict(self) -> dict[str, str]:
        """As plain JSON values."""
        return asdict(self)


def examine(client: Client | None = None, stores: Sequence[str] = ()) -> Iterator[Finding]:
    """Look at versions, workers, memory, threads, decoders, the network, and what each store allows.

    Parameters
    ----------
    client : distributed.Client, optional
        Of the cluster; default: this process alone.
    stores : paths or URLs
        Where models, checkpoints and records are to be written.
    """
    places: dict[str, dict[str, Any]] = {_HERE: about()}
    lost: dict[str, str] = {}
    if client is not None:
        places, lost = _with_cluster(places, client)
        yield _network(client)
        yield _workers(client, lost)
    yield from _versions(places)
    crew = {place: facts for place, facts in places.items() if "blas" in facts and (client is None or place != _HERE)}
    if crew:
        yield _memory(crew)
        yield from _threads(crew)
        yield _decoder(crew)
    for store in stores:
        yield _store(store, None if lost else client)


def about(dask_worker: Any = None) -> dict[str, Any]:
    """What a process is: versions, memory, threads; on a worker, Dask says which it is."""
    versions = {"python": platform.python_version()}
    for name in (*_SAME[1:], *_NEARLY):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    found = {
        "versions": versions,
        "host": platform.node(),
        "cores": CPU_COUNT,
        "memory": psutil.virtual_memory().total,
        "free": psutil.virtual_memory().available,
        "limit": None,
        "threads": CPU_COUNT,
        "blas": max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1),
        "decoder": "zarr-python" if find_spec("zarrs") is None else "zarrs",
    }
    if dask_worker is None:
        return found
    used = dask_worker.monitor.get_process_memory()
    return {
        **found,
        "limit": dask_worker.memory_manager.memory_limit,
        "threads": dask_worker.state.nthreads,
        "used": used,
    }


def _with_cluster(places: dict[str, Any], client: Client) -> tuple[dict[str, Any], dict[str, str]]:
    """What its processes are, and what hinders those that do not answer as this package would."""
    told = client.get_versions(check=False)
    places = {**places, "the scheduler": {"versions": _packages(told["scheduler"])}}
    answers, lost = client.run(about, on_error="return"), {}
    for address, answer in answers.items():
        if isinstance(answer, Mapping):
            places[address] = dict(answer)
        else:
            lost[address] = f"{type(answer).__name__}: {answer}".splitlines()[0]
            places[address] = {"versions": _packages(told["workers"].get(address))}
    return places, lost


def _packages(told: Mapping[str, Any] | None) -> dict[str, str]:
    """Versions as Dask tells them of processes that may not have this package."""
    packages = {} if told is None else {**told["host"], **told["packages"]}
    return {
        name: ".".join(str(packages[name]).split(".")[:3])
        for name in (*_SAME, *_NEARLY)
        if packages.get(name) is not None
    }


def _network(client: Client) -> Finding:
    address = client.scheduler.address
    if address.startswith("tls://"):
        return Finding("network", OK, f"{address} takes clients with a certificate only")
    if "://127." in address or "://localhost" in address or address.startswith("inproc"):
        return Finding("network", OK, f"{address} is on this machine alone")
    return Finding("network", WARNING, f"{address} is not encrypted: who reaches it runs code there; use tls://")


def _workers(client: Client, lost: Mapping[str, str]) -> Finding:
    workers = workers_of(client)
    if lost:
        address, why = next(iter(lost.items()))
        return Finding("workers", WRONG, f"{len(lost)} of {len(workers)} do not have this package: {address}: {why}")
    if not workers:
        return Finding("workers", WRONG, "none: jobs wait until one comes")
    hosts = {w["host"] for w in workers.values()}
    return Finding("workers", OK, f"{len(workers)} on {len(hosts)} machine{'s' if len(hosts) > 1 else ''}")


def _versions(places: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    here, same = places[_HERE]["versions"], True
    for name in (*_SAME, *_NEARLY):
        others = {
            place: facts["versions"][name]
            for place, facts in places.items()
            if name in facts["versions"] and _differ(name, facts["versions"][name], here.get(name))
        }
        if others:
            same = False
            place, found = next(iter(others.items()))
            more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
            verdict = WRONG if name in _SAME else WARNING
            yield Finding("versions", verdict, f"{name} {here.get(name, 'missing')} here, {found} on {place}{more}")
    if same:
        words = ", ".join(f"{name} {here[name]}" for name in ("python", "subspace-pipeline", "dask", "distributed"))
        yield Finding("versions", OK, words + (" everywhere" if len(places) > 1 else ""))


def _differ(name: str, a: str, b: str | None) -> bool:
    if b is None:
        return True
    parts = 2 if name == "python" else 3
    return a.split(".")[:parts] != b.split(".")[:parts]


def _memory(crew: Mapping[str, Mapping[str, Any]]) -> Finding:
    limits = {place: facts["limit"] for place, facts in crew.items()}
    if _HERE in limits:
        facts = crew[_HERE]
        return Finding("memory", OK, f"{format_bytes(facts['free'])} free of {format_bytes(facts['memory'])}")
    unlimited = [place for place, limit in limits.items() if not limit]
    if unlimited:
        return Finding("memory", WARNING, f"{unlimited[0]} has no limit: plans cannot keep to one (--memory-limit)")
    full = [place for place, facts in crew.items() if facts["used"] > 0.7 * facts["limit"]]
    if full:
        return Finding("memory", WARNING, f"{full[0]} uses {format_bytes(crew[full[0]]['used'])} before any work")
    sums = _by_host(crew, "limit")
    for host, total in sums.items():
        there = next(facts["memory"] for facts in crew.values() if facts["host"] == host)
        if total > 1.01 * there:
            words = f"the limits on {host} add up to {format_bytes(total)}, it has {format_bytes(there)}"
            return Finding("memory", WARNING, words)
    least, most = min(limits.values()), max(limits.values())
    words = format_bytes(least) if least == most else f"{format_bytes(least)} to {format_bytes(most)}"
    return Finding("memory", OK, f"{words} a worker")


def _threads(crew: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    each = Counter((facts["threads"], facts["blas"]) for facts in crew.values())
    words = ", ".join(f"{n} x {threads} with {blas} of BLAS each" for (threads, blas), n in each.items())
    if _HERE in crew:  # here BLAS is held back while blocks are worked on
        yield Finding("threads", OK, f"{crew[_HERE]['threads']} on {crew[_HERE]['cores']} cores")
        return
    busy = _by_host({p: {**f, "busy": f["threads"] * f["blas"]} for p, f in crew.items()}, "busy")
    for host, total in busy.items():
        cores = next(facts["cores"] for facts in crew.values() if facts["host"] == host)
        if total > cores:
            out = "start workers with OMP_NUM_THREADS=1" if any(blas > 1 for _, blas in each) else "start fewer"
            yield Finding("threads", WARNING, f"{words}: {total} on {cores} cores of {host}; {out}")
            return
    yield Finding("threads", OK, words)


def _by_host(crew: Mapping[str, Mapping[str, Any]], what: str) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for facts in crew.values():
        sums[facts["host"]] += facts[what]
    return dict(sums)


def _decoder(crew: Mapping[str, Mapping[str, Any]]) -> Finding:
    kinds = {facts["decoder"] for facts in crew.values()}
    if kinds == {"zarrs"}:
        return Finding("decoder", OK, "zarrs")
    words = "zarr-python, which is slower than zarrs: pip install 'subspace-pipeline[fast]'"
    if len(kinds) > 1:
        place = next(place for place, facts in crew.items() if facts["decoder"] != "zarrs")
        return Finding(
            "decoder", WRONG, f"zarrs here and not on {place}: arrays that are opened here cannot be read there"
        )
    return Finding("decoder", OK, words)


def _store(store: str, client: Client | None) -> Finding:
    """One store, from here and from every worker; what is on a disk must be the same disk."""
    place = store if "://" in store else os.path.abspath(store)
    here = _fault(probe(place))
    if client is None:
        return Finding("store", WRONG if here else OK, f"{store}: {here or 'read, write and conditional write work'}")
    mark = None if "://" in place or here else _mark(Path(place))
    try:
        there = client.run(_probe_there, place, None if mark is None else str(mark))
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)
    faults = {address: fault for address, fault in there.items() if fault}
    if faults:
        address, fault = next(iter(faults.items()))
        return Finding("store", WRONG, f"{store}: on {address} {fault}" + (f"; here {here}" if here else ""))
    works = f"{store}: read, write and conditional write work on {len(there)} workers"
    return (
        Finding("store", WARNING, f"{works}, here not: {here}") if here else Finding("store", OK, f"{works} and here")
    )


def _probe_there(place: str, mark: str | None) -> str:
    if mark is not None and not os.path.exists(mark):
        return "it is another folder of the same name: what is written here is not seen there"
    return _fault(probe(place))


def _mark(path: Path) -> Path:
    from uuid import uuid4

    folder = path if path.is_dir() else next(p for p in path.parents if p.exists())
    mark = folder / f".probe-{uuid4().hex}"
    mark.touch()
    return mark


def _fault(told: Mapping[str, str]) -> str:
    """What does not work, as one phrase: the first thing, as the rest follows from it."""
    return next((f"{ability} does not work ({why})" for ability, why in told.items() if why), "")
