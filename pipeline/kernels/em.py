"""Probabilistic PCA with missing entries: the steps of expectation maximisation, on arrays.

The model: row x = mu + W z + noise, z ~ N(0, I_k), noise ~ N(0, s2 I), of which only the entries O are seen
(Tipping and Bishop 1999; Ilin and Raiko 2010). Given the parameters, with M = W_O^T W_O + s2 I,
z has the mean M^-1 W_O^T (x - mu)_O and the covariance s2 M^-1. Given these moments every feature is a regression of
its own on (z, 1): one system of k + 1 equations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Latent", "Sums", "gather", "imputed", "latent", "maximised", "pair_products", "symmetric"]

_SLAB = 4 << 20  # numbers of the (rows, k, k) arrays that are held at a time


@dataclass(frozen=True)
class Latent:
    """Posterior of z: means (m, k), covariances (m, k, k), and the log-likelihood (m,) of what is seen of each row."""

    mean: np.ndarray
    covariance: np.ndarray
    log_likelihood: np.ndarray


@dataclass(frozen=True)
class Sums:
    """What the next parameters follow from; all are additive over rows.

    For each feature, over the rows that it is seen in: moments of (z, 1) as upper triangles (d, q), sums of x (z, 1)
    (d, k + 1) and of x^2 (d,). Over all rows: moments of (z, 1) (k + 1, k + 1), log-likelihood, and rows with gaps.
    """

    moments: np.ndarray
    products: np.ndarray
    squares: np.ndarray
    latent: np.ndarray
    log_likelihood: float
    gaps: int

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.moments + other.moments,
            self.products + other.products,
            self.squares + other.squares,
            self.latent + other.latent,
            self.log_likelihood + other.log_likelihood,
            self.gaps + other.gaps,
        )


def pair_products(a: np.ndarray) -> np.ndarray:
    """Upper triangles (m, k (k + 1) / 2) of the outer products of the rows of a (m, k) with themselves.

    >>> pair_products(np.array([[1.0, 2.0]])).tolist()
    [[1.0, 2.0, 4.0]]
    """
    i, j = np.triu_indices(a.shape[1])
    return a[:, i] * a[:, j]


def symmetric(triangles: np.ndarray, k: int) -> np.ndarray:
    """Symmetric matrices (m, k, k) of their upper triangles (m, k (k + 1) / 2)."""
    i, j = np.triu_indices(k)
    whole = np.empty((len(triangles), k, k))
    whole[:, i, j] = whole[:, j, i] = triangles
    return whole


def slab_rows(k: int) -> int:
    """How many rows are worked on at a time."""
    return max(16, _SLAB // max(k * k, 1))


def latent(x: np.ndarray, seen: np.ndarray, loadings: np.ndarray, pairs: np.ndarray, noise: float) -> Latent:
    """The E-step for some rows.

    Parameters
    ----------
    x : (m, d) array
        About the mean; zero where nothing is seen.
    seen : (m, d) array
        1.0 where an entry is seen, else 0.0.
    loadings : (d, k) array
        W.
    pairs : (d, k (k + 1) / 2) array
        `pair_products` of W.
    noise : float
        s2, positive.
    """
    k = loadings.shape[1]
    inner = symmetric(seen @ pairs, k) + noise * np.eye(k)
    image = x @ loadings
    inverse = np.linalg.inv(inner)
    mean = np.einsum("mij,mj->mi", inverse, image)
    number = seen.sum(axis=1)
    distance = np.maximum(np.einsum("ij,ij->i", x, x) - np.einsum("ij,ij->i", image, mean), 0.0) / noise
    logdet = (number - k) * np.log(noise) + np.linalg.slogdet(inner)[1]
    return Latent(mean, noise * inverse, -0.5 * (number * np.log(2 * np.pi) + logdet + distance))


def gather(
    x: np.ndarray,
    seen: np.ndarray,
    loadings: np.ndarray,
    offset: np.ndarray,
    noise: float,
    weights: np.ndarray | None = None,
) -> Sums:
    """What rows x (m, d), zero where nothing is seen, add to the sums; `offset` (d,) is subtracted for the E-step."""
    (m, d), k = x.shape, loadings.shape[1]
    pairs, step = pair_products(loadings), slab_rows(k)
    q = (k + 1) * (k + 2) // 2
    total = Sums(np.zeros((d, q)), np.zeros((d, k + 1)), np.zeros(d), np.zeros((k + 1, k + 1)), 0.0, 0)
    for start in range(0, m, step):
        part, mask = x[start : start + step], seen[start : start + step]
        z = latent(part - offset * mask, mask, loadings, pairs, noise)
        w = np.ones(len(part)) if weights is None else weights[start : start + step]
        wide = np.column_stack([z.mean, np.ones(len(part))])
        moments = np.einsum("mi,mj->mij", wide, wide)
        moments[:, :k, :k] += z.covariance
        i, j = np.triu_indices(k + 1)
        weighted = w[:, None] * part
        total += Sums(
            mask.T @ (w[:, None] * moments[:, i, j]),
            weighted.T @ wide,
            np.einsum("ij,ij->j", weighted, part),
            np.einsum("m,mij->ij", w, moments),
            float(w @ z.log_likelihood),
            int((mask.sum(axis=1) < d).sum()),
        )
    return total


def imputed(x: np.ndarray, seen: np.ndarray, loadings: np.ndarray, noise: float) -> np.ndarray:
    """Rows x (m, d) about the mean with what the model expects in the place of what is not seen."""
    pairs, step, whole = pair_products(loadings), slab_rows(loadings.shape[1]), x.copy()
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        z = latent(x[part], seen[part], loadings, pairs, noise).mean
        whole[part] += (1.0 - seen[part]) * (z @ loadings.T)
    return whole


def maximised(sums: Sums, center: bool, floor: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The M-step: loadings (d, k), offset (d,) and noise that make the expected likelihood largest.

    The latent z is then made of mean 0 and covariance I again, by what it was found to have (parameter expansion,
    Liu, Rubin and Wu 1998): the likelihood only grows by it, and convergence is that of a power iteration.
    """
    d, k = sums.products.shape[0], sums.products.shape[1] - 1
    used = k + 1 if center else k
    wide = np.zeros((d, k + 1))
    step = slab_rows(k + 1)
    for start in range(0, d, step):
        part = slice(start, start + step)
        systems = symmetric(sums.moments[part], k + 1)[:, :used, :used]
        size = np.einsum("mii->m", systems) / used
        systems = systems + (1e-14 * size + np.finfo(float).tiny)[:, None, None] * np.eye(used)
        wide[part, :used] = np.linalg.solve(systems, sums.products[part, :used, None])[:, :, 0]
    seen = float(sums.moments[:, -1].sum())
    left = float(sums.squares.sum() - np.einsum("ij,ij->", wide, sums.products))
    noise = max(left / seen, floor) if seen else floor
    loadings, offset = wide[:, :k], wide[:, k]
    n = sums.latent[k, k]
    middle = sums.latent[:k, k] / n if center else np.zeros(k)
    spread = sums.latent[:k, :k] / n - np.outer(middle, middle)
    return loadings @ np.linalg.cholesky(spread), offset + loadings @ middle, noise
