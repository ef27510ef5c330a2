"""`Site`: a matrix tied to where it may be read, and how a coordinator asks it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, Protocol

import dask
import numpy as np

from pipeline.crew import crew, workers_of
from pipeline.errors import InputError
from pipeline.federation.answers import answer
from pipeline.federation.privacy import DP, Ledger
from pipeline.federation.record import Record
from pipeline.matrix import Matrix, open_matrix

__all__ = ["Member", "Site", "Waiter", "sites_of"]

Waiter = Callable[[], Record]
"""Gives the reply; raises TimeoutError where it does not come in time."""


class Member(Protocol):
    """What a coordinator needs a site to be: a name, and an answer to a request, which must not block."""

    name: str | None

    def ask(self, request: Record, timeout: float) -> Waiter: ...


class Site:
    """Rows that may not leave the place where they are read; only summaries of the size of a subspace do.

    Parameters
    ----------
    source : Matrix or anything that `open_matrix` opens
        The rows of the site. With `workers` or `address` a path or URL is opened there, not here.
    name : str, optional
        What it is called in results and errors; default: its number.
    workers : str or sequence of str, optional
        Addresses or names of the workers of the active Dask cluster that may read it, and no others.
    resources : dict, optional
        Instead of `workers`: those that have all of these Dask resources, as {'hospital-a': 1}.
    address : str, optional
        Of the scheduler of another Dask cluster, that of the site.
    security : distributed.Security, optional
        TLS certificates for `address`.
    exchange : object with `ask(name, request, timeout)`, optional
        Instead of `source`: where messages are left for a site that cannot be called (`pipeline.jobs.Exchange`).

    privacy : DP, optional
        All that the site may ever spend; it then answers only with privacy. Default: what the first federation with
        privacy asks for.

    Examples
    --------
    >>> site = Site(np.eye(4), name="north")
    >>> site.name, site.shape
    ('north', (4, 4))
    """

    def __init__(
        self,
        source: Any = None,
        name: str | None = None,
        *,
        workers: str | Sequence[str] | None = None,
        resources: dict[str, float] | None = None,
        address: str | None = None,
        security: Any = None,
        exchange: Any = None,
        privacy: DP | None = None,
    ) -> None:
        if (source is None) == (exchange is None):
            raise InputError("a site has either a source, or an exchange through which it is asked")
        placed = workers is not None or resources is not None or address is not None
        if exchange is not None and (placed or name is None):
            raise InputError("a site behind an exchange needs a name, and no workers or address")
        if workers is not None and resources is not None:
            raise InputError("give the workers of a site, or the resources that they have: not both")
        self.name = name
        self.workers = [workers] if isinstance(workers, str) else None if workers is None else list(workers)
        self.resources, self.address, self.security, self.exchange = resources, address, security, exchange
        self.placed = placed
        self.source = source if exchange is not None or _opens_there(source, placed) else open_matrix(source)
        self._memory: Any = {} if privacy is None else {"ledger": Ledger(privacy)}
        self._client: Any = None

    @property
    def shape(self) -> tuple[int, int] | None:
        """(n_samples, n_features), where it is known here."""
        return self.source.shape if isinstance(self.source, Matrix) else None

    def close(self) -> None:
        """Close the connection to another cluster, if there is one."""
        if self._client is not None and self.address is not None:
            self._client.close()
        self._client = None

    def __repr__(self) -> str:
        where = self.address or self.workers or self.resources or ("an exchange" if self.exchange else "this process")
        return f"Site {self.name or ''}: {self.source if self.exchange is None else 'not called'}; read by {where}"

    def ask(self, request: Record, timeout: float) -> Waiter:
        """Begin to answer; what is returned waits for the reply, at most so many seconds."""
        if self.exchange is not None:
            return self.exchange.ask(self.name, request, timeout)
        return self._ask_there(request, timeout) if self.placed else self._ask_here(request, timeout)

    def _ask_here(self, request: Record, timeout: float) -> Waiter:
        def wait() -> Record:
            started = time.monotonic()
            reply, self._memory = answer(self.source, request, self._memory)
            if time.monotonic() - started > timeout:
                raise TimeoutError
            return reply

        return wait

    def _ask_there(self, request: Record, timeout: float) -> Waiter:
        client, deadline = self._connected(timeout), time.monotonic() + timeout
        workers = self._places(client)
        options: dict[str, Any] = {"pure": False, "allow_other_workers": False, "workers": workers}
        # What the site remembers is a future: it stays with its workers, and only the reply is fetched.
        both = client.submit(_answer_there, _travelling(self.source), request, self._memory, workers, **options)
        reply, self._memory = (client.submit(itemgetter(i), both, **options) for i in (0, 1))

        def wait() -> Record:
            return reply.result(timeout=max(deadline - time.monotonic(), 0.1))

        return wait

    def _connected(self, timeout: float) -> Any:
        import distributed

        if self._client is None or self._client.status != "running":
            if self.address is not None:
                options = {} if self.security is None else {"security": self.security}
                self._client = distributed.Client(self.address, timeout=timeout, set_as_default=False, **options)
            else:
                try:
                    self._client = distributed.get_client()
                except ValueError:
                    raise InputError(f"site {self.name} is tied to workers: there is no active Dask client") from None
        return self._client

    def _places(self, client: Any) -> list[str] | None:
        known = workers_of(client)
        if self.resources is not None:
            fit = [
                address
                for address, w in known.items()
                if all(w["resources"].get(name, 0) >= amount for name, amount in self.resources.items())
            ]
        elif self.workers is not None:
            names = {str(w["name"]): address for address, w in known.items()}
            fit = [names.get(str(w), str(w)) for w in self.workers]
            fit = [address for address in fit if address in known]
        else:
            fit = list(known)
        if not fit:
            raise ConnectionError("none of its workers is there")
        return fit


def sites_of(X: Matrix) -> list[Site]:
    """One site a worker of the active cluster, each with the blocks that it is to read; one site without a cluster."""
    at_work = crew()
    if at_work.client is None:
        return [Site(X, name="here")]
    addresses = sorted(workers_of(at_work.client))
    if X.n_blocks < len(addresses):
        X = X.cut_to(max(X.nbytes // len(addresses), 1))
    parts = min(len(addresses), X.n_blocks)
    edges = X.cuts[np.linspace(0, X.n_blocks, parts + 1).round().astype(int)]
    return [
        Site(X.rows(int(a), int(b)), name=where, workers=[where])
        for a, b, where in zip(edges[:-1], edges[1:], addresses, strict=False)
    ]


def _opens_there(source: Any, placed: bool) -> bool:
    return placed and not isinstance(source, Matrix)


def _travelling(source: Any) -> Any:
    """What is sent to the workers: rows that this process holds go along, and none but those of the site."""
    if isinstance(source, Matrix) and source.source.held and hasattr(source.source, "base"):
        rows = source.read_range(0, source.shape[0])
        return replace(source, source=open_matrix(rows).source)
    return source


def _answer_there(source: Any, request: Record, memory: Any, workers: list[str]) -> tuple[Record, Any]:
    """The task on a worker of the site: its own threads, or all workers of the site under its lead."""
    from distributed import get_worker, worker_client

    X = open_matrix(source)
    if len(workers) == 1:
        with dask.config.set(scheduler="threads", num_workers=get_worker().state.nthreads):
            return answer(X, request, dict(memory))
    with worker_client() as client, client.as_current(), dask.annotate(workers=workers, allow_other_workers=False):
        return answer(X, request, dict(memory))
