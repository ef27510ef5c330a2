"""One writer at a time: a lock on a hidden file beside the model, which the system frees when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import ConflictError

__all__ = ["OWNER", "only_writer", "sweep_beside"]

OWNER = ".owner"
"""A file in the folder of a writer that works outside of the lock: locked as long as that lives."""
_PATIENCE = 10.0  # seconds


@contextmanager
def only_writer(model: Path, doing: str = "is publishing") -> Iterator[None]:
    """While inside, no other process or thread publishes to `model`; `doing` tells what another one does.

    Raises
    ------
    ConflictError
        When another writer does not come to an end within ten seconds.
    """
    path = model.with_name(f".{model.name}.lock")
    deadline = time.monotonic() + _PATIENCE
    while (descriptor := _try(path)) is None:
        if time.monotonic() > deadline:
            raise ConflictError(f"another run {doing} {model}: try again when it is done")
        time.sleep(0.01)
    try:
        yield
    finally:
        # Removed while it is held: who waits for this file finds that it is gone and takes a new one.
        try:
            with suppress(OSError):
                os.unlink(path)
        finally:
            os.close(descriptor)


def sweep_beside(model: Path) -> None:
    """Remove what dead writers have left beside `model`; for the one writer only, who has no other at work there."""
    for left in model.parent.glob(f".{glob.escape(model.name)}.*.partial"):
        if not left.is_dir():
            left.unlink(missing_ok=True)
        elif not _lives(left):
            shutil.rmtree(left, ignore_errors=True)


def _lives(folder: Path) -> bool:
    try:
        with open(folder / OWNER, "rb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _try(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise
    os.close(descriptor)
    return None
