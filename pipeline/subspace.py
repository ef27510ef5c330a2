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

from pipeline.errors import InputError, NonfiniteError
from pipeline.flag import Flag, checked_type
from pipeline.kernels.blocks import careful, doubled, magnitudes, working_dtype
from pipeline.kernels.em import imputed
from pipeline.kernels.implicit import ImplicitBlock
from pipeline.kernels.linalg import fix_signs, orthonormal, principal_angles
from pipeline.kernels.sparse import SparseBlock, as_compressed
from pipeline.labels import Labels

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Subspace"]

_TINY = np.finfo(float).tiny


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
        self._check_same_features(other)
        return principal_angles(_wide(self.basis), _wide(other.basis))

    def align(self, other: Subspace) -> Subspace:
        """The same subspace with its components turned to lie as near as they can to those of `other`.

        The turn is the orthogonal Procrustes rotation (Schönemann 1966); singular values become the norms of the turned
        score columns, so that scores of two versions can be compared.
        """
        self._check_same_features(other)
        if other.k < self.k:
            raise InputError(f"cannot align {self.k} components to {other.k}: truncate({other.k}) first")
        if self.turn is not None:
            return self.principal.align(other)
        a, b = _wide(self.basis), _wide(other.basis)
        u, _, vt = np.linalg.svd(b[: self.k] @ a.conj().T)
        turn = u @ vt
        squares = np.square(self.singular_values, dtype=np.float64)
        moments = (turn * squares) @ turn.conj().T
        values = np.sqrt(np.maximum(np.diag(moments).real, 0.0))
        coupling = np.linalg.norm(moments - np.diag(np.diag(moments)), axis=1)
        outside = np.sqrt(magnitudes(turn) @ (self.residual * squares) ** 2)
        components = (turn @ np.where(self.present, self.components, 0)).astype(self.components.dtype)
        return replace(
            self,
            components=np.where(self.present, components, np.nan).astype(self.components.dtype),
            singular_values=values,
            residual=np.hypot(coupling, outside) / np.maximum(values**2, np.finfo(float).tiny),
            # A turn mixes the components: what is certified is their whole span, and so every part of it is not.
            angle_bounds=np.append(np.full(self.k - 1, np.pi / 2), self.angle_bound)[: self.k],
            turn=turn * np.asarray(self.singular_values, np.float64),
        )

    @property
    def principal(self) -> Subspace:
        """The same subspace with principal components, in which the scores are uncorrelated: no longer turned."""
        turn = self.turn
        if turn is None or not np.allclose(np.linalg.norm(turn, axis=1), self.singular_values, rtol=1e-6):
            return self if turn is None else replace(self, turn=None)
        left, values, _ = np.linalg.svd(turn, full_matrices=False)
        components = left.conj().T @ _wide(self.basis)
        components = components * fix_signs(components)[:, None]
        return replace(
            self,
            components=np.where(self.present, components, np.nan).astype(self.components.dtype),
            singular_values=values,
            residual=np.full(self.k, float(np.max(self._outside(), initial=0.0))) / np.maximum(values**2, _TINY),
            angle_bounds=np.append(np.full(self.k - 1, np.pi / 2), self.angle_bound)[: self.k],
            turn=None,
        )

    def _outside(self) -> np.ndarray:
        """(k,) norms of what C maps out of the span, as far as the residuals tell; a turn stays inside."""
        squares = np.square(self.singular_values, dtype=np.float64)
        if self.turn is None:
            return self.residual * squares
        moments = self.turn @ self.turn.conj().T
        coupling = np.linalg.norm(moments - np.diag(np.diag(moments)), axis=1)
        return np.sqrt(np.maximum((self.residual * squares) ** 2 - coupling**2, 0.0))

    def truncate(self, k: int) -> Subspace:
        """The first k components; raises InputError when k is not in 1..self.k."""
        if not 1 <= k <= self.k:
            raise InputError(f"cannot keep {k} of {self.k} components: choose 1 to {self.k}")
        return replace(
            self,
            components=self.components[:k],
            singular_values=self.singular_values[:k],
            residual=self.residual[:k],
            angle_bounds=self.angle_bounds[:k],
            turn=None if self.turn is None else self.turn[:k],
            left_out=self.left_out if k == self.k else self._left_out(k),
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
        if self.turn is not None or other.turn is not None:
            return self.principal.merge(other.principal, n_components)
        self._check_mergeable(other)
        n = self.n_samples + other.n_samples
        gap = (np.where(self.present, self.mean, 0.0) - np.where(other.present, other.mean, 0.0)) * self.factor
        shift = np.sqrt(self.n_samples * other.n_samples / n) if n else 0.0
        rows = [s.singular_values[:, None] * _wide(s.basis) for s in (self, other)]
        if self.centered:
            rows.append(shift * gap[None, :])
        stacked = np.concatenate(rows)
        # The SVD of a few long rows through the QR of their transpose: d x r, never d x d.
        q = orthonormal(stacked.conj().T)
        _, values, vt = np.linalg.svd(stacked @ q, full_matrices=False)
        spread = sum(s.total_variance * s.dof for s in (self, other)) + shift**2 * float(np.vdot(gap, gap).real)
        mean = (self.n_samples * self.mean + other.n_samples * other.mean) / n if n else self.mean
        dof = max(n - 1.0, 0.0) if self.centered else n
        k = min(n_components or max(self.k, other.k), values.size)
        tails = self._tails() + other._tails()
        tail = float(tails.sum())
        dtype = _like(self.components.dtype, other.components)
        components = (vt[:k] @ q.conj().T).astype(dtype)
        components = components * fix_signs(components)[:, None].astype(dtype)
        squares = np.append(values**2, 0.0)
        room = squares[:k] - squares[1 : k + 1] - tail
        sine = np.divide(tail, room, out=np.ones(k), where=room > tail)
        return replace(
            self,
            components=np.where(self.present, components, np.nan).astype(dtype),
            singular_values=values[:k],
            mean=mean,
            n_samples=n,
            total_variance=spread / dof if dof else 0.0,
            residual=tail / np.maximum(squares[:k], max(1e-16 * float(squares[0]), np.finfo(float).tiny)),
            angle_bounds=np.arcsin(np.clip(sine, 0.0, 1.0)),
            passes=max(self.passes, other.passes),
            left_out=tails + np.array([squares[k], 0.0]),
        )

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
        rows = rows.toarray() if hasattr(rows, "toarray") else np.atleast_2d(np.asarray(rows))
        rows = rows.astype(doubled(rows.dtype), copy=False)
        self._check_width(rows)
        values = rows[:, self.present]
        if not np.isfinite(values).all():
            raise NonfiniteError("rows to update with hold NaN or Inf: fill or leave out those samples")
        counts = np.ones(len(rows)) if sample_weights is None else np.asarray(sample_weights, np.float64)
        if counts.shape != (len(rows),) or not np.isfinite(counts).all() or (counts < 0).any():
            raise InputError(f"sample_weights must be {len(rows)} finite numbers that are not negative")
        n, mean = float(counts.sum()), np.full(self.n_features, np.nan, rows.dtype)
        pilot = values[0] if len(rows) else 0.0
        mean[self.present] = pilot + (counts / n) @ (values - pilot) if n else 0.0
        spread = (np.where(self.present, rows, 0.0) - np.where(self.present, mean, 0.0)) * self.factor
        z = spread if self.centered else np.where(self.present, rows, 0.0) * self.factor
        roots = np.sqrt(counts)[:, None]
        _, s, vt = np.linalg.svd(z * roots, full_matrices=False)
        part = replace(self, mean=mean, n_samples=n, turn=None, left_out=None)
        return replace(
            part,
            components=vt,
            singular_values=s,
            total_variance=float(magnitudes(spread * roots).sum() / part.dof) if part.dof else 0.0,
            residual=np.zeros(s.size),
            angle_bounds=np.zeros(s.size),
        )

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
        self._check_width(rows)
        own = _like(working_dtype(rows.dtype), lens)
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
        dtype = _like(working_dtype(scores.dtype), self.components)
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
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

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

    def _tail(self) -> float:
        """Bound on the spectral norm of what the kept components leave of Z^T Z."""
        return float(self._tails().sum())

    def _tails(self) -> np.ndarray:
        """Bounds on the norms of the two parts of it: what was left out, and what couples with the components.

        Merging adds the parts up. The first one is positive semidefinite, so that its trace, which is known, bounds it.
        """
        squares = np.square(self.singular_values, dtype=np.float64)
        energy = self.total_variance * self.dof
        if not self.centered:
            energy += self.n_samples * float(magnitudes(np.where(self.present, self.mean, 0) * self.factor).sum())
        rest = max(energy - float(squares.sum()), 0.0) + 1e-14 * energy
        if self.left_out is not None:
            return np.array([min(rest, float(self.left_out[0])), float(self.left_out[1])])
        return np.array([min(rest, float(squares.min(initial=np.inf))), float(np.max(self._outside(), initial=0.0))])

    def _left_out(self, k: int) -> np.ndarray | None:
        """What is left out when only the first k components stay; None where the residuals tell."""
        if self.left_out is None and self.turn is None:
            return None
        factor = np.diag(np.asarray(self.singular_values, np.float64)) if self.turn is None else self.turn
        dropped = np.linalg.norm(factor[k:], 2) ** 2, np.linalg.norm(factor[:k] @ factor[k:].conj().T, 2)
        return self._tails() + np.array(dropped)

    def _check_width(self, rows: np.ndarray) -> None:
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise InputError(f"rows of shape {rows.shape}: the subspace has {self.n_features} features")

    def _check_same_features(self, other: Subspace) -> None:
        if self.n_features != other.n_features:
            raise InputError(f"the subspaces have {self.n_features} and {other.n_features} features")

    def _check_mergeable(self, other: Subspace) -> None:
        self._check_same_features(other)
        for name in ("scale", "weights", "centered"):
            if not _same(getattr(self, name), getattr(other, name)):
                raise InputError(f"cannot merge: the subspaces were fitted with different {name}")
        if not np.array_equal(self.present, other.present):
            raise InputError("cannot merge: the subspaces miss different features")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, Labels) and isinstance(b, Labels):
        return a.equals(b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return False
    return bool(a == b)


def _wide(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, doubled(values.dtype))


def _like(dtype: np.dtype[Any], other: np.ndarray) -> np.dtype[Any]:
    """The dtype, complex where the other values are."""
    return np.result_type(dtype, np.complex64) if other.dtype.kind == "c" else dtype


def _open(angle: float) -> bool:
    """Whether a bound says nothing."""
    return bool(angle > np.pi / 2 - 1e-9)
