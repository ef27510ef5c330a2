"""`power`: rounds of products, one k x d exchange each; exact in the limit.

Every site multiplies its second moments with a block that all share, as in the power method of LocalPower (Li et al.
2021, one local step). The coordinator adds the products, C Q = sum_i C_i Q, and takes Rayleigh-Ritz on all that it
has heard (block Krylov, thick restarts), so that far fewer rounds are needed than powers, at the same exchange. What it
holds is a few times k x d numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.federation.answers import subspace_from
from pipeline.federation.merge import merged
from pipeline.federation.one_shot import asks_moments
from pipeline.federation.record import Record
from pipeline.federation.standard import Standard, settled
from pipeline.federation.terms import Terms
from pipeline.kernels.certificate import sine_bounds
from pipeline.kernels.linalg import eigh_descending, fix_signs, orthonormal, orthonormal_beside
from pipeline.subspace import Subspace

__all__ = ["Power", "PowerState", "advanced", "ritz_subspace", "shared"]

_MOST = 100  # rounds, where no number is given


@dataclass(frozen=True)
class PowerState:
    """Rounds so far, the standard, orthonormal rows and their images (q, d), and the block (l, d) to be multiplied.

    `theta` (k,), `rows` (k, d), `residual` and `sines` (k,) are the answer so far; only features with values count.
    `members` are the sites that the images are sums over.
    """

    round: int = 0
    products: int = 0
    standard: Standard | None = None
    known: np.ndarray | None = None
    images: np.ndarray | None = None
    block: np.ndarray | None = None
    start: np.ndarray | None = None
    theta: np.ndarray | None = None
    rows: np.ndarray | None = None
    residual: np.ndarray | None = None
    sines: np.ndarray | None = None
    estimate: float = 1.0
    rounding: float = 0.0
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Power:
    """Starts where the sites' own subspaces meet (`start='merge'`), or anywhere ('random')."""

    start: str = "merge"
    name: ClassVar[str] = "power"
    resumable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.start not in ("merge", "random"):
            raise InputError(f"start={self.start!r}: choose 'merge' or 'random'")

    def init(self, terms: Terms) -> PowerState:
        return PowerState()

    def request(self, terms: Terms, state: PowerState) -> Record:
        number = state.round + 1
        if state.standard is None:
            return asks_moments(terms, number)
        arrays = shared(terms, state.standard)
        if state.block is None:
            return Record("subspace", number, {k: v for k, v in arrays.items() if k == "scale"}, terms.facts)
        block = np.zeros((len(state.block), state.standard.mean.size))
        block[:, state.standard.there] = state.block
        return Record("product", number, {**arrays, "block": block}, terms.facts)

    def among(self, terms: Terms, state: PowerState, present: list[str]) -> list[str]:
        return present

    def step(self, terms: Terms, state: PowerState, replies: Mapping[str, Record], present: list[str]) -> PowerState:
        state = replace(state, round=state.round + 1)
        if state.standard is None:
            state = replace(state, standard=settled(replies, terms), members=tuple(replies))
            return self._begun(terms, state) if self.start == "random" or state.start is not None else state
        if set(replies) != set(state.members):
            # Another sum: what was heard before is of no use but as a start.
            start = state.rows if state.rows is not None else state.block
            return PowerState(state.round, state.products + (state.block is not None), start=start)
        if state.block is None:
            return self._begun(terms, _met(terms, replace(state, products=state.products + 1), replies))
        product = np.sum([r.arrays["product"] for r in replies.values()], axis=0)[:, state.standard.there]
        rounding = sum(float(r.facts["rounding"]) for r in replies.values())
        return advanced(terms, replace(state, products=state.products + 1), product, rounding)

    def _begun(self, terms: Terms, state: PowerState) -> PowerState:
        assert state.standard is not None
        width = int(state.standard.there.sum())
        if state.start is not None and state.start.shape[1] != width:
            raise InputError(f"the start has {state.start.shape[1]} features with values, the sites have {width}")
        if terms.k > width:
            raise InputError(f"n_components={terms.k} is more than the {width} features that have values")
        rng = np.random.default_rng(terms.seed)
        rows = np.zeros((0, width)) if state.start is None else state.start
        block = orthonormal(np.concatenate([rows, rng.standard_normal((terms.k - len(rows), width))]).T).T
        none = np.zeros((0, width))
        return replace(state, block=block, known=none, images=none)

    def done(self, terms: Terms, state: PowerState) -> str | None:
        if state.block is None or state.standard is None:
            return None
        if state.estimate <= terms.tol:
            return "converged"
        if state.products >= (terms.rounds or _MOST):
            return "limit"
        return None

    def result(self, terms: Terms, state: PowerState) -> Subspace:
        assert state.standard is not None
        assert state.theta is not None
        assert state.rows is not None
        assert state.residual is not None
        assert state.sines is not None
        return ritz_subspace(terms, state.standard, state.rows, state.theta, state.residual, state.sines)


def _met(terms: Terms, state: PowerState, replies: Mapping[str, Record]) -> PowerState:
    """The state where the sites' own subspaces meet: an answer with what is known of it, and a start."""
    assert state.standard is not None
    met = merged([subspace_from(r) for r in replies.values()])
    met = met.truncate(min(terms.k, met.k))
    start = met.basis[:, state.standard.there]
    sines = np.sin(met.angle_bounds)
    theta = np.square(met.singular_values)
    return replace(state, start=start, rows=start, theta=theta, residual=met.residual, sines=sines)


def advanced(terms: Terms, state: PowerState, product: np.ndarray, rounding: float) -> PowerState:
    """The state after the product (l, d) of all sites: Rayleigh-Ritz, its certificate, the next block."""
    assert state.standard is not None
    assert state.known is not None
    assert state.images is not None
    assert state.block is not None
    energy, k = state.standard.energy, terms.k
    known, images = np.concatenate([state.known, state.block]), np.concatenate([state.images, product])
    inner = known @ images.T
    theta, turn = eigh_descending((inner + inner.T) / 2)
    theta = np.maximum(theta, 0.0)
    rows, seen = turn.T @ known, turn.T @ images
    leak = seen - (seen @ known.T) @ known
    rounding = max(rounding, state.rounding) + 1e-14 * energy
    width, full = known.shape[1], len(known) == known.shape[1]
    outside = -np.inf if full else max(energy - float(theta.sum()), 0.0) + 1e-14 * energy
    sines = sine_bounds(theta, leak @ leak.T, outside, rounding, k)
    miss = seen[:k] - theta[:k, None] * rows[:k]
    gap = theta[k - 1] - (theta[k] if len(theta) > k else 0.0)
    size = float(np.linalg.norm(miss))
    estimate = 1.0 if len(theta) <= k and not full else 0.0 if full else size / gap if gap > size else 1.0
    tiny = max(np.finfo(float).eps * float(theta[0]), np.finfo(float).tiny)
    state = replace(
        state,
        theta=theta[:k],
        rows=rows[:k],
        residual=(np.linalg.norm(miss, axis=1) + rounding) / np.maximum(theta[:k], tiny),
        sines=sines,
        estimate=float(estimate),
        rounding=rounding - 1e-14 * energy,
    )
    if len(known) + k > max(16 * k, 48) and not full:  # thick restart: the best of what is known
        keep = 4 * k
        known, images, leak = rows[:keep], seen[:keep], leak[:keep]
    fresh = min(k, width - len(known))
    spare = np.random.default_rng([terms.seed, state.round]).standard_normal((width, fresh))
    block = orthonormal_beside((known.T,), miss[:fresh].T, lambda: spare).T if fresh else np.zeros((0, width))
    return replace(state, known=known, images=images, block=block)


def ritz_subspace(
    terms: Terms,
    standard: Standard,
    rows: np.ndarray,
    theta: np.ndarray,
    residual: np.ndarray,
    sines: np.ndarray,
) -> Subspace:
    """The Subspace of rows (k, d') over the features that have values."""
    rows = rows * fix_signs(rows)[:, None]
    components = np.zeros((len(rows), standard.mean.size))
    components[:, standard.there] = rows
    turned = 1e-15 * np.sqrt(np.arange(1, len(rows) + 1) * rows.shape[1])
    found = Subspace(
        components,
        np.sqrt(theta),
        standard.mean,
        standard.n,
        0.0,
        residual,
        np.arcsin(np.clip(sines + turned, 0.0, 1.0)),
    )
    return standard.dressed(found, terms.center)


def shared(terms: Terms, standard: Standard) -> dict[str, np.ndarray]:
    """The mean and spread that sites are to use, without NaN."""
    if terms.standardise == "site" and terms.scale is not None:
        return {}
    arrays = {"mean": np.where(standard.there, standard.mean, 0.0)} if terms.center else {}
    if standard.scale is not None:
        arrays["scale"] = np.where(standard.there, standard.scale, 1.0)
    return arrays
