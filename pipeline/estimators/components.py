"""What every estimator of components does once it has a Subspace: scores, reconstructions, likelihoods."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from os import PathLike
from typing import Any, Self

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from zarr.abc.store import Store

from pipeline.adjoint import check_operator
from pipeline.crew import at_most, give_back
from pipeline.driver import FILLINGS, check_entries, scores, solve
from pipeline.errors import InputError, NonfiniteError
from pipeline.estimators.containers import (
    apply_rows,
    check_features,
    column_names,
    matrix_like,
    open_for_fit,
    rows_from_scores,
)
from pipeline.keep import Keep
from pipeline.kernels.blocks import magnitudes
from pipeline.kernels.rank import Rank
from pipeline.matrix import Matrix
from pipeline.plans import Plan, Prepared, prepare
from pipeline.provenance import provenance
from pipeline.rowwise import RowFunction, RowKernel, written
from pipeline.solvers import Settings
from pipeline.store import load
from pipeline.store.checkpoint import Checkpoint, checkpoint_at
from pipeline.subspace import Subspace

__all__ = ["Components", "check_checkpoint", "seed_of", "squared_error"]


class Components(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of the estimators whose fit is one Subspace; not for users."""

    subspace_: Subspace
    plan_: Plan
    n_features_in_: int
    solver: str
    missing: str
    memory_limit: int | str | None
    checkpoint: Any
    fillings: tuple[str, ...] = FILLINGS

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

    def fit(self, X: Any, y: Any = None, start: Any = None) -> Self:
        """Find the components of X.

        Parameters
        ----------
        X : Matrix or anything that `open_matrix` opens, or an iterator of row blocks (m, d)
            n samples by d features. An iterator is read once, so that only the solvers of one pass serve: 'gram' and
            'single_pass'.
        y : ignored
        start : Subspace, fitted model or the path of a store, optional
            An answer to begin with, such as that of the same data before it changed a little: an iterative solver then
            takes one or two passes. The exact solvers have no use for it.

        Raises
        ------
        InputError, StoreError
            When the data, or the start, cannot be used.
        PlanError
            When it does not fit in memory.
        ConvergenceError
            When `tol` cannot be met.
        """
        _check_ignored(y)
        begin = None if start is None else start_of(start)
        self._found(open_for_fit(self, X), with_scores=False, start=begin)
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Find the components of X and give its scores; stored blocks that are kept are not read again for these.

        Takes, gives and raises what `fit` and `transform` do.
        """
        if fit_params or isinstance(X, xr.DataArray | xr.Dataset):  # labels are for the doors of these two
            return self.fit(X, y, **fit_params).transform(X)
        _check_ignored(y)
        matrix = open_for_fit(self, X)
        known = matrix.source.held or matrix.source.collections
        if known or matrix.sample_weights is not None or self.missing == "em":
            self._found(matrix, with_scores=False)
            return self.transform(X)
        return self._found(matrix, with_scores=True)

    def _found(self, matrix: Matrix, with_scores: bool, start: Subspace | None = None) -> Any:
        settings = self.settings()
        if start is not None:
            check_features(self, matrix, start)
        counted = matrix.shape[0] if matrix.sample_weights is None else np.count_nonzero(matrix.sample_weights)
        if counted < 2 and settings.center:
            raise InputError(f"n_samples = {counted}: at least two samples are needed to have any variance")
        if 0 in matrix.shape:
            raise InputError(
                f"{matrix.name} has {matrix.shape[0]} samples and {matrix.shape[1]} features: nothing to fit"
            )
        ready = self.prepare(matrix, with_scores, start)
        check_operator(matrix)
        keep = Keep(ready.keep)
        try:
            with at_most(ready.plan.threads), checkpoint_at(self.checkpoint) as checkpoint:
                subspace = solve(ready.matrix, ready.solver, keep, checkpoint)
            if subspace.n_samples < 2 and settings.center:  # a stream, whose length is known only now
                raise InputError(
                    f"n_samples = {subspace.n_samples:g}: at least two samples are needed to have any variance"
                )
            self.plan_ = ready.plan
            self._keep(provenance(subspace, type(self).__name__, self.get_params(), matrix, ready.plan))
            scores = self._whitened(self._scores(ready, keep)) if with_scores else None
        finally:
            keep.release()
        give_back()
        return scores

    def prepare(self, matrix: Matrix, with_scores: bool = False, start: Subspace | None = None) -> Prepared:
        """The plan of a fit, and what it is carried out with; raises as `plan` does."""
        settings = self.settings()
        settings = settings if start is None else replace(settings, start=start)
        # What a checkpoint may begin with anywhere rests on nothing that a worker keeps.
        return prepare(matrix, settings, self.solver, self.memory_limit, with_scores, self.checkpoint is None)

    def _scores(self, ready: Prepared, keep: Keep) -> np.ndarray:
        X, found = ready.matrix, self.subspace_
        with at_most(ready.plan.threads):
            return scores(X.filled(found.mean) if self.missing == "mean" else X, ready.solver, found, keep)

    def _whitened(self, scores: np.ndarray) -> np.ndarray:
        return scores

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

    def left_singular_vectors(self, X: Any, out: str | PathLike[str] | None = None, overwrite: bool = False) -> Any:
        """Scores of X divided by the singular values: for the X of the fit, orthonormal columns (n, k).

        Takes, gives and raises what `transform` does; zeros where a singular value is zero.
        """
        check_is_fitted(self)
        return self._rowwise(X, partial(_left_vectors, self.subspace_), "left", self.subspace_.k, out, overwrite)

    def inverse_transform(self, Z: Any) -> Any:
        """Samples in the data's own units from scores (n, k), in the kind of container that the scores are."""
        check_is_fitted(self)
        return rows_from_scores(self.subspace_, Z, self._restore)

    def reconstruction_error(self, X: Any) -> Any:
        """Squared distance of each sample from its projection (n,), in weighted, scaled units."""
        check_is_fitted(self)
        return self._rowwise(X, partial(squared_error, self.subspace_), "reconstruction_error")

    def _rowwise(
        self, X: Any, apply: RowKernel, name: str, width: int = 0, out: Any = None, overwrite: bool = False
    ) -> Any:
        fill = self.subspace_.mean if self.missing == "mean" else None
        if self.missing == "em":
            apply = partial(_of_expected, apply, self.subspace_)
        function = RowFunction(
            apply,
            width,
            name,
            self.subspace_.present,
            fill,
            f"{type(self).__name__} {self.get_params()} {self.subspace_.fingerprint()}",
            implicit=name == "scores" and self.missing != "em",
            complex=self.subspace_.components.dtype.kind == "c",
        )
        return self._applied(X, function, out, overwrite)

    def _applied(self, X: Any, function: RowFunction, out: Any = None, overwrite: bool = False) -> Any:
        fill = function.fill
        try:
            if out is None:
                return apply_rows(self, X, self.subspace_, function)
            return written(self.matrix(X), function, out, overwrite)
        except NonfiniteError as error:
            matrix = self.matrix(X)
            known = self.subspace_.mean if self.missing == "em" else fill
            check_entries(matrix if known is None else matrix.filled(known), self.subspace_.present, self.fillings)
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
        tags.input_tags.allow_nan = self.missing != "error"
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _html_repr(self) -> str:  # what notebooks show of a fitted model, beside its parameters
        fitted = self.subspace_._repr_html_() if hasattr(self, "subspace_") else ""
        return str(super()._html_repr()) + fitted


def start_of(start: Any) -> Subspace:
    """The Subspace of a start: itself, that of a fitted model, or what a store holds; raises InputError, StoreError."""
    if isinstance(start, Components):
        return start.subspace
    if isinstance(start, str | PathLike | Store):
        return load(start)
    if not isinstance(start, Subspace):
        raise InputError(f"start is a {type(start).__name__}: give a Subspace, a fitted model or the path of a store")
    return start


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
    if estimator.missing not in ("error", "mean", "em"):
        raise InputError(f"missing={estimator.missing!r}: choose 'error', 'mean' or 'em'")
    if not isinstance(estimator.solver, str):
        raise InputError(f"solver={estimator.solver!r}: give its name")
    if not isinstance(estimator.memory_limit, Real | str | None):
        raise InputError(f"memory_limit={estimator.memory_limit!r}: give bytes, or a size such as '2GB'")
    check_checkpoint(estimator.checkpoint)
    return Settings(
        Rank(estimator.n_components),
        bool(center),
        scale,
        estimator.missing,
        None if tol is None else float(tol),
        seed_of(estimator.random_state),
    )


def check_checkpoint(checkpoint: Any) -> None:
    """Raise InputError for what is no place of a checkpoint."""
    if not isinstance(checkpoint, str | PathLike | Store | Checkpoint | None) or checkpoint == "":
        raise InputError(f"checkpoint={checkpoint!r}: give the path or URL of a store, or None")


def _check_ignored(y: Any) -> None:
    if getattr(getattr(y, "dtype", None), "kind", "f") == "c":
        raise InputError("Complex data not supported: X may be complex, y is ignored and so cannot be")


def _of_expected(apply: RowKernel, subspace: Subspace, rows: np.ndarray) -> np.ndarray:
    """A function of rows in which what is missing is what probabilistic PCA expects there, given what is seen."""
    return apply(subspace.expected(rows))


def _left_vectors(subspace: Subspace, rows: np.ndarray) -> np.ndarray:
    scores, values = subspace.project(rows), subspace.singular_values
    return scores * np.divide(1.0, values, out=np.zeros(len(values)), where=values > 0).astype(scores.dtype)


def squared_error(subspace: Subspace, rows: np.ndarray) -> np.ndarray:
    """Squared distance (m,) of rows (m, d) from a subspace, in its weighted, scaled units."""
    scores = subspace.project(rows)
    dtype = scores.dtype
    z = np.where(subspace.present, rows, 0) if not subspace.present.all() else rows
    z = ((z - subspace.offset) * subspace.factor).astype(dtype, copy=False) - scores @ subspace.basis.astype(dtype)
    return magnitudes(z).sum(axis=1)
