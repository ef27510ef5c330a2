"""`Joined`: several sources of the same samples, side by side as features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from scipy.sparse import hstack

from pipeline.kernels.implicit import ImplicitBlock
from pipeline.kernels.sparse import SparseBlock
from pipeline.sources.anndata import StoredSparse
from pipeline.sources.dasked import Dasked
from pipeline.sources.source import ROWS, ImplicitSource, Range, Source, rectangle_nbytes
from pipeline.sources.sparse import Sparse, SparseHollow

__all__ = ["Joined"]


@dataclass(frozen=True)
class Joined:
    """Columns of one source after those of another."""

    parts: tuple[Source, ...]

    @cached_property
    def offsets(self) -> np.ndarray:
        """First column of each part, and the end."""
        return np.concatenate([[0], np.cumsum([p.shape[1] for p in self.parts])])

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape[0], int(self.offsets[-1])

    def even(self, height: int) -> Joined:
        """The same with chunks that end at every multiple of `height` along its first sample dim."""
        return Joined(tuple(p.even(height) if isinstance(p, Dasked) else p for p in self.parts))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.result_type(*(p.dtype for p in self.parts))

    @property
    def held(self) -> bool:
        return any(p.held for p in self.parts)

    @property
    def collections(self) -> tuple[Any, ...]:
        return tuple(c for p in self.parts for c in p.collections)

    @property
    def layout(self) -> str:
        return " + ".join(p.layout for p in self.parts)

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            out = np.empty((rows[1] - rows[0], cols[1] - cols[0]), self.dtype)
        for part, start, stop in self._within(*cols):
            out[:, max(start, cols[0]) - cols[0] : min(stop, cols[1]) - cols[0]] = part.read(
                rows, (max(cols[0] - start, 0), min(cols[1], stop) - start)
            )
        return out

    @property
    def implicit(self) -> bool:
        return all(isinstance(p, Sparse | StoredSparse | SparseHollow) for p in self.parts)

    @property
    def density(self) -> float:
        sizes = [p.shape[1] for p in self.parts]
        return float(np.average([cast(ImplicitSource, p).density for p in self.parts], weights=sizes))

    def together(self, side: int, cuts: np.ndarray, nbytes: int) -> np.ndarray:
        share = nbytes // len(self.parts)
        return cast(ImplicitSource, max(self.parts, key=lambda p: p.shape[1])).together(side, cuts, share)

    def block(self, rows: Range, cols: Range) -> ImplicitBlock:
        parts = [
            cast(SparseBlock, cast(ImplicitSource, part).block(rows, (max(cols[0] - a, 0), min(cols[1], b) - a))).array
            for part, a, b in self._within(*cols)
        ]
        return SparseBlock(hstack(parts, format="csr"))

    def cuts(self, side: int, longest: int) -> np.ndarray:
        if side == ROWS:  # one grid must do for all: that of the part with the most features, which costs the most
            return max(self.parts, key=lambda p: p.shape[1]).cuts(side, longest)
        cuts = [p.cuts(side, longest) + start for p, start in zip(self.parts, self.offsets[:-1], strict=True)]
        return np.unique(np.concatenate(cuts))

    def unit(self, side: int) -> int:
        return max(p.unit(side) for p in self.parts)

    def touched(self, side: int, cuts: np.ndarray) -> int:
        return sum(p.touched(side, own) for p, own in self._cut(side, cuts))

    def beside(self, side: int, cuts: np.ndarray, dtype: np.dtype[Any]) -> int:
        if self.implicit:
            return 0
        parts = self._cut(side, cuts)  # one after the other, each read whole before it is put in its place
        return max(rectangle_nbytes(p, side, own) + p.beside(side, own, p.dtype) for p, own in parts if len(own) > 1)

    def _cut(self, side: int, cuts: np.ndarray) -> list[tuple[Source, np.ndarray]]:
        """The parts with what cuts of the whole are to them."""
        if side == ROWS:
            return [(p, cuts) for p in self.parts]
        return [(p, np.unique(np.clip(cuts, a, b)) - a) for p, a, b in self._bounds()]

    def inputs(self, side: int, start: int, stop: int) -> Any:
        if side == ROWS:
            return [p.inputs(side, start, stop) for p in self.parts]
        return [
            p.inputs(side, max(start - a, 0), min(stop, b) - a) if a < stop and start < b else None
            for p, a, b in self._bounds()
        ]

    def given(self, side: int, start: int, inputs: Any) -> Source:
        origins = [start if side == ROWS else max(start - a, 0) for _, a, _ in self._bounds()]
        return Joined(
            tuple(
                p if i is None else p.given(side, origin, i)
                for p, origin, i in zip(self.parts, origins, inputs, strict=True)
            )
        )

    def hollow(self) -> Source:
        return Joined(tuple(p.hollow() for p in self.parts))

    def _bounds(self) -> list[tuple[Source, int, int]]:
        return list(zip(self.parts, self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True))

    def _within(self, start: int, stop: int) -> list[tuple[Source, int, int]]:
        return [(p, a, b) for p, a, b in self._bounds() if a < stop and start < b]
