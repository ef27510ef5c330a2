"""Scores of the samples from blocks that are ready for something else: what kept blocks still serve for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.folds.columns import STANDARDISED, Columns, Standard
from pipeline.folds.rows import SHIFTED, Rows, shifted
from pipeline.kernels.blocks import doubled
from pipeline.sources import COLUMNS, ROWS

__all__ = ["ColumnScores", "RowScores"]


@dataclass(frozen=True, eq=False)
class RowScores:
    """Fold to the scores of each block: where it starts and (rows - offset) lens, with lens (d, k) and offset (d,)."""

    dtype: np.dtype[Any]
    lens: np.ndarray
    offset: np.ndarray
    side: int = ROWS
    readiness: ClassVar[str] = SHIFTED

    def prepare(self, x: np.ndarray, at: tuple[int, int], first: Rows | None) -> Rows:
        return shifted(x, None, first)

    def block(self, x: Rows, at: tuple[int, int], held: list[Any] | None, scratch: dict[str, Any]) -> list[Any]:
        if not scratch:
            scratch["lens"] = np.ascontiguousarray(self.lens, self.dtype)
            scratch["rest"] = ((self.offset - x.pilot) @ self.lens).astype(self.dtype)
        return [*(held or []), (at[0], x.x @ scratch["lens"] - scratch["rest"])]

    def combine(self, a: list[Any], b: list[Any]) -> list[Any]:
        return a + b


@dataclass(frozen=True, eq=False)
class ColumnScores:
    """Fold to Z V (n, k) of standardised columns, for right vectors V (d, k)."""

    dtype: np.dtype[Any]
    standard: Standard
    right: np.ndarray
    side: int = COLUMNS
    readiness: ClassVar[str] = STANDARDISED

    def prepare(self, x: np.ndarray, at: tuple[int, int], first: Columns | None) -> Columns:
        return self.standard.apply(x, at)

    def block(self, x: Columns, at: tuple[int, int], held: np.ndarray | None, scratch: dict[str, Any]) -> np.ndarray:
        part = (x.x @ self.right[at[0] : at[1]].astype(self.dtype)).astype(doubled(self.dtype))
        return part if held is None else np.add(held, part, out=held)

    def combine(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b
