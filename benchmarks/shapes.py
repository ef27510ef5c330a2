"""The matrices of the benchmark: low rank with a power law and noise, in Zarr, and their exact leading subspaces."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg
import zarr

__all__ = ["SHAPES", "Shape"]

_RANK = 100


@dataclass(frozen=True)
class Shape:
    """One matrix: eigenvalues ~ 1 / j^2 for the first hundred, and white noise."""

    name: str
    n: int
    d: int
    chunks: tuple[int, int]
    noise: float = 0.01

    def store(self, folder: Path) -> Path:
        """The Zarr array, written if it is not there yet."""
        path = folder / f"{self.name}.zarr"
        if (path / "done").exists():
            return path
        rng = np.random.default_rng(self.n + self.d)
        basis = np.linalg.qr(rng.standard_normal((self.d, _RANK)))[0].astype("f4")
        sizes = (1 / np.arange(1, _RANK + 1)).astype("f4")
        z = zarr.create_array(path, shape=(self.n, self.d), chunks=self.chunks, dtype="f4", overwrite=True)
        for start in range(0, self.n, self.chunks[0]):
            m = min(self.chunks[0], self.n - start)
            rows = (rng.standard_normal((m, _RANK), dtype="f4") * sizes) @ basis.T
            z[start : start + m] = rows + self.noise * rng.standard_normal((m, self.d), dtype="f4") + 1
        (path / "done").touch()
        return path

    def exact(self, folder: Path, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Leading k + 1 eigenvalues of the scatter and k eigenvectors (k, d), in float64 and by nobody's solver."""
        saved = folder / f"{self.name}.exact.npz"
        if not saved.exists():
            z = zarr.open_array(self.store(folder), mode="r")
            mean = np.zeros(self.d)
            scatter = np.zeros((self.d, self.d))
            for start in range(0, self.n, self.chunks[0]):
                block = np.asarray(z[start : start + self.chunks[0]], np.float64) - 1  # the noise is about 1
                mean += block.sum(axis=0)
                scatter += block.T @ block
            scatter -= np.outer(mean, mean / self.n)
            values, vectors = scipy.linalg.eigh(scatter, subset_by_index=(self.d - 101, self.d - 1))
            np.savez(saved, values=values[::-1], vectors=vectors[:, ::-1].T)
        with np.load(saved) as both:
            return both["values"][: k + 1], both["vectors"][:k]

    def nbytes(self, folder: Path) -> int:
        """Decoded size."""
        return 4 * self.n * self.d


SHAPES = {
    "smoke": [Shape("tall", 200_000, 200, (20_000, 200)), Shape("large", 6_000, 4_000, (500, 4_000))],
    "small": [
        Shape("tall", 500_000, 200, (20_000, 200)),
        Shape("middle", 50_000, 500, (5_000, 500)),
        Shape("large", 12_000, 8_000, (500, 8_000)),
        Shape("square", 12_000, 8_000, (1_000, 1_000)),
    ],
    "full": [
        Shape("tall", 2_000_000, 200, (20_000, 200)),
        Shape("middle", 200_000, 500, (5_000, 500)),
        Shape("large", 60_000, 20_000, (500, 20_000)),
        Shape("square", 60_000, 20_000, (2_000, 2_000)),
        Shape("long", 1_000_000, 4_000, (1_000, 4_000)),
    ],
}


def describe(shapes: list[Shape]) -> str:
    """The shapes as JSON, for the record of a run."""
    return json.dumps([shape.__dict__ for shape in shapes])
