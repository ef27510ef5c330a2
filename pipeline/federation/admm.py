"""`fedpg` and `fedpe`: consensus by multipliers (Nguyen et al., INFOCOM 2023), rounds of local steps.

Each round the coordinator sends Z; a site corrects its multipliers, Y += rho (U - Z), takes its steps, and gives
back U + Y / rho. The new Z is the polar factor of the average, weighted by n_samples, of what every site gave last:
ADMM's own update, for any share of the sites a round. The published code averages the U alone, takes another product
than Frobenius' for <Y, U - Z>, and leaves Z not orthonormal; none of these is done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.federation.power import Power, PowerState, advanced, shared
from pipeline.federation.record import Record
from pipeline.federation.terms import Terms
from pipeline.kernels.averages import polar_rows
from pipeline.kernels.linalg import orthonormal
from pipeline.subspace import Subspace

__all__ = ["Consensus", "ConsensusState"]

_MOST = 100  # rounds, where no number is given


@dataclass(frozen=True)
class ConsensusState:
    """Rounds so far, the shared basis z (k, d), and what each site (`members`) gave last: (m, k, d) and its samples.

    `ends` is the state of the round of products that closes the federation: variances and certificate.
    """

    ends: PowerState
    round: int = 0
    exchanges: int = 0
    z: np.ndarray | None = None
    given: np.ndarray | None = None
    samples: np.ndarray | None = None
    members: tuple[str, ...] = ()
    top: float = 0.0
    apart: float = 1.0
    moved: float = 1.0
    reason: str | None = None


@dataclass(frozen=True)
class Consensus:
    """Settings of FedPG ('fedpg') and FedPE ('fedpe').

    Parameters
    ----------
    variant : {'fedpg', 'fedpe'}
    rho : float, optional
        Penalty; default: one and a half times the largest variance along one direction that most sites have.
    steps : int
        Local steps a round.
    participation : float
        Share of the sites that is asked in a round, chosen at random.
    """

    variant: str = "fedpg"
    rho: float | None = None
    steps: int = 30
    participation: float = 1.0
    resumable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rho is not None and not (isinstance(self.rho, Real) and 0 < self.rho < np.inf):
            raise InputError(f"rho={self.rho!r}: give a positive penalty")
        if not isinstance(self.steps, Integral) or isinstance(self.steps, bool) or self.steps < 1:
            raise InputError(f"steps={self.steps!r}: give a number from 1")
        if not isinstance(self.participation, Real) or not 0 < self.participation <= 1:
            raise InputError(f"participation={self.participation!r}: give a share of the sites, above 0 and at most 1")

    @property
    def name(self) -> str:
        """What states of it are kept under."""
        return self.variant

    def init(self, terms: Terms) -> ConsensusState:
        return ConsensusState(PowerState())

    def request(self, terms: Terms, state: ConsensusState) -> Record:
        standard, number = state.ends.standard, state.round + 1
        if standard is None or state.reason is not None:
            return replace(Power("random").request(terms, state.ends), round=number)
        assert state.z is not None
        z = np.zeros((terms.k, standard.mean.size))
        z[:, standard.there] = state.z
        first = standard.energy / standard.n / terms.k  # until the sites have told their largest variances
        rho = self.rho or (1.5 * state.top if state.top else first)
        facts = {**terms.facts, "variant": self.variant, "rho": float(rho), "steps": int(self.steps)}
        return Record("consensus", number, {**shared(terms, standard), "block": z}, facts)

    def among(self, terms: Terms, state: ConsensusState, present: list[str]) -> list[str]:
        if state.ends.standard is None or state.reason is not None or self.participation == 1:
            return present
        many = max(1, round(self.participation * len(present)))
        rng = np.random.default_rng([terms.seed, state.round])
        return [present[i] for i in sorted(rng.choice(len(present), many, replace=False))]

    def step(
        self, terms: Terms, state: ConsensusState, replies: Mapping[str, Record], present: list[str]
    ) -> ConsensusState:
        state = replace(state, round=state.round + 1)
        standard = state.ends.standard
        if standard is None:
            ends = Power("random").step(terms, replace(state.ends, start=state.z), replies, present)
            return replace(state, ends=ends, z=ends.block if state.z is None else state.z)
        if state.reason is not None:
            if not set(state.members) <= set(replies):  # one went at the end: its part is taken out, then once more
                return replace(state, ends=PowerState(), reason=None)
            product = sum(np.asarray(r.arrays["product"]) for r in replies.values())
            rounding = sum(float(r.facts["rounding"]) for r in replies.values())
            return replace(state, ends=advanced(terms, state.ends, np.asarray(product)[:, standard.there], rounding))
        return self._agreed(terms, state, replies, present)

    def _agreed(
        self, terms: Terms, state: ConsensusState, replies: Mapping[str, Record], present: list[str]
    ) -> ConsensusState:
        assert state.z is not None
        assert state.ends.standard is not None
        there = state.ends.standard.there
        old = {} if state.given is None else dict(zip(state.members, state.given, strict=True))
        n = {} if state.samples is None else dict(zip(state.members, state.samples, strict=True))
        old |= {name: np.asarray(r.arrays["given"])[:, there] for name, r in replies.items()}
        n |= {name: float(r.facts["n"]) for name, r in replies.items()}
        still = [name for name in old if name in present or name in replies]  # a sum goes by a name of its own
        lost = any(name not in still for name in state.members)
        old = {name: old[name] for name in still}
        members, given = tuple(old), np.stack(list(old.values()))
        samples = np.array([n[name] for name in members])
        z = polar_rows(np.tensordot(samples / samples.sum(), given, 1))
        state = replace(
            state,
            z=z,
            given=given,
            samples=samples,
            members=members,
            exchanges=state.exchanges + 1,
            top=max(state.top, float(np.quantile([r.facts["top"] for r in replies.values()], 0.75))),
            apart=max(float(r.facts["apart"]) for r in replies.values()),
            moved=float(np.linalg.norm(z - state.z)),
        )
        if lost:  # the mean is to be that of those who are left
            state = replace(state, ends=PowerState())
        limit = state.exchanges >= (terms.rounds or _MOST)
        rests = max(state.apart, state.moved) <= terms.tol
        if lost or not (limit or rests):
            return state
        # The last round asks for products with the agreed basis: variances, and how far it is from the truth.
        ends = replace(state.ends, block=orthonormal(z.T).T)
        return replace(state, reason="converged" if rests else "limit", ends=ends)

    def done(self, terms: Terms, state: ConsensusState) -> str | None:
        return state.reason if state.ends.rows is not None else None

    def result(self, terms: Terms, state: ConsensusState) -> Subspace:
        return Power("random").result(terms, state.ends)
