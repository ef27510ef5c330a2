"""`Fold`: how an algorithm walks a matrix once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

__all__ = [
    "Fold",
    "Measuring",
    "Preparing",
    "Skipping",
    "Tally",
    "joined",
    "ready",
    "unmeasured",
    "unskipped",
]

S = TypeVar("S")


class Fold(Protocol[S]):
    """One walk: a small broadcast context, and what is done to a block and to two summaries.

    Implementations are frozen records of arrays; their methods know no Dask and no I/O. What is done with the last
    summary is up to the solver's `step`.
    """

    @property
    def side(self) -> int:
        """The side along which the matrix is cut."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which blocks are read and multiplied."""
        ...

    def block(self, x: Any, at: tuple[int, int], held: S | None, scratch: dict[str, np.ndarray]) -> S:
        """Summarise a block.

        Parameters
        ----------
        x : array, or what `prepare` made of it
            A fold that prepares must leave it as it is, as it may be kept for the next pass; others may overwrite it.
        at : pair of int
            Where the block lies along the walked side.
        held : S, optional
            What the calling task has summed so far; it may be added to in place and returned.
        scratch : dict
            Work arrays that the task keeps from block to block.
        """
        ...

    def combine(self, a: S, b: S) -> S:
        """One summary of two; associative and, up to rounding, commutative; changes neither."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """A fold whose blocks are first made ready (checked, shifted, standardised), once however many passes follow."""

    @property
    def readiness(self) -> str:
        """What blocks are made ready for: folds of the same readiness and dtype share kept blocks."""
        ...

    def prepare(self, x: np.ndarray, at: tuple[int, int], first: Any) -> Any:
        """The block made ready, in place; `first` is what the first block of the same run became, None for itself."""
        ...


@runtime_checkable
class Skipping(Protocol):
    """A fold that has the result of some blocks already."""

    def skips(self, at: tuple[int, int]) -> bool:
        """Whether the block there need not be read."""
        ...


@runtime_checkable
class Measuring(Protocol):
    """A fold that holds some blocks against float64, so that what single precision costs is known."""

    def unmeasured(self) -> Fold[Any]:
        """The same fold, which trusts that others measure."""
        ...


def unmeasured(fold: Fold[Any]) -> Fold[Any]:
    """The fold without its measurements, where it has any."""
    return fold.unmeasured() if isinstance(fold, Measuring) else fold


def ready(fold: Fold[Any], x: np.ndarray, at: tuple[int, int], first: Any) -> Any:
    """A block as the fold wants it."""
    return fold.prepare(x, at, first) if isinstance(fold, Preparing) else x


def unskipped(fold: Fold[Any], cuts: np.ndarray) -> list[tuple[int, int]]:
    """The blocks between some cuts that a fold does not skip."""
    blocks = list(pairwise(cuts.tolist()))
    return [at for at in blocks if not fold.skips(at)] if isinstance(fold, Skipping) else blocks


def joined(fold: Fold[S], a: S | None, b: S | None) -> S | None:
    """One summary of two, of which either may be None: that of blocks which were all skipped."""
    if a is None or b is None:
        return b if a is None else a
    return fold.combine(a, b)


@dataclass(frozen=True)
class Tally:
    """What a walk cost: blocks, decoded bytes, seconds of all threads spent reading and computing, and wall seconds."""

    blocks: int = 0
    nbytes: int = 0
    read_seconds: float = 0.0
    compute_seconds: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.blocks + other.blocks,
            self.nbytes + other.nbytes,
            self.read_seconds + other.read_seconds,
            self.compute_seconds + other.compute_seconds,
            self.seconds + other.seconds,
        )
