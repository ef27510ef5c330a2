"""Figures of a report: each function draws one picture of a subspace, as an inline PNG with its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from pipeline.labels import Labels
from pipeline.report.canvas import (
    BLUE,
    GREY,
    INK,
    PALE,
    RED,
    SAND,
    WIDTH,
    Picture,
    blank,
    dates,
    name_axes,
    picture,
    plain,
    whole_numbers,
)
from pipeline.report.layout import Axis, Sheet, sheet

if TYPE_CHECKING:
    import xarray as xr

    from pipeline.subspace import Subspace

__all__ = ["Picture", "cumulative", "effect", "mode", "outliers", "score", "scree", "walks"]

MOST_POINTS = 4000  # of a line; more are drawn as a band between smallest and largest
MOST_BARS = 40
_FAR = 10  # times the cut-off, from which on outliers would press all others flat


def scree(subspace: Subspace) -> Picture:
    """Draw the share of the variance of each mode, with what the certificate says of it.

    Whiskers end where an eigenvalue of the data must lie between (residual times the share, for a symmetric matrix);
    modes that are not separated from what follows are pale.
    """
    share = 100 * subspace.explained_variance_ratio
    figure, (ax,) = blank(2.5)
    number = np.arange(1, share.size + 1)
    separated = subspace.angle_bounds < np.pi / 2
    ax.bar(number, share, width=0.72, color=[BLUE if s else PALE for s in separated])
    error = np.nan_to_num(100 * _eigenvalue_bounds(subspace), posinf=100.0)
    seen, top = error > 0.01 * share.max(initial=0.0), share + error
    if seen.any():
        ends = np.minimum(error, share)[seen], error[seen]
        ax.errorbar(number[seen], share[seen], ends, fmt="none", ecolor=INK, elinewidth=1.1, capsize=3)
    if share.size <= 12:
        for x, y, over in zip(number, share, top, strict=True):
            ax.annotate(f"{y:.3g}", (x, over), (0, 2), textcoords="offset points", ha="center", color=INK, fontsize=8.5)
    ax.set_ylim(0, max(1.15 * top.max(initial=0.0), 1e-9))
    whole_numbers(ax.xaxis)
    name_axes(ax, "mode", "% of the variance")
    notes = [
        "Whiskers: an exact variance lies within." if seen.any() else "Certified bounds are too narrow to be seen."
    ]
    notes += [] if separated.all() else ["Pale: not separated from what follows."]
    shown = ", ".join(f"{y:.3g}" for y in share[:6])
    words = f"Bars: per cent of the variance of each mode: {shown}{', …' if share.size > 6 else ''}."
    return picture(figure, words, " ".join(notes))


def _eigenvalue_bounds(subspace: Subspace) -> np.ndarray:
    """(k,) how far an exact eigenvalue may lie from each variance, as shares of the total one; zeros without any."""
    whole = subspace.dof * subspace.total_variance
    squares = np.square(subspace.singular_values, dtype=np.float64)
    return subspace.residual * squares / whole if whole > 0 else np.zeros(subspace.k)


def cumulative(subspace: Subspace) -> Picture:
    """Draw the variance that the first modes explain together, and what stays unexplained."""
    total = np.append(0.0, np.cumsum(100 * subspace.explained_variance_ratio))
    figure, (ax,) = blank(2.5)
    number = np.arange(total.size)
    ax.fill_between(number, total, 100, color=GREY, alpha=0.45, linewidth=0)
    ax.plot(number, total, color=BLUE, linewidth=1.8, marker="o" if total.size <= MOST_BARS else "", markersize=4)
    left = max(100 - float(total[-1]), 0.0)
    # Cumulated shares are concave: where they end high the lower right is free, else the upper left.
    place, side = ((0.98, 0.14), "right") if left < 50 else ((0.02, 0.94), "left")
    grey = f"{left:.3g} % unexplained (grey)"
    ax.annotate(grey, place, xycoords="axes fraction", ha=side, va="top", color=INK, fontsize=8.5)
    ax.set(xlim=(0, number[-1] * 1.02), ylim=(0, 101))
    whole_numbers(ax.xaxis)
    name_axes(ax, "first modes together", "% of the variance")
    words = (
        f"the first {total.size - 1} modes explain {total[-1]:.4g} % of the variance, {left:.3g} % stays unexplained"
    )
    return picture(figure, f"Line: {words}.")


def effect(subspace: Subspace, j: int) -> np.ndarray:
    """What one standard deviation of score j does to each feature, in the data's own units: (d,), NaN where no data.

    Of complex data the magnitude.
    """
    spread = np.sqrt(subspace.explained_variance[j])
    nothing = np.full(subspace.n_features, np.nan)
    return np.divide(_drawn(subspace.basis[j]) * spread, subspace.factor, out=nothing, where=subspace.factor != 0)


def _drawn(values: np.ndarray) -> np.ndarray:
    """Real values as they are, the magnitudes of complex ones."""
    return np.abs(values) if values.dtype.kind == "c" else values


def mode(subspace: Subspace, j: int) -> Picture:
    """Draw mode j over its features: a map, panels of maps, an image, a line or bars, as their dims have it."""
    labels = subspace.features or Labels.plain("feature", subspace.n_features)
    values = effect(subspace, j)
    units = str(labels.attrs.get("units", ""))
    if len(labels.dims) == 1:
        kinds = _runs(labels)
        # Variables of different units share no scale but that of the unit vector.
        return _line(labels, _drawn(subspace.components[j]) if kinds else values, j, "" if kinds else units, kinds)
    return _sheet(sheet(labels, values), labels, values, j, units)


def score(subspace: Subspace, scores: xr.DataArray, j: int) -> Picture:
    """Draw score j, divided by its standard deviation, along time or along the samples as they come."""
    from pipeline.report.layout import score_axis

    spread = float(np.sqrt(subspace.explained_variance[j])) or 1.0
    dim, axis = score_axis(scores)
    others = [d for d in scores.dims if d not in (dim, "mode")]
    rows = _drawn(scores.isel(mode=j).transpose(*others, dim).values)
    rows = rows.reshape(-1, scores.sizes[dim]).astype(float) / spread
    order = np.argsort(axis.values, kind="stable")
    figure, (ax,) = blank(1.7)
    x, note = axis.values[order], ""
    for row in rows[:20]:
        note = _trace(ax, x, row[order], filled=len(rows) == 1)
    if len(rows) > 1:
        note = f"One line for each of {' x '.join(map(str, others))} ({min(len(rows), 20)} of {len(rows)}). {note}"
    ax.axhline(0, color=INK, linewidth=0.6)
    ax.margins(x=0)
    dates(ax, x)
    name_axes(ax, "" if x.dtype.kind == "M" else axis.label, "score (s.d.)")
    finite = rows[np.isfinite(rows)]
    ends = f"from {finite.min():.2g} to {finite.max():.2g} standard deviations" if finite.size else "no values"
    return picture(figure, f"Score of mode {j + 1} along {axis.name}: {ends}.", note)


def walks(passes: Sequence[Mapping[str, Any]]) -> Picture:
    """Draw the thread seconds that each pass spent reading and computing."""
    reading, computing = (np.array([float(p.get(k) or 0) for p in passes]) for k in ("read_seconds", "compute_seconds"))
    figure, (ax,) = blank(0.75 + 0.3 * min(len(passes), 8))
    number = np.arange(len(passes)) + (passes[0].get("pass") != 0)  # number 0 is a sample
    ax.barh(number, reading, height=0.6, color=SAND, label="reading and decoding")
    ax.barh(number, computing, left=reading, height=0.6, color=BLUE, label="computing")
    ax.set_ylim(number[-1] + 0.6, number[0] - 0.6)
    whole_numbers(ax.yaxis, 8)
    ax.xaxis.set_major_formatter(EngFormatter("s"))
    ax.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    name_axes(ax, "time, summed over threads", "pass")
    words = f"reading {reading.sum():.3g} s, computing {computing.sum():.3g} s"
    return picture(figure, f"Bars: thread seconds of {len(passes)} passes; in all {words}.")


def outliers(distances: np.ndarray, cutoffs: tuple[float, float]) -> Picture:
    """Draw the outlier map of Hubert, Rousseeuw and Vanden Branden (2005): orthogonal over score distances of rows.

    Parameters
    ----------
    distances : (n, 2) array
        Score distance and orthogonal distance of each row.
    cutoffs : pair of float
        Of each: what lies beyond either is an outlier.
    """
    finite = distances[np.isfinite(distances).all(axis=1)]
    beyond = (finite > cutoffs).any(axis=1)
    kept = np.concatenate([np.flatnonzero(~beyond)[:MOST_POINTS], np.flatnonzero(beyond)[:MOST_POINTS]])
    figure, (ax,) = blank(3.4)
    ax.scatter(finite[kept, 0], finite[kept, 1], s=9, c=np.where(beyond[kept], RED, BLUE), linewidths=0, alpha=0.7)
    ax.axvline(cutoffs[0], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.axhline(cutoffs[1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set(xlim=(0, None), ylim=(0, None))
    name_axes(ax, "score distance", "orthogonal distance")
    notes = [] if len(kept) == len(finite) else [f"{len(kept)} of {len(finite)} rows are drawn."]
    lowest, highest = finite[:, 1].min(initial=np.inf), finite[:, 1].max(initial=0.0)
    if lowest > 0 and 0 < _FAR * cutoffs[1] < highest:
        ax.set_yscale("log")
        ax.set_ylim(0.8 * min(lowest, cutoffs[1]), 1.25 * highest)
        notes.append("The scale upwards is logarithmic.")
    words = f"Dots: {int(beyond.sum())} of {len(finite)} rows lie beyond one of two cut-offs."
    return picture(figure, words, " ".join(notes))


def _line(labels: Labels, values: np.ndarray, j: int, units: str, kinds: list[tuple[str, int, int]]) -> Picture:
    axis = Axis.of(labels, labels.dims[0])
    bars = labels.size <= MOST_BARS and not kinds
    names = [plain(w, 16) for w in axis.words] if bars else []
    long = max(map(len, names), default=0) > 3
    figure, (ax,) = blank(2.8 if long else 2.2)
    note = ""
    if kinds:
        axis = Axis("feature", np.arange(labels.size))
        for _, start, _ in kinds[1:]:
            ax.axvline(start - 0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.set_xticks([(a + b - 1) / 2 for _, a, b in kinds], [plain(n, 18) for n, _, _ in kinds])
        note = "Variables side by side, as entries of the unit vector: they share no unit."
    if bars:
        at = np.arange(labels.size)
        ax.bar(at, values, color=np.where(values >= 0, RED, BLUE), width=0.72)
        ax.set_xticks(at, names, rotation=60 if long else 0, ha="right" if long else "center", rotation_mode="anchor")
    else:
        note = f"{note} {_trace(ax, axis.values, values)}".strip()
        dates(ax, axis.values)
    ax.axhline(0, color=INK, linewidth=0.6)
    ax.margins(x=0.01)
    name_axes(ax, "" if kinds else axis.label, "component" if kinds else _per_spread(units))
    return picture(figure, f"Mode {j + 1} along {axis.name}: {_ends(labels, values)}.", note)


def _sheet(drawn: Sheet, labels: Labels, values: np.ndarray, j: int, units: str) -> Picture:
    panels, own_scale = drawn.panels, drawn.names_variables
    single = len(panels) == 1
    height, width = drawn.panel_size(WIDTH - 1.6)
    beside = 1 if single or own_scale or height < 0.5 * width else 2
    rows = -(-len(panels) // beside)
    figure, axes = blank(rows * (height / beside + (0.15 if single else 0.35)) + 0.5, rows, beside)
    limits = [_limit(p) for p in panels] if own_scale else [_limit(np.stack(panels))] * len(panels)
    for i, (ax, panel, limit) in enumerate(zip(axes, panels, limits, strict=False)):
        mesh = _mesh(ax, drawn, panel, limit)
        ax.set_box_aspect(height / width)
        ax.set_title(plain(drawn.titles[i], 50), fontsize=9, loc="left", color=INK)
        last = i + beside >= len(panels)
        name_axes(ax, drawn.columns.label if last else "", "" if i % beside else drawn.rows.label)
        if own_scale or single:
            _colour_bar(figure, mesh, [ax], limit, panel, _per_spread("" if own_scale else units))
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    if not (own_scale or single):
        _colour_bar(figure, mesh, axes, limits[0], np.stack(panels), _per_spread(units))
    kind = "Map" if drawn.geographic else "Image"
    return picture(
        figure, f"{kind} of mode {j + 1} over {', '.join(labels.dims)}: {_ends(labels, values)}.", drawn.note
    )


def _mesh(ax: Axes, drawn: Sheet, panel: np.ndarray, limit: float) -> Any:
    """Cells in colours that diverge from a white zero, on grey where there is no data."""
    mesh = ax.pcolormesh(*drawn.edges, np.ma.masked_invalid(panel), cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set_facecolor(GREY)
    ax.spines[:].set_visible(False)
    if drawn.downwards:
        ax.invert_yaxis()
    return mesh


def _colour_bar(figure: Figure, mesh: Any, axes: list[Axes], limit: float, shown: np.ndarray, words: str) -> None:
    beyond = bool(np.nanmax(np.abs(shown), initial=0) > limit)
    bar = figure.colorbar(mesh, ax=axes, extend="both" if beyond else "neither", fraction=0.06, pad=0.02, aspect=16)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, colors=INK)
    bar.locator = MaxNLocator(4, symmetric=True)
    bar.set_label(words, fontsize=8.5, color=INK)


def _limit(values: np.ndarray) -> float:
    """End of the colour scale: nearly the largest magnitude, so that one odd cell does not bleach the rest."""
    finite = np.abs(values[np.isfinite(values)])
    return float(np.quantile(finite, 0.995)) or float(finite.max()) or 1.0 if finite.size else 1.0


def _trace(ax: Axes, x: np.ndarray, y: np.ndarray, filled: bool = False) -> str:
    """Draw y over x; returns a remark where several values had to share a place."""
    if y.size > MOST_POINTS:
        starts = np.linspace(0, y.size, MOST_POINTS // 4, endpoint=False).astype(int)
        lowest, highest = (f.reduceat(y, starts) for f in (np.fmin, np.fmax))
        ax.fill_between(x[starts], lowest, highest, color=BLUE, linewidth=0.6)
        return f"Band: smallest to largest of each {y.size // starts.size} neighbours."
    if filled:
        ax.fill_between(x, y, 0, where=y > 0, interpolate=True, color=RED, alpha=0.55, linewidth=0)
        ax.fill_between(x, y, 0, where=y < 0, interpolate=True, color=BLUE, alpha=0.55, linewidth=0)
    ax.plot(x, y, color=INK if filled else BLUE, linewidth=0.9)
    return ""


def _runs(labels: Labels) -> list[tuple[str, int, int]]:
    """Stretches of features of one variable, as (name, start, stop); none where there is no such coordinate."""
    coord = labels.coords.get("variable")
    if coord is None or coord.dims != labels.dims or not labels.size:
        return []
    starts = [0, *(np.flatnonzero(coord.values[1:] != coord.values[:-1]) + 1).tolist()]
    if not 1 < len(starts) <= 12:
        return []
    return [(str(coord.values[a]), a, b) for a, b in zip(starts, [*starts[1:], labels.size], strict=True)]


def _ends(labels: Labels, values: np.ndarray) -> str:
    if not np.isfinite(values).any():
        return "no values"
    low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
    return f"lowest {values[low]:.3g} at {labels.describe(low)}, highest {values[high]:.3g} at {labels.describe(high)}"


def _per_spread(units: str) -> str:
    return f"{plain(units, 18)} per s.d.".strip()
