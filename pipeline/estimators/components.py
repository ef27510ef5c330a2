"""What every estimator of components does once it has a Subspace: scores, reconstructions, likelihoods."""

from __future__ import annotations

from functools import partial
from numbers import Integral, Real
from os import PathLike
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from pipeline.driver import check_entries, solve
from pipeline.errors import InputError, NonfiniteError
from pipeline.estimators.containers import apply_rows, column_names, matrix_like, open_for_fit, rows_from_scores
from pipeline.kernels.rank import Rank
from pipeline.matrix import Matrix
from pipeline.plans import Plan, Prepared, prepare
from pipeline.provenance import provenance
from pipeline.rowwise import RowFunction, RowKernel, written
from pipeline.solvers import Settings
from pipeline.subspace import Subspace

__all__ = ["Components", "seed_of"]


class Components(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of the estimators whose fit is one Subspace; not for users."""

    subspace_: Subspace
    plan_: Plan
    n_features_in_: int
    solver: str
    missing: str
    memory_limit: int | str | None

    def settings(self) -> Settings:
        """What is asked of a solver; raises InputError for parameters that cannot be."""
        raise NotImplementedError

    @classmethod
    def from_subspace(cls, subspace: Subspace) -> Self:
        """A fitted estimator of a Subspace, such as one that was loaded, for `transform` and the rest."""
        parameters = dict(subspace.provenance.get("parameters", {}))
        known = {name: parameters[name] for name in cls._get_param_names() if name in parameters}
        estimator = cls(**known)
        estimator.n_features_in_ = subspace.n_features
        names = column_names(subspace)
        if names is not None:
            estimator.feature_names_in_ = names
        estimator._keep(subspace)
        return estimator

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find the components of X.

        Parameters
        ----------
        X : Matrix or anything that `open_matrix` opens
            n samples by d features.
        y : ignored

        Raises
        ------
        InputError, StoreError
            When the data cannot be used.
        PlanError
            When it does not fit in memory.
        ConvergenceError
            When `tol` cannot be met.
        """
        settings = self.settings()
        matrix = open_for_fit(self, X)
        counted = matrix.shape[0] if matrix.sample_weights is None else np.count_nonzero(matrix.sample_weights)
        if counted < 2 and settings.center:
            raise InputError(f"n_samples = {counted}: at least two samples are needed to have any variance")
        self._fit(matrix)
        return self

    def prepare(self, matrix: Matrix) -> Prepared:
        """The plan of a fit, and what it is carried out with; raises as `plan` does."""
        return prepare(matrix, self.settings(), self.solver, self.memory_limit)

    def _fit(self, matrix: Matrix) -> None:
        if 0 in matrix.shape:
            raise InputError(
                f"{matrix.name} has {matrix.shape[0]} samples and {matrix.shape[1]} features: nothing to fit"
            )
        ready = self.prepare(matrix)
        subspace = solve(ready.matrix, ready.solver)
        self.plan_ = ready.plan
        self._keep(provenance(subspace, type(self).__name__, self.get_params(), matrix, ready.plan))

    def _keep(self, subspace: Subspace) -> None:
        self.subspace_ = subspace
        self.components_ = subspace.components
        self.singular_values_ = subspace.singular_values
        self.explained_variance_ = subspace.explained_variance
        self.explained_variance_ratio_ = subspace.explained_variance_ratio
        self.n_components_ = subspace.k
        self.n_samples_ = int(subspace.n_samples) if float(subspace.n_samples).is_integer() else subspace.n_samples

    @property
    def subspace(self) -> Subspace:
        """The fitted Subspace."""
        check_is_fitted(self)
        return self.subspace_

    def transform(self, X: Any, out: str | PathLike[str] | None = None, overwrite: bool = False) -> Any:
        """Scores of X on the components.

        Parameters
        ----------
        X : as in `fit`
            NaN at features that the model does not have is ignored.
        out : path, optional
            A Zarr store to write the scores to block by block; they come back lazily opened.
        overwrite : bool
            Replace `out` where it exists.

        Returns
        -------
        (n, k) scores
            In the kind of container that X is: NumPy, lazy dask, or xarray with the sample coordinates.

        Raises
        ------
        InputError
            When X has other features, or NaN or Inf.
        """
        check_is_fitted(self)
        return self._rowwise(X, self._project, "scores", self.subspace_.k, out, overwrite)

    def inverse_transform(self, Z: Any) -> Any:
        """Samples in the data's own units from scores (n, k), in the kind of container that the scores are."""
        check_is_fitted(self)
        return rows_from_scores(self.subspace_, Z, self._restore)

    def reconstruction_error(self, X: Any) -> Any:
        """Squared distance of each sample from its projection (n,), in weighted, scaled units."""
        check_is_fitted(self)
        return self._rowwise(X, partial(_squared_error, self.subspace_), "reconstruction_error")

    def _rowwise(
        self, X: Any, apply: RowKernel, name: str, width: int = 0, out: Any = None, overwrite: bool = False
    ) -> Any:
        fill = self.subspace_.mean if self.missing == "mean" else None
        return self._applied(X, RowFunction(apply, width, name, self.subspace_.present, fill), out, overwrite)

    def _applied(self, X: Any, function: RowFunction, out: Any = None, overwrite: bool = False) -> Any:
        fill = function.fill
        try:
            if out is None:
                return apply_rows(self, X, self.subspace_, function)
            return written(self.matrix(X), function, out, overwrite)
        except NonfiniteError as error:
            matrix = self.matrix(X)
            check_entries(matrix if fill is None else matrix.filled(fill), self.subspace_.present)
            raise InputError(f"{matrix.name}: {error}, or the scores overflow") from error

    def matrix(self, X: Any) -> Matrix:
        """New data opened as a Matrix with the features of the model, found by name where there are names.

        Raises InputError when X has other features.
        """
        check_is_fitted(self)
        return matrix_like(self, X, self.subspace_)

    def _project(self, rows: np.ndarray) -> np.ndarray:
        return self.subspace_.project(rows)

    def _restore(self, scores: np.ndarray) -> np.ndarray:
        return self.subspace_.reconstruct(scores)

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self.missing == "mean"
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _html_repr(self) -> str:  # what notebooks show of a fitted model, beside its parameters
        fitted = self.subspace_._repr_html_() if hasattr(self, "subspace_") else ""
        return str(super()._html_repr()) + fitted


def seed_of(random_state: Any) -> int:
    """An int seed of an int, None, a RandomState or a Generator."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    if isinstance(random_state, Integral):
        if random_state < 0:
            raise InputError(f"random_state={random_state} must not be negative")
        return int(random_state)
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31))
    raise InputError(f"random_state={random_state!r}: give an int, None, a RandomState or a Generator")


def settings_of(estimator: Any, center: bool, scale: str | None) -> Settings:
    """Settings from an estimator's parameters; raises InputError that names the one which is wrong."""
    if scale not in (None, "std", "genotype"):
        raise InputError(f"scale={scale!r}: choose None, 'std' or 'genotype'")
    tol = estimator.tol
    if tol is not None and not (
        isinstance(tol, int | float | np.number) and not isinstance(tol, bool) and 0 < tol <= 1
    ):
        raise InputError(f"tol={tol!r}: give a bound on a sine, above 0 and at most 1, or None")
    if estimator.missing not in ("error", "mean"):
        raise InputError(f"missing={estimator.missing!r}: choose 'error' or 'mean'")
    if not isinstance(estimator.solver, str):
        raise InputError(f"solver={estimator.solver!r}: give its name")
    if not isinstance(estimator.memory_limit, Real | str | None):
        raise InputError(f"memory_limit={estimator.memory_limit!r}: give bytes, or a size such as '2GB'")
    if estimator.checkpoint is not None:
        raise InputError("checkpoint is not offered yet: leave it None")
    return Settings(
        Rank(estimator.n_components),
        bool(center),
        scale,
        estimator.missing,
        None if tol is None else float(tol),
        seed_of(estimator.random_state),
    )


def _squared_error(subspace: Subspace, rows: np.ndarray) -> np.ndarray:
    scores = subspace.project(rows)
    dtype = scores.dtype
    z = np.where(subspace.present, rows, 0) if not subspace.present.all() else rows
    z = ((z - subspace.offset) * subspace.factor).astype(dtype, copy=False) - scores @ subspace.basis.astype(dtype)
    return np.einsum("ij,ij->i", z, z)
