"""`OneShot`: every site sends its own subspace once, and a rule of the registry aggregates them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.federation.aggregation import aggregate
from pipeline.federation.answers import subspace_from
from pipeline.federation.record import Record
from pipeline.federation.standard import Standard, settled
from pipeline.federation.terms import Terms
from pipeline.subspace import Subspace

__all__ = ["OneShot", "OneShotState", "asks_moments"]


@dataclass(frozen=True)
class OneShotState:
    """Rounds so far, the standard that was agreed on, and the subspaces that came."""

    round: int = 0
    standard: Standard | None = None
    subspaces: tuple[Subspace, ...] = field(default=())


@dataclass(frozen=True)
class OneShot:
    """One exchange of k x d numbers a site; a round of moments before it where features are divided by their spread."""

    rule: str
    options: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "one-shot"
    resumable: ClassVar[bool] = False

    def init(self, terms: Terms) -> OneShotState:
        rows, ones = np.eye(terms.k), np.ones(terms.k)
        alone = Subspace(rows, ones, np.zeros(terms.k), 1.0, 1.0, ones, ones)
        aggregate([alone], self.rule, terms.k, **self.options)  # tells what is wrong with the options
        return OneShotState()

    def request(self, terms: Terms, state: OneShotState) -> Record:
        if state.standard is None and terms.scale is not None:
            return asks_moments(terms, state.round + 1)
        arrays = {}
        if state.standard is not None and state.standard.scale is not None and terms.standardise == "global":
            arrays = {"scale": np.where(state.standard.there, state.standard.scale, 1.0)}
        return Record("subspace", state.round + 1, arrays, terms.facts)

    def among(self, terms: Terms, state: OneShotState, present: list[str]) -> list[str]:
        return present

    def step(
        self, terms: Terms, state: OneShotState, replies: Mapping[str, Record], present: list[str]
    ) -> OneShotState:
        state = replace(state, round=state.round + 1)
        if "squares" in next(iter(replies.values())).arrays:
            return replace(state, standard=settled(replies, terms))
        return replace(state, subspaces=tuple(subspace_from(r) for r in replies.values()))

    def done(self, terms: Terms, state: OneShotState) -> str | None:
        return "complete" if state.subspaces else None

    def result(self, terms: Terms, state: OneShotState) -> Subspace:
        found = aggregate(state.subspaces, self.rule, terms.k, **self.options)
        if terms.scale is not None and terms.standardise == "site":
            assert state.standard is not None  # the units of the answer are those of all sites together
            found = replace(found, mean=state.standard.mean, scale=state.standard.scale)
        return found


def asks_moments(terms: Terms, number: int) -> Record:
    """The request for n, means and sums of squares."""
    return Record("moments", number, {}, terms.facts)
