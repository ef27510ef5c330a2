"""`PCA`: principal components of anything that `open_matrix` opens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from pipeline.driver import check_entries
from pipeline.errors import InputError
from pipeline.estimators.components import Components, settings_of
from pipeline.estimators.containers import open_for_fit
from pipeline.kernels.blocks import doubled, magnitudes
from pipeline.matrix import Matrix
from pipeline.provenance import provenance
from pipeline.solvers import Settings
from pipeline.subspace import Subspace

__all__ = ["PCA"]


def _mergeable(pca: PCA) -> bool:
    if pca.scale is not None or pca.missing != "error":
        raise InputError("partial_fit needs scale=None and missing='error', as means and spreads change with a batch")
    return True


class PCA(Components):
    """Principal component analysis of matrices of any size, with a certificate.

    Parameters
    ----------
    n_components : int, float or 'auto', optional
        How many; a fraction in (0, 1) of the variance; 'auto': as many as rise above white noise of the same shape, and
        at least one (parallel analysis by the limit law of its largest singular value, Johnstone 2001); None:
        min(n_samples, n_features).
    center : bool
        Subtract the mean.
    scale : {None, 'std', 'genotype'}
        Divide features by their standard deviation, or by sqrt(2 p (1 - p)) of allele counts with frequency p.
    solver : str
        'gram', 'dual_gram', 'krylov', 'randomized', 'single_pass', or 'auto': the one that the plan finds cheapest.
    tol : float, optional
        Certified bound on the sine of the largest principal angle; None: the solver's default effort.
    missing : {'error', 'mean', 'em'}
        What to do with NaN entries, other than features that are NaN in every sample: refuse them, take the mean of
        the feature's observed entries for them (one pass more), or fit probabilistic PCA to the entries that there are
        (Tipping and Bishop 1999). Among integers, -1 is missing too under `scale='genotype'`.
    memory_limit : int or str, optional
        Bytes a worker, or a size such as '2GB'.
    checkpoint : str, PathLike or zarr Store, optional
        A place of its own for the state of the fit, written after each pass and inside of it: the same fit goes on from
        there when it was killed. Removed when the fit is done; refused when it is that of other data or settings.
    random_state : int, RandomState or None
        Of the randomized solver.
    whiten : bool
        Divide scores by the standard deviation of their column.

    Attributes
    ----------
    components_ : (k, d) array
        Orthonormal rows, in weighted and scaled units.
    explained_variance_, explained_variance_ratio_, singular_values_ : (k,) arrays
    mean_ : (d,) array
    n_components_, n_samples_, n_features_in_ : int
    noise_variance_ : float
        Mean variance of the directions left out (Tipping and Bishop 1999).
    subspace_ : Subspace
        All of it with the certificate.
    plan_ : Plan

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 5)) + 0.01 * rng.normal(size=(300, 5))
    >>> pca = PCA(n_components=0.999).fit(X)
    >>> pca.n_components_, pca.transform(X[:3]).shape
    (2, (3, 2))
    """

    def __init__(
        self,
        n_components: int | float | str | None = None,
        center: bool = True,
        scale: str | None = None,
        solver: str = "auto",
        tol: float | None = None,
        missing: str = "error",
        memory_limit: int | str | None = None,
        checkpoint: Any = None,
        random_state: Any = 0,
        whiten: bool = False,
    ) -> None:
        self.n_components = n_components
        self.center = center
        self.scale = scale
        self.solver = solver
        self.tol = tol
        self.missing = missing
        self.memory_limit = memory_limit
        self.checkpoint = checkpoint
        self.random_state = random_state
        self.whiten = whiten

    def settings(self) -> Settings:
        """What is asked of a solver; raises InputError for parameters that cannot be."""
        for name in ("center", "whiten"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise InputError(f"{name}={getattr(self, name)!r}: give True or False")
        return settings_of(self, self.center, self.scale)

    @available_if(_mergeable)
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Add a batch of samples (m, d) to what was fitted so far; batches may be of any height.

        The first batch is fitted; every further one is merged into the subspace, which keeps n_components of it: the
        certificate says what truncation may have cost. Offered without `scale` and with `missing='error'`, as means and
        spreads change with every batch. Raises InputError where features or n_components changed, or entries are NaN.
        """
        settings = self.settings()
        first = not hasattr(self, "subspace_")
        if not first and self._asked != self.n_components:
            raise InputError(f"n_components was {self._asked} in earlier batches and is {self.n_components} now")
        batch = open_for_fit(self, X) if first else self.matrix(X)
        if batch.sample_weights is not None:
            raise InputError("partial_fit counts every sample once: open the batch without sample_weights")
        rows = np.concatenate([batch.read(i) for i in range(batch.n_blocks)])
        old = _nothing(rows, settings, batch) if first else self.subspace_
        if not np.isfinite(rows[:, old.present]).all():
            check_entries(batch, old.present)
        new = old.of_rows(rows)
        merged = old.merge(new, n_components=old.k + new.k + 1)
        kept = replace(self._kept(merged, settings), passes=1, provenance={"solver": "merge"})
        self._keep(provenance(kept, type(self).__name__, self.get_params(), batch))
        return self

    def _kept(self, merged: Subspace, settings: Settings) -> Subspace:
        n, squares = int(merged.n_samples), np.square(merged.singular_values)
        if settings.rank.open:
            shift = 0.0 if merged.centered else n * float(np.nansum((merged.mean * merged.factor) ** 2))
            energy = merged.total_variance * merged.dof + shift
            k = settings.rank.resolve(squares, energy, n, int(merged.present.sum()))
        else:
            k = merged.k if self.n_components is None else int(self.n_components)
        return merged.truncate(max(1, min(k, merged.k, n)))

    def _keep(self, subspace: Subspace) -> None:
        super()._keep(subspace)
        self._asked = self.n_components
        self.mean_ = subspace.offset if subspace.present.all() else np.where(subspace.present, subspace.offset, np.nan)
        left = min(int(subspace.n_samples), int(subspace.present.sum())) - subspace.k
        self.noise_variance_ = subspace.unexplained_variance / left if left > 0 else 0.0

    def score_samples(self, X: Any) -> Any:
        """Log-likelihood of each sample (n,) under probabilistic PCA (Tipping and Bishop 1999).

        Raises InputError where the noise variance is zero, so that the model has no density.
        """
        self._check_density()
        function = partial(_log_likelihood, self.subspace_, self.noise_variance_)
        return self._rowwise(X, function, "log_likelihood")

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`."""
        return float(np.mean(np.asarray(self.score_samples(X))))

    def get_covariance(self) -> np.ndarray:
        """Covariance (d, d) of the probabilistic model: V^T (L - s2 I) V + s2 I; NaN at features without values."""
        check_is_fitted(self)
        excess = np.maximum(self.explained_variance_ - self.noise_variance_, 0.0)
        return self._spread(excess, self.noise_variance_)

    def get_precision(self) -> np.ndarray:
        """Inverse (d, d) of `get_covariance`; raises InputError where that has none."""
        self._check_density()
        rest = 1 / self.noise_variance_ if self.noise_variance_ > 0 else 0.0
        return self._spread(1 / np.maximum(self.explained_variance_, self.noise_variance_) - rest, rest)

    def _spread(self, along: np.ndarray, everywhere: float) -> np.ndarray:
        basis, present = self.subspace_.basis, self.subspace_.present
        basis = np.asarray(basis, doubled(basis.dtype))
        matrix = (basis.conj().T * along) @ basis + everywhere * np.eye(basis.shape[1])
        return np.where(np.outer(present, present), matrix, np.nan)

    def _check_density(self) -> None:
        check_is_fitted(self)
        complete = self.subspace_.k == self.subspace_.present.sum() and self.explained_variance_.min() > 0
        if not self.noise_variance_ > 0 and not complete:
            raise InputError("the noise variance is zero, so there is no likelihood: fit with fewer components")

    def _project(self, rows: np.ndarray) -> np.ndarray:
        return self._whitened(super()._project(rows))

    def _whitened(self, scores: np.ndarray) -> np.ndarray:
        return scores / self._deviations().astype(scores.dtype) if self.whiten else scores

    def _restore(self, scores: np.ndarray) -> np.ndarray:
        return super()._restore(scores * self._deviations().astype(scores.dtype) if self.whiten else scores)

    def _deviations(self) -> np.ndarray:
        deviations = np.sqrt(self.explained_variance_)
        return np.where(deviations > 0, deviations, 1.0)


def _nothing(rows: np.ndarray, settings: Settings, X: Matrix) -> Subspace:
    """The subspace of no samples, of the features that have values in the first rows."""
    d, none = rows.shape[1], np.zeros(0)
    return Subspace(
        components=np.zeros((0, d), X.work_dtype),
        singular_values=none,
        mean=np.where(np.isnan(rows).all(axis=0), np.nan, 0.0),
        n_samples=0.0,
        total_variance=0.0,
        residual=none,
        angle_bounds=none,
        weights=X.weights,
        centered=settings.center,
        features=X.features,
    )


def _log_likelihood(subspace: Subspace, noise: float, rows: np.ndarray) -> np.ndarray:
    basis = np.asarray(subspace.basis, doubled(subspace.basis.dtype))
    present = subspace.present
    z = (np.where(present, rows, 0) - subspace.offset) * subspace.factor
    scores = z @ basis.conj().T
    variance = np.maximum(subspace.explained_variance, noise)
    rest = z - scores @ basis
    left = int(present.sum()) - subspace.k
    distance = (magnitudes(scores) / variance).sum(axis=1)
    logdet = float(np.log(variance).sum())
    if left > 0:
        distance += magnitudes(rest).sum(axis=1) / noise
        logdet += left * np.log(noise)
    if basis.dtype.kind == "c":  # a circular complex Gaussian
        return -(present.sum() * np.log(np.pi) + logdet + distance)
    return -0.5 * (present.sum() * np.log(2 * np.pi) + logdet + distance)
