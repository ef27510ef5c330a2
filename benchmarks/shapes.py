"""The matrices of the benchmark, in Zarr, and their exact leading subspaces, found by none of the contenders."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.linalg
import scipy.sparse
import zarr
from scipy.sparse.linalg import LinearOperator, eigsh

__all__ = ["SHAPES", "Genotypes", "Shape", "Sparse"]

_RANK = 100
_STRIP = 500  # rows that are drawn at a time, so that the entries do not depend on the chunks
_FEW = 20  # rows that are multiplied with at a time
_SQUARE = 8_000  # a scatter matrix up to this side is factorised whole


@dataclass(frozen=True)
class Shape:
    """A dense float32 matrix: eigenvalues ~ 1 / j^2 for the first hundred, and white noise."""

    name: str
    n: int
    d: int
    chunks: tuple[int, int]
    limit: str | None = None
    """Memory of each of two worker processes; None: threads of one process."""
    noise: float = 0.01
    known: int = 52
    """Eigenvalues that are found apart."""
    kind: ClassVar[str] = "float32"

    def store(self, folder: Path) -> Path:
        """The Zarr array, written if it is not there yet."""
        path = folder / f"{self.name}-{self.n}x{self.d}.zarr"
        if not (path / "done").exists():
            self.write(path, np.random.default_rng(self.n + self.d))
            (path / "done").touch()
        return path

    def write(self, path: Path, rng: np.random.Generator) -> None:
        """Write the entries, a row of chunks at a time."""
        basis = np.linalg.qr(rng.standard_normal((self.d, _RANK)))[0].astype("f4")
        sizes = (1 / np.arange(1, _RANK + 1)).astype("f4")
        z = zarr.create_array(path, shape=(self.n, self.d), chunks=self.chunks, dtype="f4", overwrite=True)

        def strip(start: int, stop: int) -> np.ndarray:
            m = min(_STRIP, stop - start)
            rows = (rng.standard_normal((m, _RANK), dtype="f4") * sizes) @ basis.T
            return rows + self.noise * rng.standard_normal((m, self.d), dtype="f4") + 1

        for start in range(0, self.n, self.chunks[0]):
            stop = min(start + self.chunks[0], self.n)
            z[start:stop] = np.concatenate([strip(a, stop) for a in range(start, stop, _STRIP)])

    def blocks(self, folder: Path) -> Iterator[Any]:
        """The rows as what is analysed, in order, before centring."""
        z = zarr.open_array(self.store(folder), mode="r")
        for start in range(0, self.n, self.chunks[0]):
            yield np.asarray(z[start : start + self.chunks[0]])

    def standard(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Means (d,) and what features are divided by (d,)."""
        return sum(b.sum(axis=0, dtype=np.float64) for b in self.blocks(folder)) / self.n, np.ones(self.d)

    def exact(self, folder: Path, k: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Leading k + 1 eigenvalues of the scatter, k eigenvectors (k, d), and the trace, in float64."""
        saved = folder / f"{self.kind.replace(' ', '-')}-{self.n}x{self.d}.exact.npz"  # the same for all chunks
        if not saved.exists():
            mean, scale = self.standard(folder)
            find = self._whole if min(self.n, self.d) <= _SQUARE else self._iterated
            values, vectors, trace = find(list(self.blocks(folder)), mean, scale)
            np.savez(saved, values=values, vectors=vectors, trace=trace)
        with np.load(saved) as known:
            return known["values"][: k + 1], known["vectors"][:k], float(known["trace"])

    def _whole(self, blocks: list[Any], mean: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        rows = [(_dense(b).astype(np.float64) - mean) / scale for b in blocks] if self.n < self.d else None
        if rows is not None:
            z = np.concatenate(rows)
            values, left = scipy.linalg.eigh(z @ z.T, subset_by_index=(self.n - self.known, self.n - 1))
            return values[::-1], (z.T @ (left / np.sqrt(values))).T[::-1], float(np.vdot(z, z))
        scatter = np.zeros((self.d, self.d))
        for b in blocks:
            z = (_dense(b).astype(np.float64) - mean) / scale
            scatter += z.T @ z
        values, vectors = scipy.linalg.eigh(scatter, subset_by_index=(self.d - self.known, self.d - 1))
        return values[::-1], vectors[:, ::-1].T, float(np.trace(scatter))

    def _iterated(self, blocks: list[Any], mean: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """ARPACK to machine precision."""

        def product(v: np.ndarray) -> np.ndarray:
            thin = v.reshape(self.d, -1) / scale[:, None]
            shift = mean @ thin

            def part(strip: Any) -> tuple[np.ndarray, np.ndarray]:
                z = strip.astype(np.float64, copy=False)
                y = z @ thin - shift
                return z.T @ y, y.sum(axis=0)

            total, sums = np.zeros_like(thin), np.zeros(thin.shape[1])
            for products, column_sums in pool.map(part, strips):
                total += products
                sums += column_sums
            return ((total - np.outer(mean, sums)) / scale[:, None]).reshape(v.shape)

        strips = [strip for b in blocks for strip in _strips(b)]
        operator = LinearOperator((self.d, self.d), matvec=product, matmat=product, dtype=np.float64)
        with ThreadPoolExecutor() as pool:
            values, vectors = eigsh(operator, k=self.known, ncv=3 * self.known, tol=1e-9)
        trace = sum(float(np.sum(_squares(b) / scale**2)) for b in blocks) - self.n * float(np.sum((mean / scale) ** 2))
        return values[::-1], vectors[:, ::-1].T, trace


@dataclass(frozen=True)
class Genotypes(Shape):
    """Allele counts 0, 1, 2 of samples from a few populations (Balding and Nichols 1995), as int8."""

    kind: ClassVar[str] = "int8 genotypes"

    def write(self, path: Path, rng: np.random.Generator) -> None:
        """Write the entries, a row of chunks at a time."""
        old, drift, groups = rng.uniform(0.05, 0.95, self.d), 0.05, 12
        spread = (1 - drift) / drift
        frequency = rng.beta(old * spread, (1 - old) * spread, (groups, self.d)).astype("f4")
        z = zarr.create_array(path, shape=(self.n, self.d), chunks=self.chunks, dtype="i1", overwrite=True)
        for start in range(0, self.n, self.chunks[0]):
            m = min(self.chunks[0], self.n - start)
            p = frequency[rng.integers(0, groups, m)]
            z[start : start + m] = sum((rng.random(p.shape, dtype="f4") < p).astype("i1") for _ in range(2))

    def standard(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Means, and sqrt(2 p (1 - p)) of the allele frequencies."""
        mean, _ = super().standard(folder)
        variance = mean * (1 - mean / 2)
        return mean, np.sqrt(np.where(variance > 0, variance, 1.0))

    @staticmethod
    def sizes(path: Path) -> tuple[int, int]:
        """Samples and variants of a store."""
        return zarr.open_array(path, mode="r").shape

    @classmethod
    def bed(cls, path: Path) -> Path:
        """The same as files of PLINK 1 beside the store, written if they are not there yet: their path without ending.

        A variant is a run of two bits a sample: 0 for two counted alleles, 2 for one, 3 for none.
        """
        prefix, (n, d) = path.with_suffix(""), cls.sizes(path)
        if prefix.with_suffix(".fam").exists():
            return prefix
        z, coded = zarr.open_array(path, mode="r"), np.array([3, 2, 0], np.uint8)
        with prefix.with_suffix(".bed").open("wb") as bed:
            bed.write(bytes([0x6C, 0x1B, 0x01]))
            for start in range(0, d, z.chunks[1]):
                codes = np.zeros((min(z.chunks[1], d - start), -(-n // 4) * 4), np.uint8)
                codes[:, :n] = coded[z[:, start : start + len(codes)]].T
                bed.write(sum(codes[:, i::4] << 2 * i for i in range(4)).tobytes())
        prefix.with_suffix(".bim").write_text("".join(f"1\tv{j}\t0\t{j + 1}\tA\tC\n" for j in range(d)))
        prefix.with_suffix(".fam").write_text("".join(f"s{i}\ts{i}\t0\t0\t0\t-9\n" for i in range(n)))
        return prefix


@dataclass(frozen=True)
class Sparse(Shape):
    """Counts of a few kinds of cells, in anndata's Zarr layout; `noise` is the share of entries that are stored."""

    kind: ClassVar[str] = "sparse counts"

    def write(self, path: Path, rng: np.random.Generator) -> None:
        """Write the CSR arrays."""
        taste = rng.dirichlet(np.full(self.d, 0.05), 60) * 0.7 + 0.3 * rng.dirichlet(np.full(self.d, 0.2))
        reach = np.cumsum(taste, axis=1)
        width = max(1, round(self.noise * self.d))
        kinds = rng.choice(60, self.n, p=rng.dirichlet(np.full(60, 0.6)))
        columns = np.concatenate(
            [np.searchsorted(reach[g], rng.random((int((kinds == g).sum()), width)).reshape(-1)) for g in range(60)]
        ).clip(0, self.d - 1)
        rows = np.repeat(np.argsort(kinds, kind="stable"), width)
        counts = scipy.sparse.csr_array((np.ones(rows.size, "f4"), (rows, columns)), shape=(self.n, self.d))
        counts.data = np.log1p(counts.data)
        group = zarr.create_group(path, overwrite=True)
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [self.n, self.d]})
        for name in ("data", "indices", "indptr"):
            values = getattr(counts, name)
            group.create_array(name, data=values, chunks=(min(1_000_000, values.size),))

    def blocks(self, folder: Path) -> Iterator[Any]:
        """The whole matrix in one piece."""
        yield self.matrix(self.store(folder))

    @staticmethod
    def matrix(path: Path) -> scipy.sparse.csr_array:
        """The matrix in memory."""
        g = zarr.open_group(path, mode="r")
        return scipy.sparse.csr_array((g["data"][:], g["indices"][:], g["indptr"][:]), shape=tuple(g.attrs["shape"]))


def _dense(block: Any) -> np.ndarray:
    return block.toarray() if scipy.sparse.issparse(block) else block


def _strips(block: Any) -> list[Any]:
    """Few rows at a time, which stay in the caches while they are multiplied with twice."""
    if scipy.sparse.issparse(block):
        return [block]
    return [block[start : start + _FEW] for start in range(0, len(block), _FEW)]


def _squares(block: Any) -> np.ndarray:
    if scipy.sparse.issparse(block):
        return np.asarray(block.multiply(block).sum(axis=0)).reshape(-1)
    return np.einsum("ij,ij->j", block, block, dtype=np.float64)


SHAPES: dict[str, list[Shape]] = {
    "smoke": [
        Shape("tall", 200_000, 200, (20_000, 200)),
        Shape("large", 6_000, 4_000, (500, 4_000)),
        Sparse("sparse", 10_000, 4_000, (10_000, 4_000), noise=0.01),
    ],
    "small": [
        Shape("tall", 500_000, 200, (20_000, 200)),
        Shape("middle", 50_000, 500, (5_000, 500)),
        Shape("large", 12_000, 8_000, (500, 8_000)),
        Shape("square", 12_000, 8_000, (1_000, 1_000)),
        Genotypes("genotypes", 2_000, 20_000, (500, 20_000)),
        Shape("long", 200_000, 2_000, (1_000, 2_000), limit="1GB"),
        Sparse("sparse", 40_000, 10_000, (40_000, 10_000), noise=0.003),
    ],
    "full": [
        Shape("tall", 2_000_000, 200, (20_000, 200)),
        Shape("middle", 200_000, 500, (5_000, 500)),
        Shape("large", 60_000, 20_000, (500, 20_000)),
        Shape("square", 60_000, 20_000, (2_000, 2_000)),
        # Of the groups; those of the noise after them are so close that to find them apart would take hours.
        Genotypes("genotypes", 20_000, 200_000, (500, 20_000), known=11),
        Shape("long", 1_000_000, 4_000, (1_000, 4_000), limit="2GB"),
        Sparse("sparse", 200_000, 50_000, (200_000, 50_000), noise=0.001),
    ],
}
