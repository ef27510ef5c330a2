"""`Exchange`: signed messages left in a store, for a coordinator and sites that cannot call each other.

Requests to a site lie under `to/SITE/NUMBER`, its replies under `from/SITE/NUMBER`. Numbers only grow: a message that
is copied to another place, or comes again, does not fit and is refused.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import FederationError, InputError, PipelineError, StoreError
from pipeline.federation.answers import answer
from pipeline.federation.privacy import DP, Ledger
from pipeline.federation.record import Record
from pipeline.federation.site import Waiter
from pipeline.jobs.seal import digest, load_public, opened, public_text, sealed
from pipeline.store.messages import Messages
from pipeline.store.read import Place

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from pipeline.matrix import Matrix

__all__ = ["COORDINATOR", "Exchange", "SiteState", "serve"]

COORDINATOR, END = "coordinator", "end"
_POLL = 0.05  # seconds between two looks at the store
log = logging.getLogger("pipeline.federation")


@dataclass
class Exchange:
    """The coordinator's side: `Site(exchange=..., name=...)` asks through it.

    Parameters
    ----------
    store : path, URL or zarr Store
    key : Ed25519PrivateKey
        The coordinator's own.
    keys : dict
        Site name to its public key as text: no other is taken.
    largest : int
        Bytes of a message; larger ones are not read.
    """

    store: Place
    key: Ed25519PrivateKey
    keys: Mapping[str, str]
    largest: int = 1 << 30
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Place and reason of every message that was refused."""

    def __post_init__(self) -> None:
        for name, text in self.keys.items():
            _check_name(name)
            load_public(text)
        self._messages = Messages(self.store)
        self._number = 0

    def ask(self, name: str, request: Record, timeout: float) -> Waiter:
        """Leave a signed request for a site; what is returned looks for the reply until the time is over."""
        self._number = max(self._number + 1, time.time_ns() // 1_000_000)
        data = sealed(request, self.key, sender=COORDINATOR, to=name, number=self._number)
        place, deadline = f"{self._number:016d}", time.monotonic() + timeout
        self._messages.put(f"to/{name}/{place}", data)
        envelope = {"sender": name, "to": COORDINATOR, "number": self._number, "answers": digest(data)}

        def wait() -> Record:
            where, seen = f"from/{name}/{place}", ""
            while True:
                reply = self._look(where, name, envelope, seen)
                if isinstance(reply, Record):
                    if reply.kind == "refused":
                        raise FederationError(str(reply.facts.get("reason", "refused")))
                    return reply
                seen = reply
                if time.monotonic() > deadline:
                    raise TimeoutError
                time.sleep(_POLL)

        return wait

    def end(self, names: list[str], record: Record) -> None:
        """Tell sites that the federation is over, with the model where there is one; nobody waits for a reply."""
        for name in names:
            self.ask(name, record, 0.0)

    def _look(self, where: str, name: str, envelope: Mapping[str, Any], seen: str) -> Record | str:
        """The reply, or the mark of what lies there instead, so that it is refused once."""
        try:
            data = self._messages.get(where, self.largest)
            if data is None or digest(data) == seen:
                return seen
            return opened(data, self.keys[name], **envelope)
        except (FederationError, StoreError) as error:
            mark = "too large" if isinstance(error, StoreError) else digest(data or b"")
            if mark != seen:
                self.refused.append((where, str(error)))
                log.warning("%s: %s", where, error)
            return mark


@dataclass
class SiteState:
    """What a site must not forget when it is started again: the last number that it answered, and what it spent."""

    path: Path
    number: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    @classmethod
    def load(cls, path: str | PathLike[str], budget: DP | None = None) -> SiteState:
        """From a file, or new; a budget in the site's configuration goes before the one in the file."""
        state = cls(Path(path))
        if state.path.exists():
            try:
                kept = json.loads(state.path.read_text())
                old = None if kept["budget"] is None else DP(**kept["budget"])
                state.number, state.ledger = int(kept["number"]), Ledger(old, tuple(map(float, kept["spent"])))
                if not all(0 < m < math.inf for m in state.ledger.spent):
                    raise ValueError("noise that is no positive number")
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{path} cannot be read ({error}): what the site has spent must be known") from error
        if budget is not None:
            state.ledger.budget = budget
        return state

    def save(self) -> None:
        """Safe on disk before anything else happens; raises StoreError where it cannot be written."""
        budget = None if self.ledger.budget is None else self.ledger.budget.to_dict()
        kept = {"number": self.number, "budget": budget, "spent": list(self.ledger.spent)}
        fresh = self.path.with_name(self.path.name + ".partial")
        try:
            fresh.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("w") as file:
                json.dump(kept, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self.path)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written ({error.strerror}): it keeps what is spent") from error


def serve(
    name: str,
    X: Matrix,
    store: Place,
    key: Ed25519PrivateKey,
    coordinator: str,
    state: SiteState,
    *,
    patience: float | None = None,
    largest: int = 1 << 30,
    told: Callable[[str], None] = log.info,
) -> Record | None:
    """Answer the requests of a coordinator until it says that the federation is over.

    Parameters
    ----------
    name : str
        Of the site.
    X : Matrix
        Its rows.
    store : path, URL or zarr Store
        The exchange.
    key : Ed25519PrivateKey
        The site's own.
    coordinator : str
        The coordinator's public key: requests of others are refused and logged.
    state : SiteState
    patience : float, optional
        Seconds without a request after which to give up.
    largest : int
        Bytes of a request; larger ones are not read.
    told : function
        Hears of every request, and of what was refused.

    Returns
    -------
    Record or None
        The last message; None where patience ended.
    """
    _check_name(name)
    load_public(coordinator)
    messages, memory, refused = Messages(store), {"ledger": state.ledger}, set()
    state.save()  # that it can be kept is known before anything is answered
    told(f"site {name}: {X.shape[0]} samples x {X.shape[1]} features, key {public_text(key)}")
    heard = time.monotonic()
    while patience is None or time.monotonic() - heard < patience:
        news = [n for n in messages.names(f"to/{name}") if n not in refused]
        for place in news:
            try:
                number = int(place)
                if number <= state.number:
                    refused.add(place)  # answered before, or a copy of it
                    continue
                data = messages.get(f"to/{name}/{place}", largest)
                if data is None:
                    continue
                request = opened(data, coordinator, sender=COORDINATOR, to=name, number=number)
            except (FederationError, StoreError, ValueError) as error:
                refused.add(place)
                told(f"to/{name}/{place}: {error}")
                continue
            heard, state.number = time.monotonic(), number
            state.save()
            if request.kind == END:
                return request
            told(f"round {request.round}: {request.kind}")
            reply, memory = _answered(X, request, memory)
            state.ledger = memory["ledger"]
            state.save()
            envelope = {"sender": name, "to": COORDINATOR, "number": number, "answers": digest(data)}
            messages.put(f"from/{name}/{place}", sealed(reply, key, **envelope))
        time.sleep(_POLL)
    return None


def _check_name(name: str) -> None:
    """Raise InputError for a name that would lie elsewhere than in the exchange."""
    if name in (".", "..") or "/" in name or "\\" in name:
        raise InputError(f"the site's name {name!r} is part of a path: give one without slashes")


def _answered(X: Matrix, request: Record, memory: dict[str, Any]) -> tuple[Record, dict[str, Any]]:
    try:
        return answer(X, request, memory)
    except PipelineError as error:
        return Record("refused", request.round, {}, {"reason": str(error)}), memory
    except Exception as error:  # a malformed request of a coordinator that is known
        return Record("refused", request.round, {}, {"reason": f"{type(error).__name__}: {error}"}), memory
