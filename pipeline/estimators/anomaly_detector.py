"""`AnomalyDetector`: how far samples lie from a subspace, and from where on that is strange."""

from __future__ import annotations

from functools import partial
from numbers import Real
from os import PathLike
from typing import Any, Self

import numpy as np
from scipy.stats import norm
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from pipeline.driver import check_entries
from pipeline.errors import InputError, NonfiniteError
from pipeline.estimators.components import squared_error
from pipeline.estimators.containers import apply_rows, matrix_like
from pipeline.folds import Digest, RowDigest, RowMoments
from pipeline.matrix import Matrix
from pipeline.rowwise import RowFunction, written
from pipeline.subspace import Subspace
from pipeline.walk import walk

__all__ = ["AnomalyDetector", "q_limit"]

_MOMENTS = 4096  # features up to which the residual variances are computed one by one


class AnomalyDetector(BaseEstimator):
    """Calls samples anomalous that a subspace reconstructs badly.

    Parameters
    ----------
    subspace : Subspace, fitted estimator, or store
        What normal samples lie near to.
    threshold : float or 'q'
        A quantile in (0, 1) of the scores of the samples that it is fitted to, or 'q': the limit of the Q-statistic
        (Jackson and Mudholkar 1979) for normally distributed residuals.
    level : float
        With 'q', the share of normal samples that is to lie below the limit.

    Attributes
    ----------
    threshold_ : float
        Scores above it are anomalies.
    n_samples_ : float
        Samples that it was fitted to.

    Examples
    --------
    >>> from pipeline import PCA
    >>> X = np.random.default_rng(0).normal(size=(1000, 5)) * [9, 5, 0.1, 0.1, 0.1]
    >>> detector = AnomalyDetector(PCA(2).fit(X).subspace_, threshold=0.99).fit(X)
    >>> int(detector.predict(X).sum()), detector.predict([[0.0, 0, 1, 0, 0]]).tolist()
    (10, [True])
    """

    def __init__(self, subspace: Any, threshold: float | str = 0.99, level: float = 0.99) -> None:
        self.subspace = subspace
        self.threshold = threshold
        self.level = level

    def fit(self, X: Any, y: Any = None) -> Self:
        """Calibrate the threshold on samples that are taken for normal, in one pass and without keeping a score.

        Parameters
        ----------
        X : Matrix or anything that `open_matrix` opens
            n samples by d features.
        y : ignored

        Raises
        ------
        InputError
            When the threshold is neither a quantile nor 'q', or X has other features, or NaN or Inf.
        """
        self._check_parameters()
        matrix = self._matrix(X)
        if not len(matrix):
            raise InputError(f"{matrix.name} has no samples: the threshold needs some that are normal")
        try:
            if self.threshold == "q":
                self.threshold_ = q_limit(self._residual_moments(matrix), float(self.level))
            else:
                self.threshold_ = self._digest(matrix).quantile(float(self.threshold))
        except NonfiniteError as error:
            check_entries(matrix, self._subspace.present)
            raise InputError(f"{matrix.name}: {error}, or the scores overflow") from error
        weights = matrix.sample_weights
        self.n_samples_ = float(len(matrix) if weights is None else weights.sum())
        return self

    def score(self, X: Any, out: str | PathLike[str] | None = None, overwrite: bool = False) -> Any:
        """Squared distance of each sample from the subspace (n,), in weighted, scaled units: higher is stranger.

        Parameters
        ----------
        X : as in `fit`
        out : path, optional
            A Zarr store to write the scores to block by block; they come back lazily opened.
        overwrite : bool
            Replace `out` where it exists.

        Returns
        -------
        (n,) scores
            In the kind of container that X is: NumPy, lazy dask, or xarray with the sample coordinates.

        Raises
        ------
        InputError
            When X has other features, or NaN or Inf.
        """
        try:
            if out is None:
                return apply_rows(self, X, self._subspace, self._function)
            return written(self._matrix(X), self._function, out, overwrite)
        except NonfiniteError as error:
            matrix = self._matrix(X)
            check_entries(matrix, self._subspace.present)
            raise InputError(f"{matrix.name}: {error}, or the scores overflow") from error

    def predict(self, X: Any) -> Any:
        """True for anomalies (n,): samples whose score is above the threshold."""
        check_is_fitted(self, "threshold_")
        return self.score(X) > self.threshold_

    @property
    def _subspace(self) -> Subspace:
        given = getattr(self.subspace, "subspace_", self.subspace)
        if isinstance(given, str | PathLike):
            from pipeline.store import load

            given = load(given)
            self.subspace = given
        if not isinstance(given, Subspace):
            raise InputError(
                f"subspace is a {type(given).__name__}: give a Subspace, a fitted estimator or the path of a model"
            )
        return given

    @property
    def _function(self) -> RowFunction:
        return RowFunction(partial(squared_error, self._subspace), 0, "anomaly_score", self._subspace.present)

    def _matrix(self, X: Any) -> Matrix:
        self.n_features_in_ = self._subspace.n_features
        return matrix_like(self, X, self._subspace)

    def _check_parameters(self) -> None:
        for name in ("threshold", "level"):
            value = getattr(self, name)
            if name == "threshold" and isinstance(value, str) and value == "q":
                continue
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < 1:
                ways = "a quantile between 0 and 1, or 'q'" if name == "threshold" else "a share between 0 and 1"
                raise InputError(f"{name}={value!r}: give {ways}")

    def _digest(self, matrix: Matrix) -> Digest:
        found, _ = walk(matrix, RowDigest(self._function, matrix.work_dtype, matrix.sample_weights))
        return found

    def _residual_moments(self, matrix: Matrix) -> np.ndarray:
        """(3,) sums of the first three powers of the residual variances."""
        s = self._subspace
        if s.n_features > _MOMENTS:
            # A sum of lambda_j chi2(1) has mean sum lambda, variance 2 sum lambda^2, third moment 8 sum lambda^3.
            digest = self._digest(matrix)
            m1, m2, m3 = digest.powers / digest.n
            return np.array([m1, (m2 - m1**2) / 2, (m3 - 3 * m1 * m2 + 2 * m1**3) / 8])
        moments, _ = walk(matrix, RowMoments(np.dtype(np.float64), None, None, matrix.sample_weights))
        moments = moments.centred()
        gap = np.where(s.present, moments.about.mean, 0.0) - s.offset
        z = (moments.scatter / moments.about.n + np.outer(gap, gap)) * np.outer(s.factor, s.factor)
        v = np.asarray(s.basis, np.float64)
        rest = np.eye(s.n_features) - v.T @ v
        left = np.linalg.eigvalsh(rest @ z @ rest)
        return np.array([np.sum(np.maximum(left, 0.0) ** i) for i in (1, 2, 3)])


def q_limit(theta: np.ndarray, level: float) -> float:
    """The limit of the Q-statistic (Jackson and Mudholkar 1979) from sum lambda, sum lambda^2 and sum lambda^3.

    Parameters
    ----------
    theta : (3,) array
        Of the variances lambda of the residuals.
    level : float
        Share of normal samples below the limit.

    >>> round(q_limit(np.array([10.0, 10.0, 10.0]), 0.99), 1)  # chi2 of 10 degrees of freedom: 23.2
    23.2
    """
    t1, t2, t3 = (float(t) for t in theta)
    if not (t1 > 0 and t2 > 0 and t3 > 0):
        return 0.0
    h = 1 - 2 * t1 * t3 / (3 * t2**2)
    c = float(norm.ppf(level))
    # Their c has the sign of h: (score / t1)^h falls with the score where h is negative.
    inside = c * h * np.sqrt(2 * t2) / t1 + 1 + t2 * h * (h - 1) / t1**2
    return float(t1 * max(inside, np.finfo(float).tiny) ** (1 / h))
