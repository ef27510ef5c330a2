"""A walk in stretches: after each what was summed up so far can be kept, and a killed walk goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.crew import crew
from pipeline.fold import Fold, Tally, joined
from pipeline.matrix import Matrix
from pipeline.progress import Progress, listener, listening
from pipeline.walk import bytes_walked, walk

__all__ = ["EVERY", "Half", "walk_in_stretches"]

EVERY = 120.0
"""Seconds after which a walk is kept at the next occasion, however large its summary is."""
_STRETCHES = 16


@dataclass(frozen=True)
class Half:
    """A walk that is not over: the position up to which it came, and the summary of all before."""

    position: int
    summary: Any
    tally: Tally


def walk_in_stretches(
    matrix: Matrix,
    fold: Fold[Any],
    *,
    half: Half | None,
    keep: Callable[[Half, int, float], bool],
    summary_bytes: int = 0,
    pass_number: int = 1,
    passes: int | None = None,
) -> tuple[Any, Tally]:
    """As `walk`, but in about sixteen stretches, after each of which `keep` may write down what there is.

    The stretches depend on the matrix and the number of threads only, never on the clock, so that a walk that goes on
    sums up in the same order as one that was never disturbed.

    Parameters
    ----------
    matrix, fold, summary_bytes, pass_number, passes
        As in `walk`.
    half : Half, optional
        Where to go on.
    keep : function
        Of the walk so far, the bytes read and the seconds gone since it last said yes (or since the start).
    """
    cuts = matrix.cuts
    bounds = _bounds(cuts)
    if half is not None:
        cuts = np.append(half.position, cuts[cuts > half.position])
        bounds = np.append(half.position, bounds[bounds > half.position])
    read, since = 0, time.monotonic()
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        part = matrix.stretch(cuts[(cuts >= start) & (cuts <= stop)])
        with _told_of_the_whole(matrix, start, stop):
            summary, tally = walk(part, fold, summary_bytes=summary_bytes, pass_number=pass_number, passes=passes)
        if half is not None:
            summary, tally = joined(fold, half.summary, summary), half.tally + tally
        half, read = Half(stop, summary, tally), read + bytes_walked(part, fold)
        if stop < bounds[-1] and keep(half, read, time.monotonic() - since):
            read, since = 0, time.monotonic()
    assert half is not None
    return half.summary, replace(half.tally, nbytes=bytes_walked(matrix, fold))


def _bounds(cuts: np.ndarray) -> np.ndarray:
    """Every so many cuts: enough that all threads have something to do, few enough that they seldom wait."""
    step = max(crew().threads, -(-(len(cuts) - 1) // _STRETCHES))
    return np.append(cuts[:-1:step], cuts[-1])


@contextmanager
def _told_of_the_whole(matrix: Matrix, start: int, stop: int) -> Iterator[None]:
    """Who listens hears how far the whole walk is, not the stretch."""
    hear = listener()
    if hear is None:
        yield
        return
    length, blocks, total = max(int(matrix.cuts[-1]), 1), matrix.n_blocks, matrix.bytes_a_pass

    def heard(p: Progress) -> None:
        share = (start + p.share * (stop - start)) / length
        hear(replace(p, blocks=round(share * blocks), n_blocks=blocks, nbytes=int(share * total), total_nbytes=total))

    with listening(heard):
        yield
