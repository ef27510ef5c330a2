"""Figures of a report: each function draws one picture of a subspace and gives it back as an inline PNG with its words.

Drawn with matplotlib's objects on the Agg canvas, never through pyplot: nothing global is set, no figure stays open.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.labels import Labels
from pipeline.report.layout import Axis, Sheet, sheet

if TYPE_CHECKING:
    import xarray as xr

    from pipeline.drift import Drift
    from pipeline.report.course import Course
    from pipeline.subspace import Subspace

__all__ = [
    "Picture",
    "angles",
    "cumulative",
    "drifts",
    "effect",
    "mode",
    "outliers",
    "score",
    "scree",
    "shares",
    "walks",
]

INK, BLUE, PALE, RED, SAND, GREY = "#333a41", "#3b6ea5", "#a9c1da", "#b5493a", "#d9a441", "#bcc1c6"
WIDTH = 5.2  # inches; what one column of the page shows
MOST_POINTS = 4000  # of a line; more are drawn as a band between smallest and largest
MOST_BARS = 40
MOST_LINES = 6


@dataclass(frozen=True)
class Picture:
    """One image: a data URI, what it shows for who cannot see it, and a remark for everybody."""

    uri: str
    alt: str
    note: str = ""

    @property
    def png(self) -> bytes:
        """The image itself."""
        return base64.b64decode(self.uri.partition(",")[2])


def scree(subspace: Subspace) -> Picture:
    """Draw the share of the variance of each mode, with what the certificate says of it.

    Whiskers end where an eigenvalue of the data must lie between (residual times the share, for a symmetric matrix);
    modes that are not separated from what follows are pale.
    """
    share = 100 * subspace.explained_variance_ratio
    figure, (ax,) = _figure(2.5)
    number = np.arange(1, share.size + 1)
    separated = subspace.angle_bounds < np.pi / 2
    ax.bar(number, share, width=0.72, color=[BLUE if s else PALE for s in separated])
    error = 100 * _eigenvalue_bounds(subspace)
    seen = (error > 0.004 * share.max(initial=0.0)) & np.isfinite(error)
    if seen.any():
        low = np.minimum(error, share)[seen]
        ax.errorbar(
            number[seen], share[seen], (low, error[seen]), fmt="none", ecolor=INK, elinewidth=1.1, capsize=3, zorder=3
        )
        ax.set_ylim(top=1.15 * share.max() + min(float(error[seen].max()), 0.5 * share.max()))
    elif share.size <= 12:
        for x, y in zip(number, share, strict=True):
            ax.annotate(f"{y:.3g}", (x, y), (0, 2), textcoords="offset points", ha="center", color=INK, fontsize=8.5)
        ax.margins(y=0.12)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    _name(ax, "mode", "% of the variance")
    notes = [
        "Whiskers: an exact variance lies within." if seen.any() else "Certified bounds are too narrow to be seen."
    ]
    notes += [] if separated.all() else ["Pale: not separated from what follows."]
    shown = ", ".join(f"{y:.3g}" for y in share[:6])
    words = f"Bars: per cent of the variance of each mode: {shown}{', …' if share.size > 6 else ''}."
    return _picture(figure, words, " ".join(notes))


def _eigenvalue_bounds(subspace: Subspace) -> np.ndarray:
    """(k,) how far an exact eigenvalue may lie from each variance, as shares of the total one; zeros without any."""
    whole = subspace.dof * subspace.total_variance
    squares = np.square(subspace.singular_values, dtype=np.float64)
    return subspace.residual * squares / whole if whole > 0 else np.zeros(subspace.k)


def cumulative(subspace: Subspace) -> Picture:
    """Draw the variance that the first modes explain together, and what stays unexplained."""
    total = np.append(0.0, np.cumsum(100 * subspace.explained_variance_ratio))
    figure, (ax,) = _figure(2.5)
    number = np.arange(total.size)
    ax.fill_between(number, total, 100, color=GREY, alpha=0.45, linewidth=0)
    ax.plot(number, total, color=BLUE, linewidth=1.8, marker="o" if total.size <= MOST_BARS else "", markersize=4)
    left = max(100 - float(total[-1]), 0.0)
    words, below = f"{left:.3g} % unexplained", total[-1] > 50
    at = (-4, -8 if below else 8)
    ax.annotate(
        words, (number[-1], total[-1]), at, textcoords="offset points", ha="right", va="top" if below else "bottom"
    )
    ax.set(xlim=(0, number[-1] * 1.02), ylim=(0, 101))
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    _name(ax, "first modes together", "% of the variance")
    words = (
        f"the first {total.size - 1} modes explain {total[-1]:.4g} % of the variance, {left:.3g} % stays unexplained"
    )
    return _picture(figure, f"Line: {words}.")


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
    figure, (ax,) = _figure(1.7)
    x, note = axis.values[order], ""
    for row in rows[:20]:
        note = _trace(ax, x, row[order], filled=len(rows) == 1)
    if len(rows) > 1:
        note = f"One line for each of {' x '.join(map(str, others))} ({min(len(rows), 20)} of {len(rows)}). {note}"
    ax.axhline(0, color=INK, linewidth=0.6)
    ax.margins(x=0)
    _dates(ax, x)
    _name(ax, "" if x.dtype.kind == "M" else axis.label, "score (s.d.)")
    finite = rows[np.isfinite(rows)]
    ends = f"from {finite.min():.2g} to {finite.max():.2g} standard deviations" if finite.size else "no values"
    return _picture(figure, f"Score of mode {j + 1} along {axis.name}: {ends}.", note)


def walks(passes: Sequence[Mapping[str, Any]]) -> Picture:
    """Draw the thread seconds that each pass spent reading and computing."""
    reading, computing = (np.array([float(p.get(k) or 0) for p in passes]) for k in ("read_seconds", "compute_seconds"))
    figure, (ax,) = _figure(0.75 + 0.3 * min(len(passes), 8))
    number = np.arange(1, len(passes) + 1)
    ax.barh(number, reading, height=0.6, color=SAND, label="reading and decoding")
    ax.barh(number, computing, left=reading, height=0.6, color=BLUE, label="computing")
    ax.set_ylim(len(passes) + 0.6, 0.4)
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    _name(ax, "seconds, summed over threads", "pass")
    words = f"reading {reading.sum():.3g} s, computing {computing.sum():.3g} s"
    return _picture(figure, f"Bars: thread seconds of {len(passes)} passes; in all {words}.")


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
    figure, (ax,) = _figure(3.4)
    ax.scatter(finite[kept, 0], finite[kept, 1], s=9, c=np.where(beyond[kept], RED, BLUE), linewidths=0, alpha=0.7)
    ax.axvline(cutoffs[0], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.axhline(cutoffs[1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set(xlim=(0, None), ylim=(0, None))
    _name(ax, "score distance", "orthogonal distance")
    note = "" if len(kept) == len(finite) else f"{len(kept)} of {len(finite)} rows are drawn."
    return _picture(figure, f"Dots: {int(beyond.sum())} of {len(finite)} rows lie beyond one of two cut-offs.", note)


def drifts(course: Course) -> Picture:
    """Draw the principal angles between each version and the one that it came from."""
    figure, (ax,) = _figure(2.5)
    moved = {
        i: np.degrees(s.measured.drift.angles) for i, s in enumerate(course.steps) if s.measured and s.measured.drift
    }
    for i, angles in moved.items():
        ax.plot(np.full(angles.size, i), angles, "o", color=BLUE, markersize=3.5, alpha=0.45, markeredgewidth=0)
    largest = np.array([moved[i].max(initial=0.0) if i in moved else np.nan for i in range(len(course.steps))])
    ax.plot(np.arange(largest.size), largest, color=RED, linewidth=1.4, marker="o", markersize=4.5, label="largest")
    ax.legend(frameon=False, fontsize=8.5, loc="upper left", borderpad=0)
    ax.set_ylim(0, max(1.25 * np.nanmax(largest, initial=0.0), 0.01))
    _over_versions(ax, course)
    _name(ax, "version", "degrees to its parent")
    steps = zip(course.steps, largest, strict=True)
    told = ", ".join(f"version {s.version.number} {angle:.2g}°" for s, angle in steps if np.isfinite(angle))
    note = "Dots: all principal angles between a version and the one it was made from. 0: the same subspace."
    return _picture(
        figure, f"Line: largest principal angle of each version to its parent: {told or 'none is known'}.", note
    )


def shares(course: Course) -> Picture:
    """Draw the share of the variance that each of the first modes had in every version."""
    figure, (ax,) = _figure(2.5)
    widest = max((s.measured.shares.size for s in course.steps if s.measured), default=0)
    table = np.full((len(course.steps), min(widest, MOST_LINES)), np.nan)
    for i, step in enumerate(course.steps):
        if step.measured is not None:
            known = step.measured.shares[: table.shape[1]]
            table[i, : known.size] = 100 * known
    for j, line in enumerate(table.T):
        ax.plot(np.arange(line.size), line, linewidth=1.4, marker="o", markersize=3.5, color=BLUE, alpha=1 - 0.14 * j)
        last = np.flatnonzero(np.isfinite(line))[-1:]
        for i in last:
            ax.annotate(str(j + 1), (i, line[i]), (6, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.set_ylim(0, max(1.1 * np.nanmax(table, initial=0.0), 1e-6))
    _over_versions(ax, course)
    _name(ax, "version", "% of the variance")
    ends = ", ".join(
        f"mode {j + 1} from {v[0]:.3g} to {v[-1]:.3g}" for j, v in enumerate(map(_finite, table.T)) if v.size
    )
    return _picture(figure, f"Lines: per cent of the variance of the first modes over the versions: {ends}.")


def angles(found: Drift) -> Picture:
    """Draw the principal angles between two subspaces."""
    figure, (ax,) = _figure(2.5)
    shown = np.degrees(found.angles)
    ax.bar(np.arange(1, shown.size + 1), shown, width=0.72, color=BLUE)
    ax.set_ylim(0, max(1.15 * shown.max(initial=0.0), 0.01))
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    _name(ax, "principal angle, largest first", "degrees")
    return _picture(figure, f"Bars: principal angles in degrees: {', '.join(f'{a:.3g}' for a in shown[:8])}.")


def _over_versions(ax: Axes, course: Course) -> None:
    """Versions across, evenly: each by its number, with the day on which it was made where that is a new one."""
    versions = [step.version for step in course.steps]
    ticks, day = [], ""
    for i in np.unique(np.linspace(0, len(versions) - 1, min(len(versions), 8)).round().astype(int)):
        made = versions[i].created[:10]
        ticks.append((i, f"{versions[i].number}\n{made if made != day else ''}"))
        day = made
    ax.set_xticks([i for i, _ in ticks], [_plain(words, 20) for _, words in ticks])
    ax.set_xlim(-0.4, len(versions) - 0.6)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _line(labels: Labels, values: np.ndarray, j: int, units: str, kinds: list[tuple[str, int, int]]) -> Picture:
    axis = Axis.of(labels, labels.dims[0])
    figure, (ax,) = _figure(2.2)
    note = ""
    if kinds:
        axis = Axis("feature", np.arange(labels.size))
        for _, start, _ in kinds[1:]:
            ax.axvline(start - 0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.set_xticks([(a + b - 1) / 2 for _, a, b in kinds], [_plain(n, 18) for n, _, _ in kinds])
        note = "Variables side by side, as entries of the unit vector: they share no unit."
    if labels.size <= MOST_BARS and not kinds:
        at = np.arange(labels.size)
        ax.bar(at, values, color=np.where(values >= 0, RED, BLUE), width=0.72)
        names = [_plain(w, 14) for w in axis.words]
        ax.set_xticks(at, names, rotation=60 if max(map(len, names)) > 3 else 0, ha="center")
    else:
        note = f"{note} {_trace(ax, axis.values, values)}".strip()
        _dates(ax, axis.values)
    ax.axhline(0, color=INK, linewidth=0.6)
    ax.margins(x=0.01)
    _name(ax, "" if kinds else axis.label, "component" if kinds else _per_spread(units))
    return _picture(figure, f"Mode {j + 1} along {axis.name}: {_ends(labels, values)}.", note)


def _sheet(drawn: Sheet, labels: Labels, values: np.ndarray, j: int, units: str) -> Picture:
    panels, own_scale = drawn.panels, drawn.names_variables
    single = len(panels) == 1
    height, width = drawn.panel_size(WIDTH - 1.6)
    beside = 1 if single or own_scale or height < 0.5 * width else 2
    rows = -(-len(panels) // beside)
    figure, axes = _figure(rows * (height / beside + (0.15 if single else 0.35)) + 0.5, rows, beside)
    limits = [_limit(p) for p in panels] if own_scale else [_limit(np.stack(panels))] * len(panels)
    for i, (ax, panel, limit) in enumerate(zip(axes, panels, limits, strict=False)):
        mesh = _mesh(ax, drawn, panel, limit)
        ax.set_box_aspect(height / width)
        ax.set_title(_plain(drawn.titles[i], 50), fontsize=9, loc="left", color=INK)
        last = i + beside >= len(panels)
        _name(ax, drawn.columns.label if last else "", "" if i % beside else drawn.rows.label)
        if own_scale or single:
            _colour_bar(figure, mesh, [ax], limit, panel, _per_spread("" if own_scale else units))
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    if not (own_scale or single):
        _colour_bar(figure, mesh, axes, limits[0], np.stack(panels), _per_spread(units))
    kind = "Map" if drawn.geographic else "Image"
    return _picture(
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
    return f"{_plain(units, 20)} per s.d.".strip()


def _figure(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(GREY)
        ax.tick_params(colors=INK, labelsize=8.5, length=3, color=GREY)
    return figure, axes


def _name(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(_plain(x, 60), fontsize=9, color=INK)
    ax.set_ylabel(_plain(y, 30), fontsize=9, color=INK)


def _dates(ax: Axes, x: np.ndarray) -> None:
    if x.dtype.kind == "M":
        locator = AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _plain(words: str, most: int) -> str:
    """The words as they are, cut to length: a dollar sign starts no formula."""
    words = words if len(words) <= most else words[: most - 1] + "…"
    return words.replace("$", r"\$")


def _picture(figure: Figure, alt: str, note: str = "") -> Picture:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=200, metadata={"Software": None}, bbox_inches="tight", pad_inches=0.04)
    figure.clear()
    return Picture("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii"), alt, note)
