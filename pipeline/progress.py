"""Who is told how far a walk has come: a listener set for a stretch of code.

>>> seen = []
>>> with listening(seen.append):
...     tell(Progress(pass_number=1, passes=1, blocks=4, n_blocks=4, nbytes=10, total_nbytes=10))
>>> seen[0].share
1.0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Progress", "listener", "listening", "tell"]


@dataclass(frozen=True)
class Progress:
    """How far the current pass is: blocks and decoded bytes done and in all; `passes` is None while it is open.

    Number 0 is a sample of the rows, which a fit may begin with.
    """

    pass_number: int
    passes: int | None
    blocks: int
    n_blocks: int
    nbytes: int
    total_nbytes: int

    @property
    def share(self) -> float:
        """Part of the pass that is done, 0 to 1."""
        return self.blocks / self.n_blocks if self.n_blocks else 1.0


_listener: ContextVar[Callable[[Progress], None] | None] = ContextVar("pipeline_progress", default=None)


@contextmanager
def listening(hear: Callable[[Progress], None]) -> Iterator[None]:
    """While inside, `hear` is called from time to time with the `Progress` of every walk started here."""
    token = _listener.set(hear)
    try:
        yield
    finally:
        _listener.reset(token)


def listener() -> Callable[[Progress], None] | None:
    """Who listens here, if anybody; to be kept by code that tells from other threads."""
    return _listener.get()


def tell(progress: Progress) -> None:
    """Pass on to the listener, if there is one."""
    hear = listener()
    if hear is not None:
        hear(progress)
