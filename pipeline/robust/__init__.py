"""Robust principal components: rows, or entries, that lie do not bend them. One method a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.robust.deflation import Deflation
from pipeline.robust.dpd import DensityPower
from pipeline.robust.filter import Filter
from pipeline.robust.method import Method, Options
from pipeline.robust.pcp import LowRankSparse
from pipeline.robust.solver import Robust
from pipeline.robust.spherical import Spherical
from pipeline.robust.stream import Stream
from pipeline.robust.tyler import Tyler
from pipeline.solvers import Settings

__all__ = ["METHODS", "SEARCHES", "Options", "Robust"]

SEARCHES: dict[str, Callable[[Settings, Options], Method[Any]]] = {"block": Filter, "deflation": Deflation}
"""Name to maker: how a filter finds several components."""

METHODS: dict[str, Callable[[Settings, Options], Method[Any]]] = {
    "filter": lambda settings, options: SEARCHES[options.search](settings, options),
    "stream": Stream,
    "dpd": DensityPower,
    "pcp": LowRankSparse,
    "spherical": Spherical,
    "tyler": Tyler,
}
"""Name to maker: what `method=` takes."""
