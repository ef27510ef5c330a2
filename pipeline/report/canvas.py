"""What every figure of a report is drawn on: paper, colours, axes, and the inline PNG that it becomes.

Drawn with matplotlib's objects on the Agg canvas, never through pyplot: nothing global is set, no figure stays open.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = [
    "BLUE",
    "GREY",
    "INK",
    "PALE",
    "RED",
    "SAND",
    "WIDTH",
    "Picture",
    "blank",
    "dates",
    "name_axes",
    "picture",
    "plain",
    "whole_numbers",
]

INK, BLUE, PALE, RED, SAND, GREY = "#333a41", "#3b6ea5", "#a9c1da", "#b5493a", "#d9a441", "#bcc1c6"
WIDTH = 5.2  # inches; what one column of the page shows
DPI = 200


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


def blank(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of one column's width, `height` inches high, and its axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(GREY)
        ax.tick_params(colors=INK, labelsize=8.5, length=3, color=GREY)
    return figure, axes


def name_axes(ax: Axes, x: str, y: str) -> None:
    """Say what lies along the axes."""
    ax.set_xlabel(plain(x, 60), fontsize=9, color=INK)
    ax.set_ylabel(plain(y, 30), fontsize=9, color=INK)


def dates(ax: Axes, x: np.ndarray) -> None:
    """Mark dates across as concisely as they allow, where x is dates."""
    if x.dtype.kind == "M":
        locator = AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def plain(words: str, most: int) -> str:
    r"""The words as they are, without their middle where they are too long: a dollar sign starts no formula.

    Examples
    --------
    >>> plain("a_long_name_of_instrument_07", 14)
    'a_long_…ent_07'
    >>> plain(plain("US$", 9), 9)
    'US\\$'
    """
    words = words.replace(r"\$", "$")  # as it was, where it came through here before
    if len(words) > most:
        words = f"{words[: most // 2]}…{words[len(words) - (most - 1) // 2 :]}"
    return words.replace("$", r"\$")


def whole_numbers(axis: Axis, most: int | Literal["auto"] = "auto") -> None:
    """Mark an axis at whole numbers only, be it a single one."""
    axis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))


def picture(figure: Figure, alt: str, note: str = "") -> Picture:
    """The figure as an inline PNG; it is empty afterwards."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None}, bbox_inches="tight", pad_inches=0.04)
    figure.clear()
    return Picture("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii"), alt, note)
