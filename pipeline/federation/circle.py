"""`Circle`: the sites that take part in a federation, what was said, and who was left out and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.errors import FederationError
from pipeline.federation.checks import fault
from pipeline.federation.record import Record
from pipeline.federation.secure import summed
from pipeline.federation.site import Member

__all__ = ["Circle", "Round"]


@dataclass(frozen=True)
class Round:
    """What one round cost: bytes sent to all sites and received from them, and seconds."""

    round: int
    task: str
    sites: int
    sent: int
    received: int
    seconds: float


@dataclass
class Circle:
    """Sites by name; each round asks those that are still in, and leaves out whose reply cannot be used.

    Parameters
    ----------
    sites : dict
        Name to member.
    quorum : int
        Sites that must stay.
    timeout : float
        Seconds that a site has for a reply.
    id : str
        Of the federation; sites forget what belongs to another.
    secure : bool
        Whether only sums over all sites are learnt.
    excluded : dict
        Name to reason.
    rounds : list of Round
    """

    sites: Mapping[str, Member]
    quorum: int
    timeout: float
    id: str
    secure: bool = False
    d: int | None = None
    excluded: dict[str, str] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)

    @property
    def present(self) -> list[str]:
        """Names of the sites that are still in."""
        return [name for name in self.sites if name not in self.excluded]

    def ask(self, request: Record, among: Sequence[str] | None = None) -> dict[str, Record]:
        """Replies by name, checked, or their sum; raises FederationError when fewer than the quorum are left."""
        return summed(self, request, among) if self.secure else self.exchange(request, among)

    def exchange(self, request: Record, among: Sequence[str] | None = None, own: bool = False) -> dict[str, Record]:
        """One request to each site; with `own` it is told its name. Replies by name, checked."""
        asked = [name for name in self.present if among is None or name in among]
        request = replace(request, facts={**request.facts, "federation": self.id})
        started, waiters, replies = time.perf_counter(), {}, {}
        for name in asked:
            try:
                one = replace(request, facts={**request.facts, "me": name}) if own else request
                waiters[name] = self.sites[name].ask(one, self.timeout)
            except Exception as error:  # whatever happens at a site is its own affair
                self._leave_out(name, request, _told(error))
        for name, wait in waiters.items():
            try:
                reply = wait()
            except TimeoutError:
                self._leave_out(name, request, f"late: no answer within {self.timeout:g} s")
            except Exception as error:
                self._leave_out(name, request, _told(error))
            else:
                replies[name] = reply
        received = sum(reply.nbytes for reply in replies.values() if isinstance(reply, Record))
        replies = self._checked(request, replies)
        spent = time.perf_counter() - started
        self.rounds.append(Round(request.round, request.kind, len(asked), request.nbytes * len(asked), received, spent))
        self.check_quorum()
        return replies

    def _checked(self, request: Record, replies: dict[str, Any]) -> dict[str, Record]:
        if self.d is None and not self.secure:
            widths = [len(r.arrays["mean"]) for r in replies.values() if isinstance(r, Record) and "mean" in r.arrays]
            self.d = max(set(widths), key=widths.count) if widths else 0
        faults = {name: fault(request, reply, self.d or 0) for name, reply in replies.items()}
        good = {name: reply for name, reply in replies.items() if faults[name] is None}
        faults |= self._unlike(good)
        for name, reason in faults.items():
            if reason is not None:
                self._leave_out(name, request, reason)
        return {name: reply for name, reply in good.items() if faults[name] is None}

    def _unlike(self, replies: Mapping[str, Record]) -> dict[str, str]:
        """Sites whose features are others than those of most: without values elsewhere, or weighted otherwise."""
        faults: dict[str, str] = {}
        looks: dict[str, Callable[[Any], np.ndarray]] = {"mean": np.isnan, "weights": np.asarray}
        for name, ways in looks.items():
            kinds = {site: ways(r.arrays[name]).tobytes() for site, r in replies.items() if name in r.arrays}
            if name == "weights" and kinds:
                kinds = {site: kinds.get(site, b"") for site in replies}
            values = list(kinds.values())
            most = max(set(values), key=values.count, default=b"")
            what = "no values at" if name == "mean" else "weights on"
            faults |= {s: f"{what} other features than most sites" for s, kind in kinds.items() if kind != most}
        return faults

    def to_dict(self) -> dict[str, Any]:
        """What has happened so far, as plain JSON values."""
        rounds = [asdict(r) for r in self.rounds]
        return {"id": self.id, "d": self.d, "excluded": dict(self.excluded), "rounds": rounds}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on where `to_dict` was taken."""
        self.id, self.d, self.excluded = kept["id"], kept["d"], dict(kept["excluded"])
        self.rounds = [Round(**r) for r in kept["rounds"]]

    def leave_out(self, name: str, reason: str) -> None:
        """Go on without a site."""
        self.excluded[name] = reason

    def check_quorum(self) -> None:
        """Raise FederationError, with all reasons, where too few sites are left."""
        if len(self.present) < self.quorum:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.excluded.items())
            raise FederationError(
                f"{len(self.present)} of {len(self.sites)} sites are left and {self.quorum} are needed ({reasons}): "
                "mend those sites, or set a lower quorum"
            )

    def _leave_out(self, name: str, request: Record, reason: str) -> None:
        self.leave_out(name, f"round {request.round} ({request.kind}): {reason}")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else f"vanished: {type(error).__name__}"
