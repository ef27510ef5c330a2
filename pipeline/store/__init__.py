"""Where models are kept: `save` publishes a subspace as a version in a Zarr v3 store, `load` gives it back."""

from __future__ import annotations

from pipeline.store.dataset import from_dataset, to_dataset
from pipeline.store.head import Version
from pipeline.store.history import History, commit, expire, history, provenance_of, rollback, tag
from pipeline.store.read import Place, load
from pipeline.subspace import Subspace

__all__ = [
    "History",
    "Version",
    "expire",
    "from_dataset",
    "history",
    "load",
    "provenance_of",
    "rollback",
    "save",
    "tag",
    "to_dataset",
]


def save(
    subspace: Subspace, store: Place, overwrite: bool = False, *, parent: str | None = None, kind: str = "fit"
) -> Version:
    """Write a subspace to a store, whole or not at all.

    Parameters
    ----------
    subspace : Subspace
        What is written.
    store : str, PathLike, zarr Store
        A path on a local disk, the URL of an object store, `icechunk:` and the path or URL of a repository, or an open
        store.
    overwrite : bool
        Put a new version in the place of the head, which stays in the history; whoever reads it meanwhile gets the old
        one or the new one.
    parent : str, optional
        Id of the version that must be the head still.
    kind : str
        What made the version.

    Returns
    -------
    Version
        What the history says of it.

    Raises
    ------
    InputError
        When names or values of the feature coordinates cannot be stored.
    ConflictError
        When somebody else has published meanwhile.
    StoreError
        When something is there already, or writing fails: what was there before stays as it was.
    """
    return commit(to_dataset(subspace), store, overwrite, parent=parent, kind=kind)
