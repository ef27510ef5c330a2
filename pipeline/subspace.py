"""`Subspace`: the answer of every solver as an immutable value, and the algebra on such values.

With D = diag(weights / scale) a matrix X (n x d) is seen as Z = (X - 1 mean^T) D; a subspace holds the leading
triplets Z v_i = s_i u_i. Everything here follows from the s_i, the v_i (rows of `components`) and the mean.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import issparse

from pipeline.errors import InputError
from pipeline.flag import Flag, checked_type
from pipeline.kernels.blocks import careful, doubled, like, magnitudes, working_dtype
from pipeline.kernels.em import imputed
from pipeline.kernels.implicit import ImplicitBlock
from pipeline.kernels.linalg import principal_angles
from pipeline.kernels.sparse import SparseBlock, as_compressed
from pipeline.labels import Labels

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Subspace", "same"]


@dataclass(frozen=True, eq=False)
class Subspace:
    """A dominant subspace: mean, components and singular values, with the certificate of their accuracy.

    Parameters
    ----------
    components : (k, d) array
        Orthonormal rows in weighted, scaled units; NaN at features that were NaN in every sample.
    singular_values : (k,) array
        Largest first; the norms of the score columns.
    mean : (d,) array
        Sample mean in the data's own units; NaN at features that were NaN in every sample.
    n_samples : float
        Number of samples, or the sum of their weights.
    total_variance : float
        Sum over the features of the variance about the mean, in weighted, scaled units, over `dof`.
    residual : (k,) array
        ||Z^T u - s v|| / s of each component: 0 for an exact triplet.
    angle_bounds : (k,) array
        Entry j bounds the largest principal angle (radians) between the first j + 1 components and the true ones.
    scale, weights : (d,) array, optional
        What features were divided and multiplied by.
    centered : bool
        Whether the mean was subtracted (it was not for a truncated SVD).
    passes : int
        Times that the data was read.
    features : Labels, optional
        Dims and coordinates of the features.
    provenance : dict
        Method, parameters, source, seed, versions: plain JSON values.
    turn : (k, p) array, optional
        T diag(s) where the components are principal ones, with singular values s, turned by T (see `align`).
    left_out : (2,) array, optional
        Bounds on the norm of what merges have left out of Z^T Z, and of its coupling with the components.

    Examples
    --------
    >>> S = Subspace(components=np.eye(3)[:2], singular_values=np.array([3.0, 2.0]), mean=np.zeros(3), n_samples=10,
    ...              total_variance=2.0, residual=np.zeros(2), angle_bounds=np.zeros(2))
    >>> S.explained_variance_ratio.round(3).tolist(), S.truncate(1).k
    ([0.5, 0.222], 1)
    >>> S.project(np.array([[1.0, 2.0, 3.0]])).tolist()
    [[1.0, 2.0]]
    """

    components: np.ndarray
    singular_values: np.ndarray
    mean: np.ndarray
    n_samples: float
    total_variance: float
    residual: np.ndarray
    angle_bounds: np.ndarray
    scale: np.ndarray | None = None
    weights: np.ndarray | None = None
    centered: bool = True
    passes: int = 0
    features: Labels | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    turn: np.ndarray | None = None
    left_out: np.ndarray | None = None

    @property
    def k(self) -> int:
        """Number of components."""
        return int(self.components.shape[0])

    @property
    def n_features(self) -> int:
        """Number of features, those without any value included."""
        return int(self.components.shape[1])

    @property
    def dof(self) -> float:
        """What sums of squares are divided by: n - 1 with centring, n without (as in scikit-learn)."""
        return max(self.n_samples - 1.0, 0.0) if self.centered else self.n_samples

    @property
    def angle_bound(self) -> float:
        """Certified bound, in radians, on the largest principal angle to the true subspace; pi/2: nothing is known."""
        return float(self.angle_bounds[-1]) if self.k else 0.0

    @cached_property
    def present(self) -> np.ndarray:
        """(d,) bool: the features that have values."""
        return np.isfinite(self.mean)

    @cached_property
    def basis(self) -> np.ndarray:
        """(k, d) components with zeros where there is no feature."""
        return self.components if self.present.all() else np.where(self.present, self.components, 0)

    @property
    def wide_basis(self) -> np.ndarray:
        """(k, d) the same in double precision."""
        return np.asarray(self.basis, doubled(self.basis.dtype))

    @cached_property
    def factor(self) -> np.ndarray:
        """(d,) weights / scale, the diagonal of D; zero where there is no feature."""
        factor = np.where(self.present, 1.0, 0.0)
        if self.weights is not None:
            factor = factor * np.where(self.present, self.weights, 0.0)
        if self.scale is not None:
            factor = factor / np.where(self.present, self.scale, 1.0)
        return factor

    @cached_property
    def offset(self) -> np.ndarray:
        """(d,) what is subtracted from a sample: the mean, or zeros without centring."""
        return np.where(self.present, self.mean, 0.0) if self.centered else np.zeros(self.n_features)

    @property
    def explained_variance(self) -> np.ndarray:
        """(k,) variance of the score columns."""
        if self.dof <= 0:
            return np.zeros(self.k)
        squares = np.square(self.singular_values, dtype=np.float64)
        if not self.centered:
            middle = self.basis.conj() @ (np.where(self.present, self.mean, 0.0) * self.factor)
            squares = np.maximum(squares - self.n_samples * magnitudes(middle), 0.0)
        return squares / self.dof

    @property
    def explained_variance_ratio(self) -> np.ndarray:
        """(k,) share of the total variance; zeros where there is none."""
        if not self.total_variance > 0:
            return np.zeros(self.k)
        return self.explained_variance / self.total_variance

    @property
    def unexplained_variance(self) -> float:
        """Variance outside the subspace, in the units of `total_variance`."""
        return max(float(self.total_variance - self.explained_variance.sum()), 0.0)

    def distance(self, other: Subspace) -> np.ndarray:
        """Principal angles in radians, largest first, to another subspace of the same features.

        Raises
        ------
        InputError
            When the numbers of features differ.
        """
        self.check_same_features(other)
        return principal_angles(self.wide_basis, other.wide_basis)

    def align(self, other: Subspace) -> Subspace:
        """The same subspace with its components turned to lie as near as they can to those of `other`.

        The turn is the orthogonal Procrustes rotation (Schönemann 1966); singular values become the norms of the turned
        score columns, so that scores of two versions can be compared.
        """
        from pipeline.turning import turned

        return turned(self, other)

    @property
    def principal(self) -> Subspace:
        """The same subspace with principal components, in which the scores are uncorrelated: no longer turned."""
        from pipeline.turning import principal

        return principal(self)

    def truncate(self, k: int) -> Subspace:
        """The first k components; raises InputError when k is not in 1..self.k."""
        if not 1 <= k <= self.k:
            raise InputError(f"cannot keep {k} of {self.k} components: choose 1 to {self.k}")
        from pipeline.merging import left_out

        return replace(
            self,
            components=self.components[:k],
            singular_values=self.singular_values[:k],
            residual=self.residual[:k],
            angle_bounds=self.angle_bounds[:k],
            turn=None if self.turn is None else self.turn[:k],
            left_out=self.left_out if k == self.k else left_out(self, k),
        )

    def flag(self, flag_type: Any) -> Flag:
        """Its first d_1 < d_2 < … components as nested subspaces, for `Flag.distance`, `Flag.mean`, `Flag.median`.

        Raises InputError where the dimensions do not increase, or are more than there are components.
        """
        kind = checked_type(flag_type, self.k)
        return Flag(kind, self.basis[: kind[-1]])

    def merge(self, other: Subspace, n_components: int | None = None) -> Subspace:
        """The subspace of both sets of samples together (Iwen and Ong 2016, with means).

        Exact when both kept every direction of their data; the certificate says what truncated tails may have changed.

        Parameters
        ----------
        other : Subspace
            Of the same features, with the same weights, scale and centring.
        n_components : int, optional
            How many to keep; default: the larger of the two.

        Raises
        ------
        InputError
            When features, weights, scale or centring differ.
        """
        from pipeline.merging import merged

        return merged(self, other, n_components)

    def update(
        self,
        rows: np.ndarray,
        *,
        sample_weights: np.ndarray | None = None,
        forget: float = 1.0,
        align: str | None = None,
    ) -> Subspace:
        """The subspace after more samples, from which nothing old is read again.

        Exact when the kept components hold all the variance; otherwise the certificate says what may have been lost.

        Parameters
        ----------
        rows : (m, d) array or sparse matrix
            In the data's own units.
        sample_weights : (m,) array, optional
            How much each of them counts.
        forget : float
            What the samples before count from now on, in (0, 1]: 1, as much as ever.
        align : {None, 'procrustes'}
            Turn the components to lie as near as they can to those of now, so that scores can be compared.

        Raises
        ------
        InputError
            When the width differs, or entries are NaN or Inf.
        """
        from pipeline.updating import aligned, discounted

        grown = discounted(self, forget).merge(self.of_rows(rows, sample_weights), n_components=self.k)
        return aligned(grown, self, align)

    def downdate(
        self, rows: np.ndarray, *, sample_weights: np.ndarray | None = None, align: str | None = None
    ) -> Subspace:
        """The subspace without some of the samples (m, d) that it was made of: the inverse of `update`."""
        from pipeline.updating import aligned, subtracted

        return aligned(subtracted(self, self.of_rows(rows, sample_weights)), self, align)

    def extend(self, columns: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> Subspace:
        """The subspace of the same samples with more features (n, c) beside those of now.

        Parameters
        ----------
        columns : (n, c) array
            The new features of all samples, in their own units.
        scores : (n, k) array
            What `project` gave for these samples.
        weights : (c,) array, optional
            What the new features are multiplied by.
        """
        from pipeline.updating import extended

        return extended(self, columns, scores, weights)

    def reweigh(self, weights: np.ndarray) -> Subspace:
        """The subspace with other weights (d,) of the features."""
        from pipeline.updating import reweighed

        return reweighed(self, weights)

    def of_rows(self, rows: np.ndarray, sample_weights: np.ndarray | None = None) -> Subspace:
        """The exact, untruncated subspace of a few samples (m, d), with this one's weights, scale and centring."""
        from pipeline.merging import of_rows

        return of_rows(self, rows, sample_weights)

    def project(self, rows: Any) -> np.ndarray:
        """Scores (m, k) of samples (m, d) in the data's own units, (rows - mean) D components^H.

        Rows of single precision give scores of single precision; sparse ones are not made dense. Features that the
        subspace does not have are ignored. Raises InputError when the width differs.
        """
        lens = self.basis.conj().T * self.factor[:, None]
        if issparse(rows):
            rows = SparseBlock(as_compressed(rows))
        if hasattr(rows, "times"):
            return self._project_implicit(rows, lens)
        rows = np.atleast_2d(np.asarray(rows))
        self.check_width(rows)
        own = like(working_dtype(rows.dtype), lens)
        dtype = careful(own, 4 * rows.size)  # of large blocks a copy in double precision is dear
        # Subtract what the dtype can hold of the mean, then correct by the rest: nothing large cancels.
        pilot = self.offset.astype(dtype)
        rows = rows if self.present.all() else np.where(self.present, rows, 0)
        scores = (rows - pilot).astype(dtype, copy=False) @ lens.astype(dtype)
        return (scores - ((self.offset - pilot) @ lens).astype(dtype)).astype(own, copy=False)

    def _project_implicit(self, rows: ImplicitBlock, lens: np.ndarray) -> np.ndarray:
        if rows.shape[1] != self.n_features:
            raise InputError(f"rows of shape {rows.shape}: the subspace has {self.n_features} features")
        # Features that the subspace does not have may hold NaN, which a zero in the lens does not take away.
        lens = lens.astype(doubled(lens.dtype), copy=False)
        return rows.without(~self.present).times(lens) - self.offset @ lens

    def expected(self, rows: np.ndarray) -> np.ndarray:
        """Rows (m, d) with the value in the place of each NaN that probabilistic PCA expects, given the others.

        The model is that of the subspace in closed form (Tipping and Bishop 1999); features that the subspace does not
        have are left as they are.
        """
        missing = np.isnan(rows) & self.present
        holes = missing.any(axis=1)
        if not holes.any():
            return rows
        if "c" in (rows.dtype.kind, self.components.dtype.kind):
            raise InputError("complex rows have missing entries: missing='em' needs real numbers")
        n, some = max(self.n_samples, 1.0), np.flatnonzero(holes)
        variances = np.square(self.singular_values) / n
        energy = self.total_variance * self.dof / n
        if not self.centered:
            energy += float(np.square(np.where(self.present, self.mean, 0.0) * self.factor).sum())
        left = int(self.present.sum()) - self.k
        noise = max((energy - float(variances.sum())) / left if left > 0 else 0.0, 1e-12 * energy, 1e-300)
        loadings = self.basis.T.astype(np.float64) * np.sqrt(np.maximum(variances - noise, 0.0))
        seen = (~missing[some] & self.present & (self.factor != 0)).astype(np.float64)
        z = np.where(seen > 0, (rows[some] - self.offset) * self.factor, 0.0)
        stretch = np.divide(1.0, self.factor, out=np.zeros_like(self.factor), where=self.factor != 0)
        values = imputed(z, seen, loadings, noise) * stretch + self.offset
        filled = rows.copy()
        filled[some] = np.where(missing[some], values, rows[some])
        return filled

    def reconstruct(self, scores: np.ndarray) -> np.ndarray:
        """Samples (m, d) in the data's own units from scores (m, k); NaN where there is no feature."""
        scores = np.atleast_2d(np.asarray(scores))
        if scores.shape[1] != self.k:
            raise InputError(f"scores have {scores.shape[1]} columns, the subspace has {self.k} components")
        dtype = like(working_dtype(scores.dtype), self.components)
        stretch = np.divide(1.0, self.factor, out=np.zeros_like(self.factor), where=self.factor != 0)
        rows = scores.astype(dtype) @ (self.basis * stretch).astype(dtype) + self.offset.astype(dtype)
        return rows if self.present.all() else np.where(self.present, rows, np.nan).astype(dtype)

    def fingerprint(self) -> str:
        """A digest of all that scores depend on: equal for equal subspaces, whatever their provenance."""
        digest = hashlib.sha256(f"{self.components.dtype}{self.components.shape}{self.centered}".encode())
        for values in (self.components, self.singular_values, self.mean, self.scale, self.weights):
            digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def save(self, store: str | PathLike[str], overwrite: bool = False) -> None:
        """Write to a Zarr v3 store, whole or not at all (see `pipeline.store.save`)."""
        from pipeline.store import save  # the door to storage: imported when somebody goes through it

        save(self, store, overwrite=overwrite)

    def to_dataset(self) -> xr.Dataset:
        """The subspace as an xarray Dataset with dims `mode` and those of the features."""
        from pipeline.store.dataset import to_dataset

        return to_dataset(self)

    @staticmethod
    def from_dataset(ds: xr.Dataset) -> Subspace:
        """The inverse of `to_dataset`."""
        from pipeline.store.dataset import from_dataset

        return from_dataset(ds)

    def __eq__(self, other: object) -> bool:
        """Equal bit for bit, dtypes included; the attributes of coordinates do not count."""
        if not isinstance(other, Subspace):
            return NotImplemented
        return all(same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        bound = (
            "the angle is not certified" if _open(self.angle_bound) else f"sin(angle) <= {np.sin(self.angle_bound):.1e}"
        )
        return (
            f"Subspace: {self.k} components x {self.n_features} features from {self.n_samples:g} samples, "
            f"{100 * self.explained_variance_ratio.sum():.2f} % of the variance, {bound}, "
            f"{self.passes} pass{'es' * (self.passes != 1)}"
        )

    def _repr_html_(self) -> str:
        ratio, shown = self.explained_variance_ratio, min(self.k, 12)
        right, rows = "style='text-align:right;padding:.15em .8em'", []
        for i in range(shown):
            width = 100 * ratio[i] / max(ratio.max(), np.finfo(float).tiny)
            bar = f"<div style='background:#3b6ea5;height:.7em;width:{width:.1f}%'></div>"
            sine = "not separated" if _open(self.angle_bounds[i]) else f"{np.sin(self.angle_bounds[i]):.1e}"
            cells = (str(i + 1), f"{self.singular_values[i]:.5g}", f"{100 * ratio[i]:.2f} %")
            rows.append(
                "<tr>" + "".join(f"<td {right}>{cell}</td>" for cell in cells) + f"<td style='width:9em'>{bar}</td>"
                f"<td {right}>{self.residual[i]:.1e}</td><td {right}>{sine}</td></tr>"
            )
        heads = ("mode", "singular value", "variance", "", "residual", "sin angle of modes so far ≤")
        head = "".join(f"<th {right}>{name}</th>" for name in heads)
        more = f"<p>… and {self.k - shown} more</p>" if self.k > shown else ""
        return (
            f"<div><p><b>{html.escape(repr(self))}</b></p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>{more}</div>"
        )

    def check_width(self, rows: np.ndarray) -> None:
        """Raise InputError when rows (m, d) have another width."""
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise InputError(f"rows of shape {rows.shape}: the subspace has {self.n_features} features")

    def check_same_features(self, other: Subspace) -> None:
        """Raise InputError when the numbers of features differ."""
        if self.n_features != other.n_features:
            raise InputError(f"the subspaces have {self.n_features} and {other.n_features} features")


def same(a: Any, b: Any) -> bool:
    """Whether two fields of subspaces are equal bit for bit, NaN to NaN."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, Labels) and isinstance(b, Labels):
        return a.equals(b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return False
    return bool(a == b)


def _open(angle: float) -> bool:
    """Whether a bound says nothing."""
    return bool(angle > np.pi / 2 - 1e-9)
