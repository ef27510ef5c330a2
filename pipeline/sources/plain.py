"""`PlainChunks`: chunks of local files, decompressed where they are to be instead of copied there.

Zarr and its decoders make a chunk and copy it. Where a chunk is a file, its compressor one that `numcodecs` has, and
its entries lie in one piece of the block, `numcodecs` decompresses into the block itself: a quarter less time, and no
memory for the chunk beside the block. Whatever is not so, or damaged, is left to Zarr, which says what is wrong; but
not a chunk of Blosc that is cut off, for which its decoder would take whatever lies behind it in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc, zstd
from zarr.codecs import BloscCodec, BytesCodec, ZstdCodec
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import LocalStore

__all__ = ["PlainChunks"]

_WORTH = 256 << 10  # bytes of a chunk: smaller ones are decoded many at a time
_ZSTD = b"\x28\xb5\x2f\xfd"
_BLOSC_HEAD = 16  # bytes; the last four say how many the chunk has


@dataclass(frozen=True)
class PlainChunks:
    """The files of an array's chunks.

    Parameters
    ----------
    root : Path
        Folder of the array.
    metadata : ArrayV3Metadata
        Names the files.
    chunks : tuple of int
        Length of the chunks along each axis.
    axis : int
        Along which chunks follow each other in memory: those before it have chunks of length 1, those after it one.
    codec : {'zstd', 'blosc', 'raw'}
    """

    root: Path
    metadata: ArrayV3Metadata
    chunks: tuple[int, ...]
    axis: int
    codec: str

    @classmethod
    def of(cls, array: Any) -> PlainChunks | None:
        """Those of an array whose chunks are plain files that lie in one piece; None for others."""
        if not isinstance(array, zarr.Array) or type(array.store_path.store) is not LocalStore:
            return None
        metadata = array.metadata
        if not isinstance(metadata, ArrayV3Metadata) or array.size == 0:
            return None
        chunks = array.chunks
        codec = _codec(metadata.codecs, array.dtype)
        axis = next((a for a, length in enumerate(chunks) if length > 1), array.ndim - 1)
        whole = chunks[axis + 1 :] == array.shape[axis + 1 :]
        if codec is None or not whole or np.prod(chunks) * array.dtype.itemsize < _WORTH:
            return None
        root = array.store_path.store.root / array.store_path.path
        return cls(root, metadata, chunks, axis, codec)

    def read(self, where: Sequence[slice], out: np.ndarray) -> bool:
        """Fill `out`, which is C-contiguous, with the entries there; False where that is left to Zarr."""
        length, (start, stop) = self.chunks[self.axis], (where[self.axis].start, where[self.axis].stop)
        if start % length or stop % length or out.shape[self.axis + 1 :] != self.chunks[self.axis + 1 :]:
            return False
        outer = [range(w.start, w.stop) for w in where[: self.axis]]
        parts = out.reshape(-1, *out.shape[self.axis :])
        for part, before in zip(parts, product(*outer), strict=True):
            for i in range(start // length, stop // length):
                at = (*before, i) + (0,) * (len(self.chunks) - self.axis - 1)
                if not self._chunk(at, part[i * length - start : (i + 1) * length - start]):
                    return False
        return True

    def _chunk(self, at: tuple[int, ...], out: np.ndarray) -> bool:
        """Decompress a chunk; False where it is not there, or holds something else than it should.

        Raises
        ------
        EOFError
            When a chunk of Blosc is cut off.
        """
        with suppress(OSError, RuntimeError, ValueError):
            data = (self.root / self.metadata.encode_chunk_key(at)).read_bytes()
            if self.codec == "blosc" and len(data) < max(_BLOSC_HEAD, _number(data[12:16])):
                raise EOFError(f"chunk {self.metadata.encode_chunk_key(at)} is cut off after {len(data)} bytes")
            if _size(self.codec, data) != out.nbytes:
                return False
            if self.codec == "raw":
                out.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
            else:
                {"zstd": zstd, "blosc": blosc}[self.codec].decompress(data, out)
            return True
        return False


def _codec(codecs: Sequence[Any], dtype: np.dtype[Any]) -> str | None:
    """How entries become bytes: 'zstd', 'blosc', 'raw', or in another way."""
    if not codecs or not isinstance(codecs[0], BytesCodec) or dtype.kind not in "biufc" or len(codecs) > 2:
        return None
    endian = getattr(codecs[0].endian, "value", None)
    if dtype.itemsize > 1 and endian != sys.byteorder:
        return None
    return {ZstdCodec: "zstd", BloscCodec: "blosc"}.get(type(codecs[1])) if len(codecs) == 2 else "raw"


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _size(codec: str, data: bytes) -> int | None:
    """Bytes that a chunk has when it is decompressed, as its head says (RFC 8878, 3.1.1.1; the header of Blosc 1)."""
    if codec == "raw":
        return len(data)
    if codec == "blosc":
        return _number(data[4:8])
    if len(data) < 18 or data[:4] != _ZSTD:
        return None
    kind, single, dictionary = data[4] >> 6, data[4] >> 5 & 1, data[4] & 3
    first = 6 - single + (0, 1, 2, 4)[dictionary]
    length = (single, 2, 4, 8)[kind]
    return _number(data[first : first + length]) + 256 * (length == 2) if length else None
