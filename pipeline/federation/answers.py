"""What a coordinator may ask of a site, and the site's answer: summaries of the shape of a subspace, never a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.errors import FederationError
from pipeline.federation.local import Local
from pipeline.federation.privacy import DP
from pipeline.federation.private import PrivateLocal
from pipeline.federation.record import Record
from pipeline.federation.secure import advertise, masked, recover
from pipeline.kernels.consensus import STEPS
from pipeline.matrix import Matrix
from pipeline.subspace import Subspace

__all__ = ["TASKS", "answer", "subspace_from", "subspace_record"]

Memory = dict[str, Any]


def answer(X: Matrix, request: Record, memory: Memory) -> tuple[Record, Memory]:
    """A site's reply to one request, and what it remembers for the next one.

    Raises FederationError for a request of a kind that is not answered, InputError where the site's data are not fit.
    """
    if request.kind not in TASKS:
        raise FederationError(f"a request {request.kind!r} is not answered")
    if memory.get("federation") != request.facts.get("federation"):
        kept: Memory = {name: memory[name] for name in ("moments", "ledger") if name in memory}
        memory = {**kept, "federation": request.facts.get("federation")}
    return TASKS[request.kind](_local(X, request, memory), request), memory


def _local(X: Matrix, request: Record, memory: Memory) -> Local:
    privacy = request.facts.get("privacy")
    if privacy is not None:
        return PrivateLocal(X, memory, DP(**privacy))
    if "ledger" in memory and memory["ledger"].budget is not None:
        raise FederationError("the site has a privacy budget and answers only with privacy")
    return Local(X, memory)


def _moments(local: Local, request: Record) -> Record:
    mean, squares = local.moments()
    weights = {} if local.X.weights is None else {"weights": local.X.weights}
    facts = {"n": local.n, "dtype": str(local.X.work_dtype)}
    return Record("moments", request.round, {"mean": mean, "squares": squares, **weights}, facts)


def _subspace(local: Local, request: Record) -> Record:
    found = subspace_record(local.subspace(request), request.round)
    return replace(found, facts={**found.facts, "dtype": str(local.X.work_dtype)})


def _product(local: Local, request: Record) -> Record:
    product, rounding = local.product(request.arrays["block"], *local.standard(request))
    return Record("product", request.round, {"product": product}, {"n": local.n, "rounding": rounding})


def _consensus(local: Local, request: Record) -> Record:
    facts, memory, z = request.facts, local.memory, request.arrays["block"]
    mean, scale = local.standard(request)
    rho, k = float(facts["rho"]), len(z)

    def product(u: np.ndarray) -> np.ndarray:
        return local.product(u, mean, scale)[0] / local.n

    u, y, t = memory.get("consensus", (z, np.zeros_like(z), np.zeros((k, k))))
    apart = float(np.linalg.norm(u - z)) if "consensus" in memory else 1.0
    y = y + rho * (u - z)
    if "top" not in memory:
        memory["top"] = local.top(mean, scale)
    u, t = STEPS[facts["variant"]](product, z, u, y, t, rho, memory["top"], int(facts["steps"]))
    memory["consensus"] = (u, y, t)
    return Record(
        "consensus", request.round, {"given": u + y / rho}, {"n": local.n, "apart": apart, "top": memory["top"]}
    )


def _personal(local: Local, request: Record) -> Record:
    """The site's own directions beside the shared ones, with its spread along these."""
    shared, p = request.arrays["block"], int(request.facts["k"])
    k = len(shared) + 2 * p + 8  # of its own components: enough that what is left of them holds the leading ones
    own = local.subspace(replace(request, facts={**request.facts, "k": k}))
    rows = own.singular_values[:, None] * np.asarray(own.basis, np.float64)
    along = np.linalg.norm(rows @ shared.T, axis=0)
    rest = rows - (rows @ shared.T) @ shared
    p = min(p, *rest.shape)
    _, values, vectors = np.linalg.svd(rest, full_matrices=False)
    unknown = np.full(p, np.pi / 2)
    found = replace(own, components=vectors[:p], singular_values=values[:p], residual=np.ones(p), angle_bounds=unknown)
    reply = subspace_record(found, request.round)
    return replace(reply, kind="personal", arrays={**reply.arrays, "shared": along})


def _advertise(local: Local, request: Record) -> Record:
    return advertise(local, request, TASKS[request.facts["inner"]])


TASKS: dict[str, Callable[[Local, Record], Record]] = {
    "advertise": _advertise,
    "consensus": _consensus,
    "masked": masked,
    "moments": _moments,
    "personal": _personal,
    "product": _product,
    "recover": recover,
    "subspace": _subspace,
}
"""Kind of a request to what answers it."""


def subspace_record(found: Subspace, number: int) -> Record:
    """A subspace as a message."""
    names = ("components", "singular_values", "mean", "residual", "angle_bounds")
    arrays = {name: np.asarray(getattr(found, name), np.float64) for name in names}
    optional = {name: getattr(found, name) for name in ("scale", "weights") if getattr(found, name) is not None}
    facts = {"n": float(found.n_samples), "total_variance": float(found.total_variance), "centered": found.centered}
    return Record("subspace", number, {**arrays, **optional}, facts)


def subspace_from(record: Record) -> Subspace:
    """The inverse of `subspace_record`."""
    a, facts = record.arrays, record.facts
    return Subspace(
        a["components"],
        a["singular_values"],
        a["mean"],
        float(facts["n"]),
        float(facts["total_variance"]),
        a["residual"],
        a["angle_bounds"],
        scale=a.get("scale"),
        weights=a.get("weights"),
        centered=bool(facts["centered"]),
        passes=1,
    )
