"""Which stores of jobs this user has submitted to: one line each in a file of the user's state, and nothing else.

What happened to the jobs is in the stores. The file only saves to name them again: `pipeline logs ID` is enough.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import InputError
from pipeline.jobs.record import Record, records_in

__all__ = ["find_job", "known_stores", "remember"]


def known_stores() -> list[str]:
    """Paths and URLs, of those on this machine only what is there."""
    try:
        lines = _file().read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line for line in dict.fromkeys(lines) if "://" in line or Path(line).exists()]


def remember(store: str) -> None:
    """Note a store; does nothing where the user has no place for notes."""
    if store in known_stores():
        return
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        with _file().open("a", encoding="utf-8") as file:
            file.write(store + "\n")
    except OSError:
        return


def find_job(id: str, stores: list[str]) -> Record:
    """The job with an id, or the one whose id begins so.

    Raises
    ------
    InputError
        When there is none, or more than one.
    StoreError
        When a store cannot be read.
    """
    found = [record for store in stores for record in records_in(store) if record.id.startswith(id)]
    exact = [record for record in found if record.id == id]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise InputError(f"{id} is the beginning of {len(found)} jobs: {', '.join(r.id for r in found[:5])}")
    where = f"in {', '.join(stores)}" if stores else "known here"
    raise InputError(f"there is no job {id} {where}: `pipeline jobs` tells them; name the job's store with --store")


def _file() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "subspace-pipeline" / "job-stores"
