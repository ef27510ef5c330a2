"""One writer at a time: a lock on a hidden file beside the model, which the system frees when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import ConflictError

__all__ = ["only_writer"]

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
