"""`Record`: what there is to know of a submitted job, in the job's store, so that it is known when its cluster is gone.

A record is a few messages in a Zarr store. Each has one writer, and those that decide are written once, so that nobody
overwrites what somebody else has said: `submitted`, `started/1` (`/2`, … after a worker was lost), `cancel`, `ended`;
`log` and `alive` are the running job's own.
"""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, StoreError
from pipeline.store.messages import Messages

if TYPE_CHECKING:
    from pipeline.jobs.spec import JobSpec

__all__ = ["ENDED", "Record", "now", "records_in", "store_of", "whoever"]

ENDED = ("done", "failed", "cancelled")
SILENT = 60.0  # seconds without a sign of life after which a job counts as lost
_TIES = "submitted", "cancel", "ended"


def now() -> str:
    """UTC time, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def whoever() -> dict[str, str]:
    """Who does something, where and when."""
    return {"user": _user(), "host": socket.gethostname(), "at": now()}


def store_of(spec: JobSpec) -> str:
    """Where the records of a job lie: where it says, else in `jobs.zarr` beside the model."""
    if spec.output.jobs is not None:
        return spec.output.jobs
    above, slash, _ = spec.output.model.removeprefix("icechunk:").rstrip("/").rpartition("/")
    return f"{above}{slash}jobs.zarr"


@dataclass(frozen=True)
class Record:
    """The record of one job.

    Parameters
    ----------
    store : str
        Path or URL of the job's store.
    id : str

    Examples
    --------
    >>> import tempfile
    >>> record = Record(tempfile.mkdtemp(), "a-1")
    >>> record.put("submitted", {"name": "a", **whoever()})
    >>> record.state, record.start({})
    ('queued', 1)
    >>> record.end("failed", error={"sentence": "no such dim"})
    >>> record.state, record.facts()["error"]["sentence"]
    ('failed', 'no such dim')
    """

    store: str
    id: str

    def put(self, name: str, message: Any) -> None:
        """Leave a message; what was there is replaced in one step."""
        with _said(self.store):
            Messages(self.store).put(f"{self.id}/{name}", json.dumps(message, default=str).encode())

    def get(self, name: str) -> Any:
        """A message, or None."""
        with _said(self.store):
            data = Messages(self.store).get(f"{self.id}/{name}")
        try:
            return None if data is None else json.loads(data)
        except ValueError as error:
            raise StoreError(f"{self.id}/{name} in {self.store} is damaged: remove the record of this job") from error

    def start(self, facts: dict[str, Any]) -> int:
        """Note that the work begins, once more where a worker was lost before: the number of this attempt."""
        number = 1 + len(self.attempts())
        self.put(f"started/{number:03d}", {**facts, "at": now()})
        self.put("alive", now())
        return number

    def attempts(self) -> list[str]:
        """The names of the attempts so far."""
        with _said(self.store):
            return Messages(self.store).names(f"{self.id}/started")

    def end(self, state: str, **facts: Any) -> None:
        """Note how it ended: 'done', 'failed' or 'cancelled'."""
        self.put("ended", {"state": state, "at": now(), **facts})

    @property
    def state(self) -> str:
        """'queued', 'running', 'cancelling', 'lost' (no sign of life for a minute), or how it ended."""
        return str(self.facts()["state"])

    @property
    def log(self) -> list[str]:
        """What the job has told, a line each, with UTC times."""
        return list(self.get("log") or [])

    def facts(self) -> dict[str, Any]:
        """All that is known, as plain JSON values."""
        submitted, cancel, ended = (self.get(name) or {} for name in _TIES)
        if not submitted:
            raise StoreError(f"{self.store} has no job {self.id}")
        attempts = self.attempts()
        started = self.get(f"started/{attempts[0]}") if attempts else None
        alive = self.get("alive")
        if ended:
            state = ended["state"]
        elif started is None:
            state = "cancelling" if cancel else "queued"
        elif _seconds_since(alive) > SILENT:
            state = "lost"
        else:
            state = "cancelling" if cancel else "running"
        return {
            "id": self.id,
            "state": state,
            **{name: submitted.get(name) for name in ("name", "user", "host")},
            "submitted": submitted.get("at"),
            "started": None if started is None else started.get("at"),
            "ended": ended.get("at"),
            "attempts": len(attempts),
            "alive": alive,
            **{name: submitted.get(name) for name in ("scheduler", "version", "outputs", "job")},
            **{name: ended.get(name) for name in ("result", "error")},
            "cancelled_by": cancel.get("user"),
            "store": self.store,
        }


def records_in(store: str) -> Iterator[Record]:
    """The jobs of a store, the newest last."""
    with _said(store):
        messages = Messages(store)
        names = messages.names("")
    records = [Record(store, name) for name in names if PurePosixPath(name).name == name]
    told = [(record.get("submitted"), record) for record in records]
    yield from (record for said, record in sorted(((s, r) for s, r in told if s), key=lambda pair: pair[0]["at"]))


class _said:
    """Errors of a store in one sentence, whatever is below raises."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, StoreError | InputError):
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise StoreError(f"the job's store {self.place} cannot be used: {why}") from error


def _seconds_since(at: str | None) -> float:
    return 0.0 if at is None else (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, in a container
        return "unknown"
