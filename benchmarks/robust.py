"""Breakdown curves: how much of the inliers' variance is kept as more rows lie, method by method, liar by liar.

    python -m benchmarks.robust [--dims 50,500] [--rows 4000] [--k 3] [--shares 0,0.1] [--only PCA,filter]

For each number of features: the loss (per cent of the inliers' top-k variance that is not captured), the worst over
the adversaries, and seconds; then the sine of the largest angle at eps = 0.1, adversary by adversary. ROBPCA takes part
where robpy is installed (it wants scikit-learn below 1.7).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import click
import numpy as np

import pipeline as pl

__all__ = ["ADVERSARIES", "Planted", "captured", "sine"]

SHARES = "0,0.02,0.05,0.1,0.2,0.3,0.4"


@dataclass(frozen=True)
class Planted:
    """n rows of a normal law with k strong directions, of which `eps` were replaced by an adversary."""

    n: int
    d: int
    k: int
    eps: float
    adversary: str
    seed: int = 0

    @cached_property
    def lies(self) -> np.ndarray:
        """(n,) bool: the rows that were replaced."""
        chosen = np.zeros(self.n, bool)
        chosen[np.random.default_rng([self.seed, 1]).permutation(self.n)[: round(self.eps * self.n)]] = True
        return chosen

    @property
    def variances(self) -> np.ndarray:
        """(k,) of the strong directions; all others have 1."""
        return np.linspace(25.0, 9.0, self.k)

    @cached_property
    def directions(self) -> np.ndarray:
        """Orthonormal rows: k strong directions, then some for the adversary."""
        rng = np.random.default_rng([self.seed, 2])
        return np.linalg.qr(rng.standard_normal((self.d, min(self.d, 2 * self.k + 12))))[0].T

    @property
    def truth(self) -> np.ndarray:
        """(k, d) the strong directions."""
        return self.directions[: self.k]

    @cached_property
    def X(self) -> np.ndarray:
        """(n, d) entries."""
        rng = np.random.default_rng([self.seed, 3])
        rows = rng.standard_normal((self.n, self.d))
        rows += rng.standard_normal((self.n, self.k)) * np.sqrt(self.variances - 1) @ self.truth
        number = int(self.lies.sum())
        if number:
            rows[self.lies] = ADVERSARIES[self.adversary](self, rows[~self.lies], number, rng)
        return rows


def _signs(number: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice([-1.0, 1.0], number)[:, None]


def _far(data: Planted, honest: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    return 100 * data.directions[data.k] + rng.standard_normal((number, data.d))


def _hidden(data: Planted, honest: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    length = np.median(np.linalg.norm(honest, axis=1))
    return length * _signs(number, rng) * data.directions[data.k] + 0.1 * rng.standard_normal((number, data.d))


def _ten(data: Planted, honest: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    length = np.median(np.linalg.norm(honest, axis=1))
    return length * _signs(number, rng) * data.directions[data.k + rng.integers(0, 10, number)]


def _repeated(data: Planted, honest: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(np.median(np.linalg.norm(honest, axis=1)) * data.directions[data.k : data.k + 1], number, axis=0)


def _leaning(data: Planted, honest: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    towards = 0.6 * data.directions[data.k - 1] + 0.8 * data.directions[data.k]
    length = np.sqrt(4 * data.variances[-1] * len(honest) / number)
    return length * _signs(number, rng) * towards + 0.5 * rng.standard_normal((number, data.d))


def _twin(data: Planted, honest: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    spread = np.sqrt(1.5 * data.variances * len(honest) / number)
    twin = data.directions[data.k : 2 * data.k]
    return rng.standard_normal((number, data.k)) * spread @ twin + rng.standard_normal((number, data.d))


def _adaptive(data: Planted, honest: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """On the direction that is the weakest of those found when the rows lie along the one that was found before."""
    lies, direction = _hidden(data, honest, number, rng), data.directions[data.k]
    for _ in range(2):
        found = pl.RobustPCA(min(data.k + 1, data.d), eps=data.eps).fit(np.vstack([honest, lies])).components_
        direction = found[-1] - data.truth.T @ (data.truth @ found[-1])
        direction /= np.linalg.norm(direction)
        length = np.sqrt(2 * data.variances[-1] * len(honest) / number)
        lies = length * _signs(number, rng) * direction + rng.standard_normal((number, data.d))
    return lies


ADVERSARIES: dict[str, Callable[[Planted, np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "far": _far,
    "hidden": _hidden,
    "ten": _ten,
    "repeated": _repeated,
    "leaning": _leaning,
    "twin": _twin,
    "adaptive": _adaptive,
}
"""Name to what puts rows in the place of others."""


def captured(components: np.ndarray, data: Planted) -> float:
    """The share of the inliers' variance along their k strong directions that is captured."""
    inner = components @ data.truth.T
    total = float((np.square(inner) * (data.variances - 1)).sum()) + len(components)
    return total / float(data.variances.sum())


def sine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the largest principal angle between two row spaces of equal dimension."""
    cosine = np.linalg.svd(np.asarray(a, float) @ np.asarray(b, float).T, compute_uv=False).min()
    return float(np.sqrt(max(0.0, 1 - cosine**2)))


def _incremental(k: int, eps: float, X: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import IncrementalPCA

    return np.asarray(IncrementalPCA(k).fit(X).components_)


def _covariance(k: int, eps: float, X: np.ndarray) -> np.ndarray:
    """A peer from the literature: eigenvectors of scikit-learn's minimum covariance determinant."""
    from sklearn.covariance import MinCovDet

    if X.shape[1] > 100:
        raise ImportError("it inverts matrices of all features, hundreds of times")
    return np.linalg.eigh(MinCovDet(random_state=0).fit(X).covariance_)[1][:, ::-1][:, :k].T


def _projection_pursuit(k: int, eps: float, X: np.ndarray) -> np.ndarray:
    """A peer from the literature: ROBPCA (Hubert, Rousseeuw and Vanden Branden 2005) of the package robpy."""
    from robpy.pca import ROBPCA

    return np.asarray(ROBPCA(n_components=k, alpha=max(0.5, 1 - 1.2 * eps)).fit(X).components_).T


CONTENDERS: dict[str, Callable[[int, float, np.ndarray], np.ndarray]] = {
    "PCA": lambda k, eps, X: pl.PCA(k).fit(X).components_,
    "IncrementalPCA": _incremental,
    "MinCovDet": _covariance,
    "ROBPCA": _projection_pursuit,
    "spherical": lambda k, eps, X: pl.RobustPCA(k, method="spherical", eps=eps).fit(X).components_,
    "filter": lambda k, eps, X: pl.RobustPCA(k, eps=eps).fit(X).components_,
    "filter, deflation": lambda k, eps, X: pl.RobustPCA(k, eps=eps, search="deflation").fit(X).components_,
    "stream": lambda k, eps, X: pl.RobustPCA(k, method="stream", eps=eps).fit(X).components_,
}


def _row(name: str, cells: list[str]) -> None:
    click.echo(f"| {name:18s} | " + " | ".join(f"{cell:>9s}" for cell in cells) + " |")


def _numbers(_: click.Context, __: click.Parameter, value: str) -> list[float]:
    return [float(number) for number in value.split(",")]


@click.command()
@click.option("--dims", default="50,500", show_default=True, callback=_numbers)
@click.option("--rows", default=4000, show_default=True)
@click.option("--k", default=3, show_default=True)
@click.option("--shares", default=SHARES, show_default=True, callback=_numbers)
@click.option("--only", default="", help="Contenders, comma separated; default: all that are installed.")
def main(dims: list[float], rows: int, k: int, shares: list[float], only: str) -> None:
    """Print the tables."""
    chosen = {name: fit for name, fit in CONTENDERS.items() if not only or name in only.split(",")}
    for d in map(int, dims):
        losses: dict[tuple[str, float], list[float]] = {}
        angles: dict[tuple[str, str], float] = {}
        spent = dict.fromkeys(chosen, 0.0)
        for eps, adversary in product(shares, ADVERSARIES):
            data = Planted(rows, d, k, eps, adversary)
            for name, fit in chosen.items():
                started = time.process_time()
                try:
                    found = fit(k, eps or 0.1, data.X)
                except ImportError:
                    continue
                if eps == 0.1:
                    spent[name] += time.process_time() - started
                    angles[name, adversary] = sine(found, data.truth)
                losses.setdefault((name, eps), []).append(100 * (1 - captured(found, data)))
        click.echo(f"\n{rows} x {d}, k = {k}: per cent of the inliers' variance lost, worst adversary")
        _row("eps", [f"{eps:g}" for eps in shares] + ["CPU s at 0.1"])
        _row("allowed", [f"{300 * eps * np.log(1 / eps):.1f}" if eps else "-" for eps in shares] + [""])
        for name in chosen:
            if (name, shares[0]) in losses:
                _row(
                    name,
                    [f"{max(losses[name, eps]):.2f}" for eps in shares] + [f"{spent[name] / len(ADVERSARIES):.2f}"],
                )
        if angles:
            click.echo("\nsine of the largest angle at eps = 0.1")
            _row("", list(ADVERSARIES))
            for name in chosen:
                if (name, "far") in angles:
                    _row(name, [f"{angles[name, adversary]:.3f}" for adversary in ADVERSARIES])


if __name__ == "__main__":
    main()
