"""`Keep`: blocks that stay decoded, with the workers that read them, from one pass of a fit to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from typing import Any, NamedTuple

from dask.delayed import Delayed
from dask.sizeof import sizeof

__all__ = ["Block", "Keep", "Run"]


class Block(NamedTuple):
    """A block made ready, its bounds along the walked side, and the seconds it took to read."""

    at: tuple[int, int]
    x: Any
    seconds: float


@dataclass(frozen=True)
class Run:
    """Consecutive blocks, and the seconds it took to read them all."""

    blocks: tuple[Block, ...]
    seconds: float

    def __sizeof__(self) -> int:
        """Bytes of all blocks: by this Dask knows that work is to come to them, not they to the work."""
        return sum(_nbytes(b.x) for b in self.blocks)


@dataclass
class Keep:
    """How many bytes may be kept in all, and the blocks that are: Dask holds them where they were read.

    A worker that is lost takes its blocks with it, and Dask reads them again.
    """

    nbytes: int
    made_for: Any = None
    runs: dict[int, Delayed] = field(default_factory=dict)

    def lengths(self, runs: list[tuple[int, int]], block_bytes: int) -> list[int]:
        """How many blocks of each run are kept: the same share of all, so that workers fare alike.

        >>> Keep(5_000).lengths([(0, 4), (4, 8), (8, 10)], block_bytes=1_000)
        [2, 2, 1]
        """
        total = max(runs[-1][1], 1)
        share = min(self.nbytes // max(block_bytes, 1), total)
        return [b * share // total - a * share // total for a, b in runs]

    def as_before(self, side: int, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The runs that are kept already, where they are of that side and as many blocks; else those that are given.

        How many runs there would be goes by the threads of the moment, and workers come and go.
        """
        if self.made_for is None:
            return runs
        _, (was, before, _) = self.made_for
        return list(before) if was == side and before[-1][1] == runs[-1][1] else runs

    def take(self, wanted: Any, read: Callable[[], dict[int, Delayed]]) -> tuple[dict[int, Delayed], bool]:
        """The kept runs, and whether they are read only now.

        Parameters
        ----------
        wanted : comparable
            How the matrix is cut and what blocks are made ready for: what was kept for something else is of no use.
        read : callable
            Reads what is to be kept.
        """
        fresh = wanted != self.made_for
        if fresh:
            self.release()
            self.runs, self.made_for = read(), wanted
        return self.runs, fresh

    def release(self) -> None:
        """Give the memory back."""
        self.runs, self.made_for = {}, None


def _nbytes(made: Any) -> int:
    """Bytes of what a block was made into."""
    if isinstance(made, tuple):
        return sum(map(_nbytes, made))
    return int(sizeof(vars(made) if is_dataclass(made) else made))
