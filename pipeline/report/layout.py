"""How features and samples lie on paper: which dims run down and across, with which values, in how many panels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.labels import Labels

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Axis", "Sheet", "score_axis", "sheet"]

NORTH = {"lat", "latitude", "y", "degrees_north", "degree_north", "grid_latitude", "projection_y_coordinate"}
EAST = {"lon", "longitude", "x", "degrees_east", "degree_east", "grid_longitude", "projection_x_coordinate"}
SHORT = {"degrees_north": "°N", "degree_north": "°N", "degrees_east": "°E", "degree_east": "°E"}
MOST_PANELS = 6
MOST_CELLS = 500_000  # of a panel: already more than it has pixels
FLATTEST, TALLEST = 0.26, 1.25  # height over width of a panel that can still be read


@dataclass(frozen=True)
class Axis:
    """One dim on paper: numbers or dates to draw along, and the words of its coordinate.

    `known` says that the values are the coordinate's own, not mere positions.
    """

    name: str
    values: np.ndarray
    attrs: Mapping[str, Any] = field(default_factory=dict)
    known: bool = False
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, labels: Labels, dim: str) -> Axis:
        """The axis of a dim of the labels; positions where its coordinate is not ordered numbers or dates."""
        size = labels.sizes[labels.dims.index(dim)]
        coord = labels.coords.get(dim)
        if coord is None or coord.dims != (dim,):
            return cls(dim, np.arange(size), words=tuple(map(str, range(size))))
        words = tuple(f"{v:g}" if coord.values.dtype.kind == "f" else str(v) for v in coord.values)
        values = coord.values
        if EAST & _roles(dim, coord.attrs) and values.dtype.kind in "iuf":
            values = np.unwrap(values.astype(float), period=360.0)  # 350, 355, 0, 5 goes on eastwards
        if _ordered(values):
            return cls(dim, values, coord.attrs, True, words)
        return cls(dim, np.arange(size), coord.attrs, False, words)

    @property
    def label(self) -> str:
        """Name and unit."""
        units = str(self.attrs.get("units", "")) if self.known else ""
        return f"{self.name} ({SHORT.get(units, units)})" if units and units != "1" else self.name

    @property
    def edges(self) -> np.ndarray:
        """Where the cells begin and end: half-way between the values."""
        v = (self.values - self.values[:1]).astype(float)
        if v.size < 2:
            return v[0] + np.array([-0.5, 0.5])
        middle = (v[1:] + v[:-1]) / 2
        edges = np.concatenate([[2 * v[0] - middle[0]], middle, [2 * v[-1] - middle[-1]]])
        if self.values.dtype.kind == "M":  # pcolormesh takes dates too
            return self.values[0] + edges.astype(np.int64).astype(f"m8[{np.datetime_data(self.values.dtype)[0]}]")
        return edges + float(self.values[0])

    def every(self, step: int) -> Axis:
        """Each step-th value only."""
        return Axis(self.name, self.values[::step], self.attrs, self.known, self.words[::step])


@dataclass(frozen=True)
class Sheet:
    """Values over two dims, once or for several places along the others."""

    panels: list[np.ndarray]
    titles: list[str]
    rows: Axis
    columns: Axis
    geographic: bool
    names_variables: bool
    note: str

    @property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges of the cells across and down."""
        return self.columns.edges, self.rows.edges

    @property
    def downwards(self) -> bool:
        """Whether the first row is on top: images, and what is counted from the surface down."""
        if self.geographic:
            return False
        return not self.rows.known or self.rows.attrs.get("positive") == "down"

    def panel_size(self, width: float) -> tuple[float, float]:
        """Height and width of a panel that is at most `width` wide."""
        ratio = float(np.clip(_shape(self.rows, self.columns, self.geographic), FLATTEST, TALLEST))
        return width * ratio, width


def sheet(labels: Labels, values: np.ndarray) -> Sheet:
    """Lay out values (d,) of features with two or more dims: over latitude and longitude, else the last two dims."""
    down, across = _plane(labels)
    others = [d for d in labels.dims if d not in (down, across)]
    order = [labels.dims.index(d) for d in (*others, down, across)]
    rows, columns = Axis.of(labels, down), Axis.of(labels, across)
    geographic = bool(NORTH & _roles(down, rows.attrs) and EAST & _roles(across, columns.attrs))
    cube = values.reshape(labels.sizes).transpose(order).reshape(-1, rows.values.size, columns.values.size)
    picked = np.unique(np.linspace(0, len(cube) - 1, min(len(cube), MOST_PANELS)).round().astype(int))
    step = max(1, int(np.ceil(np.sqrt(cube[0].size / MOST_CELLS))))
    notes = [_stretch(rows, columns) if geographic else ""]
    if len(picked) < len(cube):
        notes.append(f"{len(picked)} of {len(cube)} places along {' x '.join(others)}.")
    if step > 1:
        notes.append(f"One of {step} cells is drawn each way.")
    return Sheet(
        panels=[cube[i, ::step, ::step] for i in picked],
        titles=[_place(labels, others, i) for i in picked],
        rows=rows.every(step),
        columns=columns.every(step),
        geographic=geographic,
        names_variables=others == ["variable"],
        note=" ".join(filter(None, notes)),
    )


def score_axis(scores: xr.DataArray) -> tuple[str, Axis]:
    """The dim that scores are drawn along, and its axis: dates if any coordinate has some, else the last sample dim."""
    dims = [str(d) for d in scores.dims if d != "mode"]
    lines = [c for c in scores.coords.values() if c.ndim == 1 and c.dims[0] in dims]
    lines.sort(key=lambda c: (c.dtype.kind != "M", c.name != c.dims[0]))
    for coord in lines:
        name, dim, values = str(coord.name), str(coord.dims[0]), coord.values
        if values.dtype.kind == "M" and not np.isnat(values).any():
            return dim, Axis(name, values, coord.attrs, True)
        if values.dtype == object and values.size and hasattr(values[0], "calendar"):
            return dim, Axis(f"{name} (year)", coord.dt.decimal_year.values)  # a calendar that NumPy does not have
    dim = dims[-1]
    coord = scores.coords.get(dim)
    if coord is not None and coord.dtype.kind in "iuf" and np.isfinite(coord.values).all():
        return dim, Axis(dim, coord.values, coord.attrs, True)
    return dim, Axis(dim, np.arange(scores.sizes[dim]))


def _plane(labels: Labels) -> tuple[str, str]:
    roles = {d: _roles(d, c.attrs if (c := labels.coords.get(d)) else {}) for d in labels.dims}
    north = [d for d in labels.dims if roles[d] & NORTH]
    east = [d for d in labels.dims if roles[d] & EAST]
    if len(north) == 1 and len(east) == 1 and north != east:
        return north[0], east[0]
    return labels.dims[-2], labels.dims[-1]


def _roles(dim: str, attrs: Mapping[str, Any]) -> set[str]:
    return {str(w).lower() for w in (dim, attrs.get("standard_name"), attrs.get("units")) if w}


def _ordered(values: np.ndarray) -> bool:
    if values.dtype.kind not in "iufM" or not values.size:
        return False
    if values.dtype.kind == "M":
        return bool((np.diff(values).astype(np.int64) > 0).all()) and not bool(np.isnat(values).any())
    steps = np.diff(values.astype(float))
    return bool(np.isfinite(values).all()) and (bool((steps > 0).all()) or bool((steps < 0).all()))


def _shape(rows: Axis, columns: Axis, geographic: bool) -> float:
    """Height over width as the values have it, a degree of longitude being cos(latitude) of one of latitude."""
    if not geographic and (rows.known or columns.known):
        return 0.5  # dims of different kinds have no common measure
    down, across = (float(np.ptp(a.edges)) for a in (rows, columns))
    degrees = (
        rows.known and columns.known and any(w.startswith(("lat", "degree")) for w in _roles(rows.name, rows.attrs))
    )
    middle = float(np.deg2rad(rows.edges.mean())) if degrees else 0.0
    return down / across / max(float(np.cos(middle)), 0.1)


def _stretch(rows: Axis, columns: Axis) -> str:
    shape = _shape(rows, columns, geographic=True)
    if shape < FLATTEST:
        return f"Stretched {FLATTEST / shape:.1f} times in {rows.name}, to be read."
    if shape > TALLEST:
        return f"Stretched {shape / TALLEST:.1f} times in {columns.name}, to be read."
    return ""


def _place(labels: Labels, dims: list[str], position: int) -> str:
    """Where a panel lies along the dims that it does not show."""
    if not dims:
        return ""
    at = np.unravel_index(position, [labels.sizes[labels.dims.index(d)] for d in dims])
    words = []
    for dim, i in zip(dims, at, strict=True):
        axis = Axis.of(labels, dim)
        units = f" {axis.attrs['units']}" if axis.known and axis.attrs.get("units") else ""
        words.append(axis.words[i] if dim == "variable" else f"{dim} = {axis.words[i]}{units}")
    return ", ".join(words)
