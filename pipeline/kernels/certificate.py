"""How far a computed subspace can be from the true one: bounds from residuals, gaps and what lies outside.

For a symmetric positive semidefinite C and an orthonormal basis Q with Ritz pairs (theta_i, v_i), let
F = (I - Q Q^T) C V, so that C v_i = theta_i v_i + f_i, and let `outside` bound the largest eigenvalue of
E = (I - Q Q^T) C (I - Q Q^T). Everything else about C that the bounds need follows.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2

__all__ = ["norm_from_probes", "nystrom_bounds", "sine_bounds", "sines_of", "upper_bounds"]


def sine_bounds(theta: np.ndarray, coupling: np.ndarray, outside: float, rounding: float, k: int) -> np.ndarray:
    """Bounds on the sine of the largest angle between span(v_1 … v_j) and the leading j eigenvectors, j = 1 … k.

    Davis and Kahan (1970), sin Theta theorem: ||F_j|| / (theta_j - mu_j); mu_j bounds the eigenvalues that are left.

    Parameters
    ----------
    theta : (l,) array
        Ritz values, largest first, l >= k.
    coupling : (l, l) array
        F^T F.
    outside : float
        Bound on the largest eigenvalue of E; -inf where Q spans everything.
    rounding : float
        Bound on the norm of the error of C V as it was computed.
    k : int
        Number of leading vectors.

    Returns
    -------
    (k,) array, each at most 1 (1: nothing is known).

    Examples
    --------
    >>> sine_bounds(np.array([4.0, 1.0]), np.diag([0.0, 0.01]), 0.5, 3e-9, 1).round(10)
    array([1.e-09])
    """
    rest = upper_bounds(theta, coupling, outside, k)
    return sines_of(np.sqrt(np.maximum(np.diag(coupling).real[:k], 0.0)), theta[:k], rest, rounding)


def upper_bounds(theta: np.ndarray, coupling: np.ndarray, outside: float, k: int) -> np.ndarray:
    """mu_j, j = 1 … k: bounds on the (j + 1)-th eigenvalue of C.

    C restricted to the complement of v_1 … v_j is [[Theta, F^T], [F, E]] of the other Ritz pairs; its largest
    eigenvalue is at most the mu that solves lambda_max(Theta + F^T F / (mu - outside)) = mu (Schur complement).
    """
    sizes = np.sqrt(np.maximum(np.diag(coupling).real, 0.0))
    bounds = np.empty(k)
    bounds[k - 1] = _largest(theta[k:], coupling[k:, k:], outside)
    for j in range(k - 1, 0, -1):  # one Ritz pair more joins the rest
        bounds[j - 1] = _pair(theta[j], bounds[j], sizes[j]) if np.isfinite(bounds[j]) else theta[j]
    return bounds


def nystrom_bounds(values: np.ndarray, tilt: np.ndarray, left: float, k: int) -> tuple[np.ndarray, np.ndarray]:
    """How far the eigenvectors u of a Nystrom approximation lie outside its basis K, and bounds mu_j on what is left.

    C less its approximation is E, positive semidefinite with E K = 0: C u = value u + E u, and ||E u|| is at most ||E||
    times the part of u outside K. C restricted to the complement of u_1 … u_j is at most the approximation there
    plus ||E|| (I - K K^T): a Schur complement bounds its largest eigenvalue, as for Ritz pairs.

    Parameters
    ----------
    values : (q,) array
        Eigenvalues of the approximation, largest first.
    tilt : (q, q) array
        sqrt(value_i value_j) times the inner products of the parts of u_i and u_j outside K.
    left : float
        Bound on ||E||.
    k : int
        Number of leading vectors.

    Returns
    -------
    outside, rest : (k,) arrays
        g_j, and mu_j: bounds on the (j + 1)-th eigenvalue of C.

    Examples
    --------
    >>> outside, rest = nystrom_bounds(np.array([4.0, 1.0]), np.diag([0.04, 0.0]), 0.5, 1)
    >>> outside.round(3), rest.round(4)
    (array([0.1]), array([1.]))
    """
    outside = np.sqrt(np.maximum(np.diag(tilt).real[:k], 0.0) / np.maximum(values[:k], np.finfo(float).tiny))
    outside = np.minimum(outside, 1.0)
    rest = np.empty(k)
    rest[k - 1] = _largest(values[k:], left * tilt[k:, k:], left)
    for j in range(k - 1, 0, -1):  # one vector more joins the rest
        rest[j - 1] = _pair(values[j] + left * outside[j] ** 2, rest[j], left * outside[j])
    return outside, rest


def sines_of(sizes: np.ndarray, values: np.ndarray, rest: np.ndarray, rounding: float) -> np.ndarray:
    """Sine bounds (k,) of the first 1 … k vectors (Davis and Kahan 1970) from residuals, values and what is left."""
    size = np.sqrt(np.cumsum(sizes**2)) + rounding  # Frobenius: at least the spectral norm
    room = values - rest - 2 * rounding  # infinite where nothing is left
    return np.minimum(np.divide(size, room, out=np.ones(len(values)), where=room > size), 1.0)


def _pair(a: float, b: float, f: float) -> float:
    """Largest eigenvalue of [[a, f], [f, b]]."""
    return float((a + b) / 2 + np.hypot((a - b) / 2, f))


def _largest(theta: np.ndarray, coupling: np.ndarray, outside: float) -> float:
    if theta.size == 0:
        return outside
    if not np.isfinite(outside):
        return float(theta[0])
    low = max(float(theta[0]), outside)
    high = _pair(float(theta[0]), outside, float(np.sqrt(max(np.trace(coupling).real, 0.0))))
    for _ in range(50):
        if high - low <= 1e-6 * high:
            break
        middle = (low + high) / 2
        if middle <= outside:
            low = middle
            continue
        top = np.linalg.eigvalsh(np.diag(theta) + coupling / (middle - outside))[-1]
        low, high = (low, middle) if top <= middle else (middle, high)
    return high


def norm_from_probes(log_size: float, probes: int, powers: int) -> float:
    """Bound on the spectral norm of E from log ||E^p G||_F for Gaussian G of so many columns; wrong once in a million.

    ||E^p G||_F^2 >= ||E||^(2p) chi2(probes), as in Halko, Martinsson and Tropp (2011), lemma 4.1, with the quantile in
    the place of their constant.
    """
    return float(np.exp((log_size - np.log(chi2.ppf(1e-6, probes)) / 2) / powers))
