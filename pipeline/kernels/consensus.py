"""Local steps of FedPG and FedPE (Nguyen et al. 2023): pure functions on arrays, bases as rows (k, d).

Site i holds f_i(U) = ||(I - U^T U) X_i^T||_F^2 / n_i, a copy U of the shared basis Z, and multipliers Y for U = Z. The
augmented Lagrangian is f_i(U) + <Y, U - Z> + rho/2 ||U - Z||^2 with the Frobenius product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.kernels.linalg import orthonormal

__all__ = ["STEPS", "euclidean_steps", "riemannian_steps"]

Product = Callable[[np.ndarray], np.ndarray]
"""U (k, d) to U C (k, d) for the second moments C of the site, divided by its samples."""


def riemannian_steps(
    product: Product, z: np.ndarray, u: np.ndarray, y: np.ndarray, t: np.ndarray, rho: float, top: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """FedPG: gradient steps along the tangent space of orthonormal rows, back to them by QR.

    Parameters
    ----------
    product : function
    z, u, y : (k, d) arrays
        The shared basis, the site's own and its multipliers.
    t : (k, k) array
        Not used here: U U^T = I holds by itself.
    rho : float
        Penalty.
    top : float
        Largest eigenvalue of the site's moments: the step is 1 / (2 top + rho).
    steps : int

    Returns
    -------
    u (k, d), t (k, k)
    """
    for _ in range(steps):
        gradient = y + rho * (u - z) - 2 * product(u)
        inner = gradient @ u.T
        tangent = gradient - (inner + inner.T) / 2 @ u
        moved = (u - tangent / (2 * top + rho)).T
        q = orthonormal(moved)
        u = (q * np.where(np.einsum("ij,ij->j", q, moved) < 0, -1.0, 1.0)).T  # the QR whose R has a positive diagonal
    return u, t


def euclidean_steps(
    product: Product, z: np.ndarray, u: np.ndarray, y: np.ndarray, t: np.ndarray, rho: float, top: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """FedPE: plain gradient steps, orthonormality by a penalty h(U) = max(0, U U^T - I)^2 with multipliers t (k, k)."""
    eye = np.eye(len(u))
    t = t + rho * np.maximum(0.0, u @ u.T - eye) ** 2
    for _ in range(steps):
        image, inner = product(u), u @ u.T
        lift = np.maximum(0.0, inner - eye)
        pull = (t + rho * lift**2) * 2 * lift
        # of tr C - 2 tr U C U^T + tr (U C U^T)(U U^T), which is f_i also where U is not orthonormal
        gradient = -4 * image + 2 * (inner @ image + (image @ u.T) @ u) + y + rho * (u - z) + (pull + pull.T) @ u
        u = u - gradient / (8 * top + 2 * rho)
    return u, t


STEPS = {"fedpg": riemannian_steps, "fedpe": euclidean_steps}
"""Name to what a site does between two exchanges."""
