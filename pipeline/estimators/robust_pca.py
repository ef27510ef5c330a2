"""`RobustPCA`: principal components that rows, or entries, which lie cannot bend; and scores that name these rows."""

from __future__ import annotations

import base64
from dataclasses import replace
from functools import partial
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import clone
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from pipeline.driver import check_entries
from pipeline.errors import InputError, NonfiniteError
from pipeline.estimators.components import check_checkpoint, seed_of
from pipeline.estimators.containers import matrix_like, open_for_fit
from pipeline.estimators.pca import PCA
from pipeline.folds.rowmaps import Filled
from pipeline.kernels.rank import Rank
from pipeline.labels import Labels
from pipeline.matrix import Matrix, open_matrix
from pipeline.plans import Prepared, prepare_solver
from pipeline.provenance import provenance
from pipeline.robust import METHODS, SEARCHES, Options, Robust
from pipeline.robust.cuts import read_cuts
from pipeline.robust.method import INNER, Certificate, looked
from pipeline.robust.passing import WAITING, StreamState, absorbed, answered, begun, looked_over
from pipeline.robust.pcp import split_rows
from pipeline.robust.solver import check_eps, distances_of, scores_of
from pipeline.robust.stream import Stream, placed
from pipeline.rowwise import RowFunction
from pipeline.solvers import Settings
from pipeline.subspace import Subspace

__all__ = ["RobustPCA"]

_ANSWER = {
    *("subspace_", "components_", "singular_values_", "explained_variance_", "explained_variance_ratio_", "mean_"),
    *("n_components_", "n_samples_", "noise_variance_", "cutoffs_", "outlier_fraction_", "certificate_"),
}
"""Attributes that more rows of a stream change."""


def _streaming(estimator: RobustPCA) -> bool:
    if estimator.method != "stream":
        raise InputError("partial_fit needs method='stream': the other methods read the data more than once")
    return True


class RobustPCA(PCA):
    """Principal component analysis that withstands outliers, of matrices of any size.

    Parameters
    ----------
    n_components : int, float, 'auto' or None
        As for `PCA`; of 'pcp' None and 'auto' leave the rank free, up to 100.
    method : {'filter', 'stream', 'dpd', 'pcp', 'spherical', 'tyler'}
        'filter': rows that lie are found along the leading directions and cut off, in several passes (Diakonikolas,
        Kane, Pensia and Pittas 2023); 'stream': the same in one pass, also by `partial_fit`; 'dpd': entries that lie
        lose their weight (Roy, Basu and Ghosh 2021); 'pcp': low rank plus sparse (Candès et al. 2011); 'spherical':
        spatial signs about the geometric median (Locantore et al. 1999); 'tyler': Tyler's M-estimator (1987), for up
        to some thousand features.
    eps : float
        Upper bound on the share of rows that lie, in [0, 0.5).
    center : bool, 'median' or 'median_of_means'
        True: about the center of the method: the mean of the rows kept, or the geometric median; False: about zero.
    scale : {None, 'mad', 'std'}
        What features are divided by: their median absolute deviation (times 1.4826), or their standard deviation.
    search : {'block', 'deflation'}
        How 'filter' finds several components: all at once, or one after the other (Jambulapati et al. 2024).
    alpha : float or 'auto'
        Of 'dpd': how sharply entries that do not fit lose their weight, in (0, 1].
    solver : str
        Of the problem inside: 'gram', 'krylov', 'randomized' or 'auto'.
    missing : {'error', 'mean'}
        'mean': gaps are filled with the median of the feature, rows of which more than half is missing are flagged.
    memory_limit, checkpoint, random_state, whiten
        As for `PCA`.

    Attributes
    ----------
    outlier_fraction_ : float
        Share of the rows that were cut off, or whose score is above 1.
    certificate_ : Certificate
        `.holds`: whether the promise of the method holds for this answer; `.text`: what that rests on.
    cutoffs_ : pair of float
        Of score distances and orthogonal distances.
    state_ : StreamState
        Of a stream: `.save(path)`, `StreamState.load(path)`, `.combine(other)`; go on with `from_state`.
    components_, explained_variance_, … : as for `PCA`
        Of the rows that were kept.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(1000, 8)) * [9, 5, 1, 1, 1, 1, 1, 1]
    >>> X[:100] = 40 * np.eye(8)[7]
    >>> pca = RobustPCA(n_components=2, eps=0.1).fit(X)
    >>> pca.certificate_.holds, abs(pca.components_).argmax(axis=1).tolist()
    (True, [0, 1])
    >>> bool((pca.outlier_score_(X)[:100] > 1).all())
    True
    """

    center: Any

    def __init__(
        self,
        n_components: int | float | str | None = None,
        method: str = "filter",
        eps: float = 0.1,
        center: bool | str = True,
        scale: str | None = None,
        search: str = "block",
        alpha: float | str = 0.3,
        solver: str = "auto",
        missing: str = "error",
        memory_limit: int | str | None = None,
        checkpoint: Any = None,
        random_state: Any = 0,
        whiten: bool = False,
    ) -> None:
        self.n_components = n_components
        self.method = method
        self.eps = eps
        self.center = center
        self.scale = scale
        self.search = search
        self.alpha = alpha
        self.solver = solver
        self.missing = missing
        self.memory_limit = memory_limit
        self.checkpoint = checkpoint
        self.random_state = random_state
        self.whiten = whiten

    fillings = Robust.fillings
    _last: Subspace | None = None
    """The last answer, that batches of a stream are opened like."""
    tol = None  # a plain solver's word: robust methods stop by their own certificates

    def settings(self) -> Settings:
        """What is asked of the solvers inside; raises InputError for parameters that cannot be."""
        if not isinstance(self.center, bool | np.bool_) and self.center not in ("median", "median_of_means"):
            raise InputError(f"center={self.center!r}: give True, False, 'median' or 'median_of_means'")
        if self.missing not in ("error", "mean"):
            raise InputError(f"missing={self.missing!r}: choose 'error' or 'mean'")
        if not isinstance(self.memory_limit, Real | str | None):
            raise InputError(f"memory_limit={self.memory_limit!r}: give bytes, or a size such as '2GB'")
        if not isinstance(self.whiten, bool | np.bool_):
            raise InputError(f"whiten={self.whiten!r}: give True or False")
        check_checkpoint(self.checkpoint)
        return Settings(Rank(self.n_components), bool(self.center), None, "error", None, seed_of(self.random_state))

    def options(self) -> Options:
        """What is asked of the method; raises InputError for parameters that cannot be."""
        choices = {
            "method": tuple(METHODS),
            "scale": (None, "mad", "std"),
            "search": tuple(SEARCHES),
            "solver": ("auto", *INNER),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in known:
                raise InputError(f"{name}={value!r}: choose one of {', '.join(map(repr, known))}")
        alpha = self.alpha
        if alpha != "auto" and (isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 <= alpha <= 1):
            raise InputError(f"alpha={alpha!r}: give a number from 0 to 1, or 'auto'")
        center = self.center if isinstance(self.center, str) else bool(self.center)
        return Options(
            self.method,
            check_eps(self.eps),
            center,
            self.scale,
            alpha,
            self.search,
            self.solver,
            self.missing,
        )

    def prepare(self, matrix: Matrix, with_scores: bool = False, start: Subspace | None = None) -> Prepared:
        """The plan of a fit, and what it is carried out with."""
        solver = self._solver()
        why = f"robust against up to {100 * solver.options.eps:g} % of the rows, as asked for"
        return prepare_solver(matrix, solver, self.memory_limit, why, with_scores)

    def _solver(self) -> Robust:
        settings, options = self.settings(), self.options()
        method = METHODS[options.method](settings, options)
        return Robust(settings, options, replace(method, told=self._told) if isinstance(method, Stream) else method)

    def _told(self, state: StreamState) -> None:
        self.state_ = state

    def _found(self, matrix: Matrix, with_scores: bool, start: Subspace | None = None) -> Any:
        if start is not None:
            raise InputError("a robust method finds its own beginning: leave out start")
        for name in ("state_", "_last", "_behind"):
            self.__dict__.pop(name, None)
        if matrix.work_dtype.kind == "c":
            raise InputError(f"{matrix.name} is complex: robust methods are for real numbers")
        return super()._found(matrix, with_scores, start)

    @available_if(_streaming)
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Let more rows pass; only for method='stream'. Batches may be of any height.

        Rows of small batches are judged together; fitted attributes that they outdate are made anew when asked for.

        Parameters
        ----------
        X : as in `fit`
            Rows in the order in which they come; none is kept beyond the sample in `state_`.
        y : ignored

        Raises
        ------
        InputError
            When the width or a parameter changes between batches, or entries are NaN or Inf.
        """
        settings, options = self.settings(), self.options()
        if self.scale is not None or self.missing != "error" or isinstance(self.center, str):
            raise InputError(
                "partial_fit needs scale=None, missing='error' and center True or False: a stream is one pass"
            )
        first = not hasattr(self, "state_")
        batch = open_for_fit(self, X) if first else self._batch(X)
        if batch.sample_weights is not None:
            raise InputError("a stream counts every row once: open the batch without sample_weights")
        fresh = begun(batch, settings, options)
        state = fresh if first else self.state_
        for name in ("width", "k", "eps", "center", "seed"):
            if getattr(state, name) != getattr(fresh, name):
                raise InputError(
                    f"the stream began with {name}={getattr(state, name)} and is now asked for "
                    f"{getattr(fresh, name)}: fit anew"
                )
        factor = np.ones(batch.shape[1]) if batch.weights is None else batch.weights
        try:
            for i in range(batch.n_blocks):
                state = absorbed(state, batch.read(i) * factor.astype(batch.work_dtype))
        except NonfiniteError:
            check_entries(batch, np.ones(batch.shape[1], bool), fillings=())
            raise
        small = batch.shape[0] < WAITING and self._last is not None
        self.state_ = state
        if state.enough and not small:
            self._answer(batch)
        elif state.enough:
            self._behind = batch
            for name in _ANSWER:
                self.__dict__.pop(name, None)
        return self

    def __getattr__(self, name: str) -> Any:
        """Of a stream, an attribute that more rows have outdated, made anew; else what Python says."""
        if name in _ANSWER and "_behind" in self.__dict__:
            self._answer(self._behind)
            return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _batch(self, X: Any) -> Matrix:
        last = self._last
        matrix = open_for_fit(clone(self), X) if last is None else matrix_like(self, X, last)
        if matrix.shape[1] != self.state_.width:
            raise InputError(
                f"X has {matrix.shape[1]} features, but {type(self).__name__} is expecting {self.state_.width} "
                "features as input: a stream cannot change its width"
            )
        return matrix

    def _answer(self, X: Matrix) -> None:
        """What the state says now, as the fitted attributes."""
        with threadpool_limits(1):
            self.state_ = looked_over(self.state_)
            found = placed(answered(self.state_), X, np.ones(X.shape[1], bool))
        solver = self._solver()
        subspace = solver.concluded(X, found)
        subspace = replace(subspace, passes=1, provenance={**subspace.provenance, "solver": "stream"})
        self._keep(provenance(subspace, type(self).__name__, self.get_params(), X))
        self.__dict__.pop("_behind", None)

    @classmethod
    def from_state(cls, state: StreamState) -> Self:
        """An estimator that goes on where a stream was saved or combined.

        >>> X = np.random.default_rng(0).normal(size=(500, 6)) * [5, 3, 1, 1, 1, 1]
        >>> one, other = (RobustPCA(2, method="stream").partial_fit(part) for part in (X[:200], X[200:]))
        >>> both = RobustPCA.from_state(one.state_.combine(other.state_))
        >>> both.state_.seen, both.n_components_
        (500, 2)
        """
        estimator = cls(state.k, method="stream", eps=state.eps, center=state.center, random_state=state.seed)
        estimator.state_ = state
        estimator.n_features_in_ = state.width
        if state.enough:
            estimator._answer(open_matrix(state.sample.rows))
        return estimator

    def _keep(self, subspace: Subspace) -> None:
        super()._keep(subspace)
        self._last = subspace
        story = subspace.provenance.get("robust")
        if story is None:
            raise InputError("this model is not of a robust method: open it with PCA or TruncatedSVD")
        self.cutoffs_ = story["score_cutoff"], story["orthogonal_cutoff"]
        self.outlier_fraction_ = story["outlier_fraction"]
        self.certificate_ = Certificate(**story["certificate"])

    def outlier_score_(self, X: Any, out: str | PathLike[str] | None = None, overwrite: bool = False) -> Any:
        """How strange each row is (n,): the larger of score distance and orthogonal distance, each over its cut-off.

        Above 1 lies what is flagged: 2.5 % of normal data by either distance (Hubert, Rousseeuw and Vanden Branden
        2005). Rows that a filter has cut off lie above 1 in any case, at their distance over its threshold; rows of
        which more than half is missing have the score inf.

        Parameters
        ----------
        X : as in `fit`
        out : path, optional
            A Zarr store to write the scores to, block by block, with the coordinates of the samples.
        overwrite : bool
            Replace `out` where it exists.
        """
        check_is_fitted(self)
        apply = partial(_outlier_score, self.subspace_, self.missing != "error")
        return self._applied(
            X,
            RowFunction(
                apply, 0, "outlier_score", self.subspace_.present, identity=self._identity("score"), infinite=True
            ),
            out,
            overwrite,
        )

    def flag(self, X: Any, out: str | PathLike[str] | None = None, overwrite: bool = False) -> Any:
        """Whether each row is an outlier (n,): its score is above 1. Stored flags are numbers, 1 for an outlier.

        Takes, gives and raises what `outlier_score_` does.
        """
        check_is_fitted(self)
        apply = partial(_flag, self.subspace_, self.missing != "error")
        function = RowFunction(apply, 0, "outlier", self.subspace_.present, identity=self._identity("flag"))
        flags = self._applied(X, function, out, overwrite)
        return flags if out is not None else flags > 0

    def distances(self, X: Any) -> np.ndarray:
        """Score distance, in standard deviations, and orthogonal distance of each row: (n, 2), in memory.

        The axes of an outlier map; their cut-offs are `cutoffs_`.
        """
        check_is_fitted(self)
        apply = partial(_distances, self.subspace_)
        fill = self.subspace_.mean if self.missing == "mean" else None
        function = RowFunction(apply, 2, "distances", self.subspace_.present, fill, self._identity("distances"))
        return np.asarray(self._applied(X, function))

    def plot_outliers(self, X: Any, out: str | PathLike[str]) -> None:
        """Draw the outlier map of X (Hubert, Rousseeuw and Vanden Branden 2005) and write it as a PNG file."""
        from pipeline.report.figures import outliers  # Matplotlib takes a second to import

        picture = outliers(self.distances(X), self.cutoffs_)
        Path(out).write_bytes(base64.b64decode(picture.uri.partition(",")[2]))

    def _identity(self, what: str) -> str:
        return f"{what} {self.get_params()} {self.subspace_.fingerprint()}"

    def decompose(
        self, X: Any, low_rank: str | PathLike[str] | None = None, sparse: str | PathLike[str] | None = None
    ) -> tuple[Any, Any]:
        """The low-rank and the sparse part of X (n, d) each; for 'pcp' and 'dpd'.

        Parameters
        ----------
        X : as in `fit`
        low_rank, sparse : path, optional
            Zarr stores to write the parts to block by block; they come back lazily opened. Without, in memory, in the
            kind of container that X is.

        Returns
        -------
        low_rank, sparse
            X less both is what is left: noise. Entries of the sparse part are zero wherever the low rank explains X.
        """
        check_is_fitted(self)
        if "entries" not in self.subspace_.provenance:
            raise InputError(f"method={self.method!r} judges rows, not entries: take 'pcp' or 'dpd' to decompose")
        features = self.subspace_.features or Labels.plain("feature", self.subspace_.n_features)
        parts = []
        for i, (name, out) in enumerate({"low_rank": low_rank, "sparse": sparse}.items()):
            apply = partial(_part, self.subspace_, i)
            function = RowFunction(
                apply,
                features.size,
                name,
                self.subspace_.present,
                identity=self._identity(name),
                across=features,
                infinite=not self.subspace_.present.all(),
            )
            parts.append(self._applied(X, function, out))
        return parts[0], parts[1]


def _part(subspace: Subspace, i: int, rows: np.ndarray) -> np.ndarray:
    return split_rows(subspace, rows)[i].astype(np.float32 if rows.dtype == np.float32 else np.float64)


def _distances(subspace: Subspace, rows: np.ndarray) -> np.ndarray:
    return distances_of(subspace, looked(subspace, rows))


def _flag(subspace: Subspace, fill: bool, rows: np.ndarray) -> np.ndarray:
    return (_outlier_score(subspace, fill, rows) > 1).astype(np.float64)


def _outlier_score(subspace: Subspace, fill: bool, rows: np.ndarray) -> np.ndarray:
    """Scores of rows; with `fill` gaps are as the mean, and rows that are mostly gaps are infinitely far."""
    scores = np.full(len(rows), np.inf)
    kept = np.arange(len(rows))
    if fill:
        rows, kept = Filled(subspace.mean)(rows, kept)
    scores[kept] = scores_of(subspace, looked(subspace, rows), subspace.provenance["robust"])
    if "cuts" in subspace.provenance:
        for cut in read_cuts(subspace.provenance["cuts"]).cuts:
            ratio = np.sqrt(cut.squares(rows) / cut.threshold) if cut.threshold > 0 else np.full(len(rows), np.inf)
            out = ratio >= 1
            scores[kept[out]] = np.maximum(scores[kept[out]], np.maximum(ratio[out], np.nextafter(1, 2)))
    return scores
