"""Where models are kept: `save` publishes a subspace to a Zarr v3 store, `load` gives it back."""

from __future__ import annotations

from pipeline.store.dataset import from_dataset, to_dataset
from pipeline.store.publish import commit
from pipeline.store.read import Place, load
from pipeline.subspace import Subspace

__all__ = ["from_dataset", "load", "save", "to_dataset"]


def save(subspace: Subspace, store: Place, overwrite: bool = False) -> None:
    """Write a subspace to a store, whole or not at all.

    Parameters
    ----------
    subspace : Subspace
        What is written.
    store : str, PathLike, zarr Store
        A path on a local disk; a URL or an open Zarr store for a first version.
    overwrite : bool
        Replace the model that is there; whoever reads it meanwhile gets the old one or the new one.

    Raises
    ------
    InputError
        When names or values of the feature coordinates cannot be stored.
    StoreError
        When something is there already, or writing fails: what was there before stays as it was.
    """
    commit(to_dataset(subspace), store, overwrite=overwrite)
