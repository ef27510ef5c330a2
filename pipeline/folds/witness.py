"""A fold that also takes down what the rows held: the content that a model remembers to have seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.fold import Fold, Preparing, unmeasured
from pipeline.kernels.content import content_id, mixed_rows, piece_edges, row_bits, sparse_row_bits, stretch_sums
from pipeline.sources import ROWS

__all__ = ["Content", "Seen", "Witness", "witnessed"]


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
    """Another fold, with the content of all n rows, of which the walk sees all or a part; made by `witnessed`.

    Parameters
    ----------
    fold : Fold
    n, d : int
        Shape of the matrix.
    edges : array of int, optional
        Which stretches of rows are told apart; in steps of about 64 MB by default.
    looks_at : dtype, optional
        In which precision entries are told apart, in whichever they are multiplied; by default the same.
    """

    fold: Fold[Any]
    n: int
    d: int
    edges: np.ndarray | None = None
    looks_at: np.dtype[Any] | None = None

    @property
    def side(self) -> int:
        return self.fold.side

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.fold.dtype

    @property
    def stretches(self) -> np.ndarray:
        """(m + 1,) edges of the stretches."""
        return piece_edges(0, self.n, self.d) if self.edges is None else self.edges

    def unmeasured(self) -> Witness:
        return replace(self, fold=unmeasured(self.fold))

    def block(self, x: Any, at: tuple[int, int], held: Seen | None, scratch: dict[str, np.ndarray]) -> Seen:
        return self._seen(x, self._hashes(x, at), at, held, scratch)

    def _hashes(self, x: Any, at: tuple[int, int]) -> np.ndarray:
        bits = sparse_row_bits(x.array, at[0] * (self.side != ROWS)) if hasattr(x, "array") else None
        if bits is None:
            bits = row_bits(x, at[0] * (self.side != ROWS), self.looks_at)
        return bits if self.side != ROWS else stretch_sums(mixed_rows(bits, at[0]), at[0], self.stretches)

    def implicit(self, x: Any, summary: Any, at: tuple[int, int], held: Seen | None) -> Any:
        """The same as `block`, where the summary of a block that is not made dense is there already."""
        hashes = self._hashes(x, at)
        return Seen(summary, hashes if held is None else held.hashes + hashes)

    def _seen(self, x: Any, hashes: np.ndarray, at: tuple[int, int], held: Seen | None, scratch: Any) -> Seen:
        summary = self.fold.block(x, at, None if held is None else held.summary, scratch)
        return Seen(summary, hashes if held is None else held.hashes + hashes)

    def combine(self, a: Seen, b: Seen) -> Seen:
        return Seen(self.fold.combine(a.summary, b.summary), a.hashes + b.hashes)

    def content(self, seen: Seen) -> Content:
        """What the rows of a whole walk held."""
        hashes = seen.hashes
        if self.side != ROWS:
            hashes = stretch_sums(mixed_rows(hashes, 0), 0, self.stretches)
        return Content(self.stretches, hashes, self.d)


@dataclass(frozen=True, eq=False)
class _PreparingWitness(Witness):
    """The same of a fold that makes blocks ready: their content is taken down before that, and goes with them."""

    looking: bool = True

    @property
    def readiness(self) -> str:
        return "witnessed, " + self.fold.readiness  # type: ignore[attr-defined]

    def prepare(self, x: np.ndarray, at: tuple[int, int], first: Any) -> Any:
        hashes = self._hashes(x, at) if self.looking else None
        return self.fold.prepare(x, at, None if first is None else first[0]), hashes  # type: ignore[attr-defined]

    def block(self, x: Any, at: tuple[int, int], held: Any, scratch: dict[str, np.ndarray]) -> Any:
        made, hashes = x
        return self._seen(made, hashes, at, held, scratch) if self.looking else self.fold.block(made, at, held, scratch)

    def implicit(self, x: Any, summary: Any, at: tuple[int, int], held: Any) -> Any:
        return super().implicit(x, summary, at, held) if self.looking else summary

    def combine(self, a: Any, b: Any) -> Any:
        return super().combine(a, b) if self.looking else self.fold.combine(a, b)


def witnessed(
    fold: Fold[Any], n: int, d: int, looks_at: np.dtype[Any] | None = None, looking: bool = True
) -> Fold[Any]:
    """The fold with a witness; one that looks no more shares the blocks that were kept when it did."""
    if isinstance(fold, Preparing):
        return _PreparingWitness(fold, n, d, looks_at=looks_at, looking=looking)
    return Witness(fold, n, d, looks_at=looks_at) if looking else fold
