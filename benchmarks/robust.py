"""Breakdown curves: how much of the inliers' variance is kept as more rows lie, method by method, liar by liar.

    python -m benchmarks.robust [--dims 50,500] [--rows 4000] [--k 3] [--shares 0.1,0] [--only PCA+filter] [--minutes 4]

For each number of features: the loss (per cent of the inliers' top-k variance that is not captured), the worst over
the adversaries, and seconds; then the sine of the largest angle, adversary by adversary. What `--minutes` leave no time
for is left out. ROBPCA takes part where robpy is installed (it wants scikit-learn below 1.7).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

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
    dtype: str = "float64"

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
        return rows.astype(self.dtype, copy=False)


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


Fit = Callable[[Planted, float], np.ndarray]
"""From data, and the share of rows that may lie, to components (k, d)."""


def _honest(data: Planted, eps: float) -> np.ndarray:
    """What cannot be done better: PCA of the rows that do not lie."""
    return pl.PCA(data.k).fit(data.X[~data.lies]).components_


def _incremental(data: Planted, eps: float) -> np.ndarray:
    from sklearn.decomposition import IncrementalPCA

    rows = None if data.d <= 1000 else 500  # at a time; its 5 d would be all of them
    return np.asarray(IncrementalPCA(data.k, batch_size=rows).fit(data.X).components_)


def _covariance(data: Planted, eps: float) -> np.ndarray:
    """A peer from the literature: eigenvectors of scikit-learn's minimum covariance determinant."""
    from sklearn.covariance import MinCovDet

    if data.d > 100:
        raise ImportError("it inverts matrices of all features, hundreds of times")
    return np.linalg.eigh(MinCovDet(random_state=0).fit(data.X).covariance_)[1][:, ::-1][:, : data.k].T


def _projection_pursuit(data: Planted, eps: float) -> np.ndarray:
    """A peer from the literature: ROBPCA (Hubert, Rousseeuw and Vanden Branden 2005) of the package robpy."""
    from robpy.pca import ROBPCA

    return np.asarray(ROBPCA(n_components=data.k, alpha=max(0.5, 1 - 1.2 * eps)).fit(data.X).components_).T


def _robust(**how: str) -> Fit:
    return lambda data, eps: pl.RobustPCA(data.k, eps=eps, **how).fit(data.X).components_


CONTENDERS: dict[str, Fit] = {
    "honest rows": _honest,
    "PCA": lambda data, eps: pl.PCA(data.k).fit(data.X).components_,
    "IncrementalPCA": _incremental,
    "MinCovDet": _covariance,
    "ROBPCA": _projection_pursuit,
    "spherical": _robust(method="spherical"),
    "filter": _robust(method="filter"),
    "filter, deflation": _robust(method="filter", search="deflation"),
    "stream": _robust(method="stream"),
}


@dataclass
class Race:
    """What contenders did so far on data of one size, and until when another fit may begin."""

    until: float
    losses: dict[tuple[str, float, str], float] = field(default_factory=dict)
    sines: dict[tuple[str, float, str], float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    longest: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, fit: Fit, data: Planted) -> None:
        """One fit, unless it would not be over in time, as the longest before tells."""
        wall, cpu = time.monotonic(), time.process_time()
        if wall + self.longest.get(name, 0.0) > self.until:
            return
        try:
            found = fit(data, data.eps or 0.1)
        except ImportError:
            return
        case = name, data.eps, data.adversary
        self.seconds.setdefault(name, []).append(time.process_time() - cpu)
        self.longest[name] = max(self.longest.get(name, 0.0), time.monotonic() - wall)
        self.losses[case] = 100 * (1 - captured(found, data))
        self.sines[case] = sine(found, data.truth)

    def cell(self, name: str, eps: float) -> str:
        """The worst loss, and of how many adversaries where not all had their turn."""
        known = [loss for (who, share, _), loss in self.losses.items() if (who, share) == (name, eps)]
        if not known:
            return "-"
        return f"{max(known):.2f}" + (f" ({len(known)})" if len(known) < len(adversaries(eps)) else "")


def adversaries(eps: float) -> list[str]:
    """All, or one where nobody lies."""
    return list(ADVERSARIES) if eps else ["far"]


def _row(name: str, cells: list[str]) -> None:
    click.echo(f"| {name:18s} | " + " | ".join(f"{cell:>9s}" for cell in cells) + " |")


def _numbers(_: click.Context, __: click.Parameter, value: str) -> list[float]:
    return [float(number) for number in value.split(",")]


@click.command()
@click.option("--dims", default="50,500", show_default=True, callback=_numbers)
@click.option("--rows", default=4000, show_default=True)
@click.option("--k", default=3, show_default=True)
@click.option("--shares", default=SHARES, show_default=True, callback=_numbers, help="In the order in which they run.")
@click.option("--only", default="", help="Contenders, joined by +; default: all that are installed.")
@click.option("--liars", default=",".join(ADVERSARIES), show_default=True, help="Adversaries, comma separated.")
@click.option("--dtype", default="float64", show_default=True)
@click.option("--minutes", default=4.0, show_default=True, help="For each of the dims, after which no fit begins.")
def main(
    dims: list[float], rows: int, k: int, shares: list[float], only: str, liars: str, dtype: str, minutes: float
) -> None:
    """Print the tables: each result as it comes, then losses and sines."""
    chosen = {name: fit for name, fit in CONTENDERS.items() if not only or name in only.split("+")}
    for d in map(int, dims):
        race = Race(time.monotonic() + 60 * minutes)
        for eps, adversary in [(share, liar) for share in shares for liar in adversaries(share) if liar in liars]:
            if time.monotonic() > race.until:
                break
            data = Planted(rows, d, k, eps, adversary, dtype=dtype)
            assert data.X.shape == (rows, d)  # made before the first contender's time begins
            for name, fit in chosen.items():
                race.run(name, fit, data)
            told = [f"{name} {race.sines[name, eps, adversary]:.3f}" for name in chosen if (name, eps, adversary) in
                    race.sines]  # fmt: skip
            click.echo(f"  {rows} x {d}, k = {k}, eps = {eps:g}, {adversary}: sines {', '.join(told)}")
        _tables(race, list(chosen), shares, f"{rows} x {d}, k = {k}")


def _tables(race: Race, names: list[str], shares: list[float], what: str) -> None:
    click.echo(f"\n{what}: per cent of the inliers' variance lost, the worst adversary (of how many, if not all)")
    _row("eps", [f"{eps:g}" for eps in shares] + ["CPU s"])
    _row("allowed", [f"{300 * eps * np.log(1 / eps):.1f}" if eps else "-" for eps in shares] + [""])
    for name in names:
        if name in race.seconds:
            _row(name, [race.cell(name, eps) for eps in shares] + [f"{np.median(race.seconds[name]):.2f}"])
    for eps in shares:
        if any(share == eps for _, share, _ in race.sines):
            click.echo(f"\n{what}: sine of the largest angle at eps = {eps:g}")
            _row("", adversaries(eps))
            for name in names:
                cells = [race.sines.get((name, eps, adversary)) for adversary in adversaries(eps)]
                if any(cell is not None for cell in cells):
                    _row(name, ["-" if cell is None else f"{cell:.3f}" for cell in cells])


if __name__ == "__main__":
    main()
