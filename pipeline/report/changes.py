"""Figures of what changes between the versions of a model."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from pipeline.drift import Drift
from pipeline.report.canvas import BLUE, RED, Picture, blank, name_axes, picture, plain, whole_numbers
from pipeline.report.course import Course

__all__ = ["angles", "drifts", "shares"]

MOST_LINES = 6


def drifts(course: Course) -> Picture:
    """Draw the principal angles between each version and the one that it came from."""
    figure, (ax,) = blank(2.5)
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
    name_axes(ax, "version", "degrees to its parent")
    steps = zip(course.steps, largest, strict=True)
    told = ", ".join(f"version {s.version.number} {angle:.2g}°" for s, angle in steps if np.isfinite(angle))
    note = "Dots: all principal angles between a version and the one it was made from. 0: the same subspace."
    return picture(
        figure, f"Line: largest principal angle of each version to its parent: {told or 'none is known'}.", note
    )


def shares(course: Course) -> Picture:
    """Draw the share of the variance that each of the first modes had in every version."""
    figure, (ax,) = blank(2.5)
    widest = max((s.measured.shares.size for s in course.steps if s.measured), default=0)
    table = np.full((len(course.steps), min(widest, MOST_LINES)), np.nan)
    for i, step in enumerate(course.steps):
        if step.measured is not None:
            known = step.measured.shares[: table.shape[1]]
            table[i, : known.size] = 100 * known
    top, told = max(1.1 * np.nanmax(table, initial=0.0), 1e-6), np.inf
    for j, line in enumerate(table.T):
        ax.plot(np.arange(line.size), line, linewidth=1.4, marker="o", markersize=3.5, color=BLUE, alpha=1 - 0.14 * j)
        last = np.flatnonzero(np.isfinite(line))[-1:]
        for i in last[told - line[last] > 0.06 * top]:  # numbers that would cover each other are left out
            told = line[i]
            ax.annotate(str(j + 1), (i, line[i]), (6, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.set_ylim(0, top)
    _over_versions(ax, course)
    name_axes(ax, "version", "% of the variance")
    ends = ", ".join(
        f"mode {j + 1} from {v[0]:.3g} to {v[-1]:.3g}" for j, v in enumerate(map(_finite, table.T)) if v.size
    )
    return picture(figure, f"Lines: per cent of the variance of the first modes over the versions: {ends}.")


def angles(found: Drift) -> Picture:
    """Draw the principal angles between two subspaces."""
    figure, (ax,) = blank(2.5)
    shown = np.degrees(found.angles)
    ax.bar(np.arange(1, shown.size + 1), shown, width=0.72, color=BLUE)
    ax.set_ylim(0, max(1.15 * shown.max(initial=0.0), 0.01))
    whole_numbers(ax.xaxis)
    name_axes(ax, "principal angle, largest first", "degrees")
    return picture(figure, f"Bars: principal angles in degrees: {', '.join(f'{a:.3g}' for a in shown[:8])}.")


def _over_versions(ax: Axes, course: Course) -> None:
    """Versions across, evenly: each by its number, with the day on which it was made where that is a new one."""
    versions = [step.version for step in course.steps]
    ticks, day = [], ""
    for i in np.unique(np.linspace(0, len(versions) - 1, min(len(versions), 8)).round().astype(int)):
        made = versions[i].created[:10]
        ticks.append((i, f"{versions[i].number}\n{made if made != day else ''}"))
        day = made
    ax.set_xticks([i for i, _ in ticks], [plain(words, 20) for _, words in ticks])
    ax.set_xlim(-0.4, len(versions) - 0.6)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
