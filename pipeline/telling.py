"""How a walk tells its listener how far it is: what Dask or the workers say of its tasks, added up."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from dask.callbacks import Callback

from pipeline.progress import Progress, listener

__all__ = ["counted", "told_by_tasks", "told_by_workers", "voice"]

_TELL_EVERY = 0.2  # seconds between two words of a worker


def counted(pass_number: int, passes: int | None, n_blocks: int, nbytes: int, length: int) -> Callable[[float], None]:
    """Adds up what is done of the `length` of a walked side, and tells who listens here what part of a pass it is."""
    hear, done = listener(), 0.0
    passes = passes and max(passes, pass_number)  # a solver may take one more than was planned

    def heard(positions: float) -> None:
        nonlocal done
        done += positions
        if hear is not None:
            share = min(done / max(length, 1), 1.0)
            hear(Progress(pass_number, passes, round(share * n_blocks), n_blocks, int(share * nbytes), nbytes))

    return heard


@contextmanager
def told_by_tasks(sizes: dict[Any, float], heard: Callable[[float], None]) -> Iterator[None]:
    """Local schedulers: Dask says when a task is done."""

    def posttask(key: Any, *_: Any) -> None:
        if key in sizes:
            heard(sizes[key])

    heard(0)
    with Callback(posttask=posttask):
        yield


@contextmanager
def told_by_workers(client: Any, token: str, heard: Callable[[float], None]) -> Iterator[None]:
    """A cluster: workers log how many rows they have done."""
    if listener() is None:
        yield
        return
    heard(0)
    client.subscribe_topic(token, lambda event: heard(float(event[1])))
    try:
        yield
    finally:
        client.unsubscribe_topic(token)


def voice(token: str) -> Callable[[float], None]:
    """How a task on a worker says what it has done, a few times a second, and sees that nobody waits for it any more.

    Elsewhere nothing needs saying.
    """
    if "distributed.worker" not in sys.modules:
        return lambda positions: None
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return lambda positions: None
    state = [time.monotonic(), 0.0]
    # A thread that a task has started itself, as a site's does, has no task of its own.
    task = worker.state.tasks.get(worker.active_threads.get(get_ident(), ""))

    def say(positions: float) -> None:
        state[1] += positions
        if time.monotonic() - state[0] > _TELL_EVERY:
            if task is not None and task.state == "cancelled":  # Dask cannot stop a thread: it stops itself
                raise CancelledError
            worker.log_event(token, state[1])
            state[0], state[1] = time.monotonic(), 0.0

    return say
