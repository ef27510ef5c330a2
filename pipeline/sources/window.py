"""`Window`: a range of the rows of another source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from pipeline.kernels.implicit import ImplicitBlock
from pipeline.sources.source import ROWS, ImplicitSource, Range, Source

__all__ = ["Window"]


@dataclass(frozen=True)
class Window:
    """Rows [start, stop) of `base`."""

    base: Source
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, self.base.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.base.dtype

    @property
    def held(self) -> bool:
        return self.base.held

    @property
    def collections(self) -> tuple[Any, ...]:
        return self.base.collections

    @property
    def layout(self) -> str:
        return f"rows {self.start} to {self.stop} of {self.base.layout}"

    def read(self, rows: Range, cols: Range, out: np.ndarray | None = None) -> np.ndarray:
        return self.base.read((rows[0] + self.start, rows[1] + self.start), cols, out)

    @property
    def implicit(self) -> bool:
        return self.base.implicit

    @property
    def density(self) -> float:
        return cast(ImplicitSource, self.base).density

    def together(self, side: int, cuts: np.ndarray, nbytes: int) -> np.ndarray:
        shift = self.start if side == ROWS else 0
        return cast(ImplicitSource, self.base).together(side, cuts + shift, nbytes) - shift

    def block(self, rows: Range, cols: Range) -> ImplicitBlock:
        return cast(ImplicitSource, self.base).block((rows[0] + self.start, rows[1] + self.start), cols)

    def cuts(self, side: int, longest: int) -> np.ndarray:
        cuts = self.base.cuts(side, longest)
        return np.unique(np.clip(cuts, self.start, self.stop)) - self.start if side == ROWS else cuts

    def unit(self, side: int) -> int:
        return self.base.unit(side)

    def touched(self, side: int, cuts: np.ndarray) -> int:
        return self.base.touched(side, cuts + self.start if side == ROWS else cuts)

    def beside(self, side: int, cuts: np.ndarray, dtype: np.dtype[Any]) -> int:
        return self.base.beside(side, cuts + self.start if side == ROWS else cuts, dtype)

    def inputs(self, side: int, start: int, stop: int) -> Any:
        shift = self.start if side == ROWS else 0
        return self.base.inputs(side, start + shift, stop + shift)

    def given(self, side: int, start: int, inputs: Any) -> Source:
        shift = self.start if side == ROWS else 0
        return Window(self.base.given(side, start + shift, inputs), self.start, self.stop)

    def hollow(self) -> Source:
        return replace(self, base=self.base.hollow())
