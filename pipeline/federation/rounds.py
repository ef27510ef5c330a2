"""The one loop of a federation: a method asks, sites answer, the method steps, until it is done with a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints

import numpy as np

from pipeline.federation.circle import Circle
from pipeline.federation.record import Record
from pipeline.federation.terms import Terms
from pipeline.subspace import Subspace

__all__ = ["Keep", "Method", "federate", "state_from", "state_record"]

St = TypeVar("St")
Keep = Callable[[Record], None]


class Method(Protocol[St]):
    """A frozen record of settings; its state between rounds is a small dataclass of arrays and numbers."""

    resumable: ClassVar[bool]

    @property
    def name(self) -> str:
        """What its states are kept under."""
        ...

    def init(self, terms: Terms) -> St:
        """The state before the first round."""
        ...

    def request(self, terms: Terms, state: St) -> Record:
        """What to ask of the sites next."""
        ...

    def among(self, terms: Terms, state: St, present: list[str]) -> list[str]:
        """Whom to ask."""
        ...

    def step(self, terms: Terms, state: St, replies: Mapping[str, Record], present: list[str]) -> St:
        """The state after the replies of some of the sites that are still in."""
        ...

    def done(self, terms: Terms, state: St) -> str | None:
        """Why to stop, or None to go on."""
        ...

    def result(self, terms: Terms, state: St) -> Subspace:
        """The answer, in float64."""
        ...


def federate(
    circle: Circle, method: Method[Any], terms: Terms, state: Any = None, keep: Keep | None = None
) -> Subspace:
    """Run a method among sites until it is done.

    Parameters
    ----------
    circle : Circle
        Who is asked; it logs what the rounds cost and who was left out.
    method : Method
    terms : Terms
    state : optional
        Where an earlier run stopped.
    keep : function, optional
        Given the state as a Record after each round, to store it.

    Raises
    ------
    FederationError
        When fewer sites than the quorum are left.
    """
    state = method.init(terms) if state is None else state
    while (reason := method.done(terms, state)) is None:
        request = method.request(terms, state)
        replies = circle.ask(request, method.among(terms, state, circle.present))
        state = method.step(terms, state, replies, circle.present)
        if keep is not None:
            keep(state_record(method.name, state))
    found = method.result(terms, state)
    return replace(found, provenance={**found.provenance, "reason": reason})


def state_record(kind: str, state: Any) -> Record:
    """A state as a Record: arrays, plain values, and the same of the dataclasses in it, under dotted names."""
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}

    def take(prefix: str, value: Any) -> None:
        for f in fields(value):
            name, part = prefix + f.name, getattr(value, f.name)
            if isinstance(part, np.ndarray):
                arrays[name] = part
            elif is_dataclass(part):
                facts[name] = True
                take(name + ".", part)
            else:
                facts[name] = part

    take("", state)
    return Record(kind, int(facts.get("round", 0)), arrays, facts)


def state_from(cls: type[St], record: Record, prefix: str = "") -> St:
    """The inverse of `state_record`."""
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        full = prefix + name
        if full in record.arrays:
            values[name] = np.array(record.arrays[full])
        elif record.facts.get(full) is True and any(is_dataclass(kind) for kind in _kinds(hint)):
            inner: Any = next(kind for kind in _kinds(hint) if is_dataclass(kind))
            values[name] = state_from(inner, record, full + ".")
        elif full in record.facts:
            value = record.facts[full]
            values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__args__", (hint,))
