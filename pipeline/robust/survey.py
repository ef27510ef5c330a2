"""The pass before some methods: a random sample of rows, for medians and spreads, and means of groups of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import NonfiniteError
from pipeline.folds.rowmaps import Drawn
from pipeline.kernels.robust import center_and_spread
from pipeline.matrix import Matrix
from pipeline.robust.method import Options, Start
from pipeline.sources import ROWS

__all__ = ["Survey", "Surveyed", "sample_size", "start_from"]

_ROWS, _BYTES, _GROUPS = 8192, 256 << 20, 32


def sample_size(X: Matrix) -> int:
    """How many rows a survey keeps: enough for medians within 2 % of a standard deviation, as far as memory goes."""
    return max(64, min(_ROWS, _BYTES // (8 * max(X.shape[1], 1))))


@dataclass(frozen=True, eq=False)
class Surveyed:
    """Rows of the sample with their positions; sums (g, d) and numbers of observed entries (g, d) of groups of rows."""

    parts: tuple[tuple[int, np.ndarray], ...]
    sums: np.ndarray
    counts: np.ndarray

    @property
    def sample(self) -> np.ndarray:
        """(m, d) in the order of the rows."""
        return np.concatenate([rows for _, rows in sorted(self.parts, key=lambda p: p[0])])


@dataclass(frozen=True, eq=False)
class Survey:
    """Fold to a sample of the rows and the sums of random groups of them."""

    dtype: np.dtype[Any]
    drawn: Drawn
    grouped: bool = False
    side: int = ROWS

    def block(
        self, x: np.ndarray, at: tuple[int, int], held: Surveyed | None, scratch: dict[str, np.ndarray]
    ) -> Surveyed:
        rows = np.arange(*at)
        sample, _ = self.drawn(x, rows)
        sums, counts = np.zeros((0, x.shape[1])), np.zeros((0, x.shape[1]))
        if self.grouped:
            member = Drawn(0.0, self.drawn.seed + 1).numbers(rows) * _GROUPS
            sums, counts = np.zeros((_GROUPS, x.shape[1])), np.zeros((_GROUPS, x.shape[1]))
            seen = np.isfinite(x)
            np.add.at(counts, member.astype(int), seen)
            np.add.at(sums, member.astype(int), np.where(seen, x, 0).astype(np.float64))
        found = Surveyed(((at[0], np.array(sample)),), sums, counts)
        return found if held is None else self.combine(held, found)

    def combine(self, a: Surveyed, b: Surveyed) -> Surveyed:
        return Surveyed(a.parts + b.parts, a.sums + b.sums, a.counts + b.counts)


def start_from(found: Surveyed, X: Matrix, options: Options, missing: str) -> Start:
    """Centers, spreads and what fills gaps, from a survey.

    Raises NonfiniteError where an entry of the sample is no number and `missing` does not allow for it.
    """
    sample = found.sample.astype(np.float64)
    absent = np.asarray(np.isnan(sample).all(axis=0))
    whole = len(sample) >= X.shape[0]
    some = sample[:, ~absent]
    if np.isinf(some).any() or (missing == "error" and not np.isfinite(some).all()):
        raise NonfiniteError("NaN or Inf among the entries")
    fill = np.full(X.shape[1], np.nan)
    fill[~absent] = np.nanmedian(some, axis=0)
    if np.isnan(some).any():
        lost = 2 * np.isnan(some).sum(axis=1) > some.shape[1]
        some = np.where(np.isnan(some), fill[~absent], some)[~lost]
        sample = np.full((len(some), X.shape[1]), np.nan)
        sample[:, ~absent] = some
    center = fill
    if options.center == "median_of_means":
        with np.errstate(invalid="ignore"):
            means = np.where(found.counts > 0, found.sums / np.maximum(found.counts, 1), np.nan)
        center = np.where(absent, np.nan, np.nanmedian(np.where(absent, 0.0, means), axis=0))
    return Start(
        center if options.center else np.where(absent, np.nan, 0.0),
        fill if missing != "error" else None,
        None if options.scale is None else _spread(options.scale, sample, absent),
        sample,
        whole,
    )


def _spread(rule: str, sample: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """(d,) what features are divided by; 1 for constant ones, the deviation where more than half is one number."""
    rows = np.where(absent, 0.0, sample)
    deviation = rows.std(axis=0)
    spread = center_and_spread(rows)[1] if rule == "mad" else deviation
    spread = np.where(spread > 1e-12 * deviation, spread, deviation)
    return np.where(absent, np.nan, np.where(spread > 0, spread, 1.0))
