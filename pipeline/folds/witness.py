"""A fold that also takes down what the rows held: the content that a model remembers to have seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.fold import Fold
from pipeline.kernels.content import content_id, mixed_rows, piece_edges, row_bits, stretch_sums
from pipeline.sources import ROWS

__all__ = ["Content", "Seen", "Witness"]


@dataclass(frozen=True)
class Content:
    """Rows edges[0] to edges[-1] of d features, by the sums (m,) of the hashes of the stretches between m + 1 edges."""

    edges: np.ndarray
    sums: np.ndarray
    d: int

    @property
    def id(self) -> str:
        """32 hex digits: equal for equal rows, in whatever chunks and container they are."""
        return content_id(self.edges, self.sums, self.d)

    def plain(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {"edges": self.edges.tolist(), "sums": [f"{v:016x}" for v in self.sums.tolist()], "d": self.d}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Content:
        """The inverse of `plain`."""
        sums = np.array([int(text, 16) for text in plain["sums"]], np.uint64)
        return cls(np.array(plain["edges"], np.int64), sums, int(plain["d"]))


@dataclass(frozen=True)
class Seen:
    """The summary of the fold inside, and hashes: of stretches of rows, or of all rows on a walk along columns."""

    summary: Any
    hashes: np.ndarray


@dataclass(frozen=True, eq=False)
class Witness:
    """Another fold, with the content of the rows [start, start + n) of which the walk sees all or a part.

    Parameters
    ----------
    fold : Fold
    n, d : int
        Shape of the matrix.
    start : int
        Where its first row stands in what it was taken from.
    edges : array of int, optional
        Which stretches of rows are told apart; in steps of about 64 MB by default.
    """

    fold: Fold[Any]
    n: int
    d: int
    start: int = 0
    edges: np.ndarray | None = None

    @property
    def side(self) -> int:
        return self.fold.side

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.fold.dtype

    @property
    def stretches(self) -> np.ndarray:
        """(m + 1,) edges of the stretches."""
        return piece_edges(self.start, self.start + self.n, self.d) if self.edges is None else self.edges

    def block(self, x: np.ndarray, at: tuple[int, int], held: Seen | None, scratch: dict[str, np.ndarray]) -> Seen:
        if self.side == ROWS:
            first = self.start + at[0]
            hashes = stretch_sums(mixed_rows(row_bits(x), first), first, self.stretches)
        else:
            hashes = row_bits(x, at[0])
        summary = self.fold.block(x, at, None if held is None else held.summary, scratch)
        return Seen(summary, hashes if held is None else held.hashes + hashes)

    def combine(self, a: Seen, b: Seen) -> Seen:
        return Seen(self.fold.combine(a.summary, b.summary), a.hashes + b.hashes)

    def content(self, seen: Seen) -> Content:
        """What the rows of a whole walk held."""
        hashes = seen.hashes
        if self.side != ROWS:
            hashes = stretch_sums(mixed_rows(hashes, self.start), self.start, self.stretches)
        return Content(self.stretches, hashes, self.d)
