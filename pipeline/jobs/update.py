"""`update_model`: a stored model follows its data: new rows are added, known ones are not read again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.driver import check_entries
from pipeline.errors import InputError, NonfiniteError, StoreError
from pipeline.estimators.pca import PCA
from pipeline.estimators.robust_pca import RobustPCA
from pipeline.estimators.truncated_svd import TruncatedSVD
from pipeline.folds import Content, Witness
from pipeline.folds.factors import RowFactor
from pipeline.jobs.run import check_outputs, open_source
from pipeline.jobs.spec import SourceSpec
from pipeline.kernels.content import piece_edges
from pipeline.matrix import Matrix
from pipeline.provenance import provenance, whereabouts
from pipeline.store import history, load, save
from pipeline.subspace import Subspace
from pipeline.updating import aligned, check_change, discounted, subtracted
from pipeline.walk import walk

__all__ = ["Updated", "content_of", "update_model"]

_ROOM = 16  # components that are kept of new rows beyond those that the model has, twice over


@dataclass(frozen=True)
class Updated:
    """What an update came to: the version that is the head now, and how many rows were added (or taken away)."""

    place: str
    version: int
    rows: int
    subspace: Subspace

    def __str__(self) -> str:
        if not self.rows:
            return f"nothing new: {self.place} has seen all of these rows; it stays at version {self.version}"
        what = f"{self.rows} rows added" if self.rows > 0 else f"{-self.rows} rows taken away"
        return f"version {self.version}, {what}: {self.subspace}"


def update_model(
    model: str,
    source: SourceSpec | Any,
    *,
    forget: float = 1.0,
    remove: bool = False,
    align: str | None = None,
    out: str | None = None,
) -> Updated:
    """Bring a stored model up to date with a source, as a new version whose parent is the head.

    Rows that the model has seen are known by where they are stored, as long as nothing there was written since, and
    else by what they hold. The same rows again make no new version.

    Parameters
    ----------
    model : str
        Path or URL.
    source : SourceSpec, or anything that `open_matrix` opens
        A store that has grown along its samples, or new samples in a place of their own.
    forget : float
        What all samples before count from now on, in (0, 1].
    remove : bool
        Take the samples of the source, which were added once, away again.
    align : {None, 'procrustes'}
        Turn the components to lie as near as they can to those of the version before.
    out : str, optional
        Where to write the result as a first version, instead.

    Raises
    ------
    InputError
        When the source does not fit the model, rows that the model has seen have changed, or it is a robust fit.
    ConflictError
        When somebody else has published meanwhile: run it again.
    StoreError
        When the model cannot be read or written.
    """
    _check(model, forget, remove, align, out)
    head = history(model).head
    S = load(model, head)
    if S.provenance.get("method") == RobustPCA.__name__:
        raise InputError(f"{model} is a robust fit, and an update takes rows as they are: fit it anew (--overwrite)")
    X = _opened(S, source)
    seen = list(S.provenance.get("seen", []))
    if remove:
        rows = -X.shape[0]
        gone, content = _summary(S, X)
        if not _known(content, seen):
            raise InputError(f"{model} has not seen these rows of {X.name} as one batch: nothing can be taken away")
        new, seen = subtracted(S, gone), [batch for batch in seen if Content.of(batch).id != content.id]
    else:
        start = _begin(S, X, seen)
        part = X.rows(start, X.shape[0])
        rows = part.shape[0]
        if rows:
            found, content = _summary(S, part)
            rows = 0 if _known(content, seen) else rows
        if not rows:
            return Updated(out or model, _number(model, head), 0, S)
        new = discounted(S, forget).merge(found, n_components=S.k)
        seen.append({**content.plain(), **whereabouts(X, X.shape[0], start)})
    new = aligned(new, S, align)
    change = {"rows": rows, "forget": forget, "align": align}
    new = replace(new, provenance={"solver": "update", "parent": head, "change": change, "seen": seen})
    method, parameters = S.provenance.get("method", "PCA"), S.provenance.get("parameters", {})
    new = provenance(new, method, parameters, X, content=content)
    if out is not None:
        version = save(new, out, kind="update")
    else:
        version = save(new, model, overwrite=True, parent=head, kind="update")
    return Updated(out or model, version.number, rows, new)


def _check(model: str, forget: float, remove: bool, align: str | None, out: str | None) -> None:
    """What can be refused before anything is read."""
    check_change(forget, align)
    if remove and forget != 1:
        raise InputError("rows are taken away, or those before forgotten, not both at once: do one after the other")
    if out is not None:
        if "://" not in out and Path(out).exists():
            raise StoreError(f"{out} exists already: choose another place")
        check_outputs([out], model)


def _number(model: str, id: str) -> int:
    return next(v.number for v in history(model).versions if v.id == id)


def _opened(S: Subspace, source: Any) -> Matrix:
    """The source as a Matrix with the features of the model, found by name where there are names."""
    kind = TruncatedSVD if S.provenance.get("method") == "TruncatedSVD" else PCA
    estimator = kind.from_subspace(S)
    if isinstance(source, SourceSpec):
        source = source.path if source == SourceSpec(path=source.path) else open_source(source)
    X = estimator.matrix(source)
    if X.sample_weights is not None and X.sample_weights.shape != (X.shape[0],):
        raise InputError("sample_weights do not fit the samples")
    return X.filled(S.mean) if estimator.missing == "mean" else X


def _begin(S: Subspace, X: Matrix, seen: list[dict[str, Any]]) -> int:
    """The first row that the model has not seen, where the source is one that it has followed so far."""
    here = whereabouts(X, X.shape[0])
    followed = [b for b in seen if (b.get("name"), b.get("view")) == (here["name"], here["view"])]
    if not followed:
        followed = _of_the_same_rows(S, X, seen)
    if not followed:
        return 0
    stop = max(b["rows"][1] for b in followed)
    if stop > X.shape[0]:
        if all(b["rows"][0] for b in followed):
            return 0
        raise InputError(
            f"{X.name} has {X.shape[0]} rows, and the model has seen {stop} of them: rows cannot vanish from a source "
            "that is followed; give other data a place of its own"
        )
    last = max(followed, key=lambda b: b["rows"][1])
    if not last.get("stamp") or last["stamp"] != whereabouts(X, stop)["stamp"]:
        _check_unchanged(S, X, followed)
    return int(stop)


def _of_the_same_rows(S: Subspace, X: Matrix, seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The batches of a source that begins with the same rows as this one, but is stored elsewhere."""
    for batch in seen:
        a, b = batch.get("rows", [1, 0])
        if a == 0 and 0 < b < X.shape[0] and content_of(X, Content.of(batch)).id == Content.of(batch).id:
            return [o for o in seen if (o.get("name"), o.get("view")) == (batch["name"], batch["view"])]
    return []


def _check_unchanged(S: Subspace, X: Matrix, followed: list[dict[str, Any]]) -> None:
    for batch in followed:
        a, b = batch["rows"]
        known = Content.of(batch)
        if content_of(X.rows(a, b), known).id != known.id:
            raise InputError(
                f"rows {a} to {b} of {X.name} are no longer those that the model has seen: fit it anew, or take the "
                "old rows away first"
            )


def content_of(X: Matrix, like: Content) -> Content:
    """What the rows of X hold, cut as another content."""
    witness = Witness(_Nothing(X.seen_dtype), *X.shape, edges=like.edges)
    return witness.content(walk(X.rows(0, int(like.edges[-1])), witness)[0])


@dataclass(frozen=True, eq=False)
class _Nothing:
    """Fold to nothing: the rows are only looked at."""

    dtype: np.dtype[Any]
    side: int = 0

    def block(self, x: np.ndarray, at: tuple[int, int], held: int | None, scratch: dict[str, Any]) -> int:
        return 0

    def combine(self, a: int, b: int) -> int:
        return 0


def _summary(S: Subspace, X: Matrix) -> tuple[Subspace, Content]:
    """The subspace of some rows, and what they hold: each is read once."""
    n, d = X.shape
    like = replace(S.principal, features=None, provenance={})
    width = min(n, d, 2 * (S.k + _ROOM))
    fold = RowFactor(X.block_dtype, like, width, X.sample_weights)
    witness = Witness(fold, n, d, piece_edges(0, n, d), X.seen_dtype)
    try:
        found, _ = walk(X, witness)
    except NonfiniteError as error:
        check_entries(X, S.present)
        raise InputError(f"{X.name}: {error}") from error
    return found.summary, witness.content(found)


def _known(content: Content, seen: list[dict[str, Any]]) -> bool:
    return any(Content.of(batch).id == content.id for batch in seen)
