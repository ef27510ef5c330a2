"""What an iteration knows of C: orthonormal blocks with their images, and probes of what these leave of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.kernels.certificate import norm_from_probes
from pipeline.kernels.linalg import deflated, tall_qr

__all__ = ["Basis", "Probes"]

_NARROW = 32  # columns up to which blocks of a basis are joined


@dataclass(frozen=True)
class Basis:
    """Directions whose images are known, block by block, and the orthonormal block (m, l) that is multiplied next.

    The blocks (m, q_i) of both stay apart: one array of all would be copied in every pass.
    """

    known: tuple[np.ndarray, ...]
    images: tuple[np.ndarray, ...]
    block: np.ndarray

    @classmethod
    def begun(cls, block: np.ndarray) -> Basis:
        """With nothing known yet."""
        return cls((), (), block)

    def grown(self, image: np.ndarray) -> Basis:
        """The same with what its block was multiplied to (m, l), which is also the next block."""
        return Basis(_joined(self.known, self.block), _joined(self.images, image), image)


@dataclass(frozen=True)
class Probes:
    """Columns (m, r), random at first, whose growth bounds what a basis leaves of C.

    They are multiplied beside the block and projected out of the basis after each of so many `powers`; what they have
    grown by is `size` (r, r) times exp(log), since powers of any norm leave the range of numbers sooner or later.
    """

    columns: np.ndarray
    size: np.ndarray
    log: float = 0.0
    powers: int = 0

    @classmethod
    def none(cls, m: int) -> Probes:
        """Of length m, and no columns."""
        return cls(np.zeros((m, 0)), np.zeros((0, 0)))

    @classmethod
    def drawn(cls, m: int, number: int, seed: Sequence[int], beside: Sequence[np.ndarray] = ()) -> Probes:
        """Gaussian ones, without their part in the span of orthonormal blocks that every later basis has in it."""
        return cls(*tall_qr(deflated(beside, np.random.default_rng(seed).standard_normal((m, min(number, m))))))

    def __len__(self) -> int:
        return self.columns.shape[1]

    def sharpened(self, known: Sequence[np.ndarray], image: np.ndarray) -> Probes:
        """After a product more with C, (m, r), of which the basis takes its part."""
        columns, size = tall_qr(deflated(known, image))
        size = size @ self.size
        norm = max(float(np.linalg.norm(size)), np.finfo(float).tiny)
        return Probes(columns, size / norm, self.log + np.log(norm), self.powers + 1)

    def bound(self) -> float:
        """On the norm of what the basis leaves of C; infinite before they were multiplied."""
        return norm_from_probes(self.log, len(self), self.powers) if self.powers else np.inf


def _joined(blocks: tuple[np.ndarray, ...], block: np.ndarray) -> tuple[np.ndarray, ...]:
    """One block more; narrow ones become one, since BLAS is slow with few columns."""
    if blocks and blocks[-1].shape[1] + block.shape[1] <= _NARROW:
        return *blocks[:-1], np.hstack([blocks[-1], block])
    return *blocks, block
