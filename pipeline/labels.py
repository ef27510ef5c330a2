"""Names and coordinates of the rows or columns of a matrix: taken off at the door, put back at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Coord", "Labels"]


class Coord(NamedTuple):
    """One coordinate: the dims it runs along, its values and its attributes (`units`, `long_name`, …)."""

    dims: tuple[str, ...]
    values: np.ndarray
    attrs: Mapping[str, Any]


@dataclass(frozen=True)
class Labels:
    """What one side of a matrix is called: dims in C order, their sizes, and the coordinates along them.

    Examples
    --------
    >>> from pipeline.labels import Coord, Labels
    >>> grid = Labels(("lat", "lon"), (2, 3), {"lat": Coord(("lat",), np.array([-5.0, 5.0]), {})})
    >>> grid.size, grid.describe(4)
    (6, 'lat=5.0, lon=1')
    """

    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    coords: Mapping[str, Coord] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def plain(cls, dim: str, size: int) -> Labels:
        """Labels of a side that has no names of its own: one dim, no coordinates."""
        return cls((dim,), (size,))

    @property
    def size(self) -> int:
        """Number of rows (or columns) that the labels name."""
        return int(np.prod(self.sizes, dtype=np.int64))

    def describe(self, position: int) -> str:
        """Say where one flat position lies, in the data's own coordinates."""
        if not self.sizes:
            return ""
        where = dict(zip(self.dims, np.unravel_index(position, self.sizes), strict=True))
        words = []
        for dim, i in where.items():
            coord = self.coords.get(dim)
            value = i if coord is None or coord.dims != (dim,) else coord.values[i]
            words.append(f"{dim}={value}")
        return ", ".join(words)

    def take(self, start: int, stop: int) -> Labels:
        """Labels of the flat range [start, stop); several dims become one unless whole slabs of the first are taken."""
        inner = self.size // self.sizes[0] if self.sizes[0] else 1
        if inner and start % inner == 0 and stop % inner == 0:
            dim, cut = self.dims[0], slice(start // inner, stop // inner)
            coords = {
                name: Coord(c.dims, c.values[tuple(cut if d == dim else slice(None) for d in c.dims)], c.attrs)
                for name, c in self.coords.items()
            }
            return Labels(self.dims, (cut.stop - cut.start, *self.sizes[1:]), coords, self.attrs)
        flat = self.flattened("sample")
        coords = {name: Coord(c.dims, c.values[start:stop], c.attrs) for name, c in flat.coords.items()}
        return Labels(flat.dims, (stop - start,), coords, self.attrs)

    def flattened(self, dim: str) -> Labels:
        """The same positions along one dim, each coordinate spread over them."""
        coords = {}
        for name, c in self.coords.items():
            shape = tuple(n if d in c.dims else 1 for d, n in zip(self.dims, self.sizes, strict=True))
            order = [c.dims.index(d) for d in self.dims if d in c.dims]
            spread = np.broadcast_to(np.transpose(c.values, order).reshape(shape), self.sizes).reshape(-1)
            coords[name if name != dim else f"{name}_"] = Coord((dim,), spread, c.attrs)
        return Labels((dim,), (self.size,), coords, self.attrs)

    def xarray_coords(self) -> dict[str, xr.Variable]:
        """The coordinates as xarray variables."""
        import xarray as xr

        return {name: xr.Variable(c.dims, c.values, dict(c.attrs)) for name, c in self.coords.items()}

    def equals(self, other: Labels) -> bool:
        """Same dims, sizes and coordinate values; attributes may differ."""
        return (
            self.dims == other.dims
            and self.sizes == other.sizes
            and self.coords.keys() == other.coords.keys()
            and all(_same(c.values, other.coords[n].values) for n, c in self.coords.items())
        )


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind and a.dtype.kind in "fcmM")
