"""Zarr stores by their URL: object stores through `obstore` where it is installed, all others through `fsspec`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from urllib.parse import urlsplit

from zarr.abc.store import Store
from zarr.storage import FsspecStore

from pipeline.errors import StoreError

__all__ = ["is_objects", "open_url"]

_OBJECTS = ("s3", "s3a", "gs", "az", "abfs", "abfss")


def is_objects(url: str) -> bool:
    """Whether a URL names an object store.

    Examples
    --------
    >>> is_objects("s3://bucket/x.zarr"), is_objects("https://host/x.zarr")
    (True, False)
    """
    return urlsplit(url).scheme in _OBJECTS


def open_url(url: str, read_only: bool = True) -> Store:
    """The Zarr store at a URL; keys, region and endpoint come from the environment (AWS_…).

    Raises StoreError when the URL is not known, or what it needs is not installed.
    """
    try:
        if is_objects(url) and find_spec("obstore") is not None:
            return _open_objects(url, read_only)
        return FsspecStore.from_url(url, read_only=read_only)
    except (ImportError, ValueError, OSError) as error:
        wanted = ": pip install 'subspace-pipeline[s3]'" if is_objects(url) and isinstance(error, ImportError) else ""
        raise StoreError(f"{url} cannot be opened: {error}{wanted}") from error


def _open_objects(url: str, read_only: bool) -> Store:
    from obstore.exceptions import BaseError
    from obstore.store import from_url
    from zarr.storage import ObjectStore

    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    try:
        return ObjectStore(from_url(url, client_options={"allow_http": True} if plain else None), read_only=read_only)
    except BaseError as error:
        raise ValueError(str(error).splitlines()[0]) from error
