"""What a store of unknown origin may not ask of whoever opens it: to run code, or to hold what no machine can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import zarr
from dask.utils import format_bytes

from pipeline.errors import StoreError

__all__ = ["check_trusted"]

_LARGEST_ARRAY, _LARGEST_CHUNK = 1 << 50, 1 << 38  # bytes
_RUNS_CODE = ("pickle", "dill", "cloudpickle", "marshal", "pyfunc")


def check_trusted(node: Any, name: str) -> None:
    """Raise StoreError, with the key, where an array of a store cannot be opened in safety; nothing is read.

    Parameters
    ----------
    node : zarr Array or Group
        Of a group, the arrays that lie in it are looked at.
    name : str
        Of the store, for messages.
    """
    if isinstance(node, zarr.Group):
        try:
            arrays = list(node.arrays())
        except Exception as error:  # metadata of unknown origin: whatever is wrong with them, they are not opened
            raise StoreError(f"{name} holds an array that cannot be opened: {str(error).splitlines()[0]}") from error
        for key, array in arrays:
            _check(array, f"{name}/{key}")
    elif isinstance(node, zarr.Array):
        _check(node, name)


def _check(array: zarr.Array[Any], key: str) -> None:
    metadata = array.metadata.to_dict()
    for codec in _codecs([part for word, part in metadata.items() if word not in ("attributes", "dimension_names")]):
        if any(word in codec.lower() for word in _RUNS_CODE):
            raise StoreError(
                f"{key} needs the codec {codec}, which runs code that comes with the data: it is not opened"
            )
    itemsize = max(array.dtype.itemsize, 1)
    for what, shape, most in (("", array.shape, _LARGEST_ARRAY), ("chunks of ", array.chunks, _LARGEST_CHUNK)):
        if prod(map(int, shape)) * itemsize > most:
            size = format_bytes(min(prod(map(int, shape)) * itemsize, 2**60))
            raise StoreError(f"{key} declares {what}{' x '.join(map(str, shape))} entries ({size}): it is not opened")


def _codecs(metadata: Any) -> Iterator[str]:
    """The names of all codecs, those inside of others too."""
    if isinstance(metadata, Mapping):
        for word in ("id", "name", "object_codec_id"):
            if isinstance(metadata.get(word), str):
                yield metadata[word]
        for part in metadata.values():
            yield from _codecs(part)
    elif isinstance(metadata, list | tuple):
        for part in metadata:
            yield from _codecs(part)
