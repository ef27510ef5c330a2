"""Subspaces of many sites: rules that aggregate them, and rounds in which sites agree without showing a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.federation.aggregate import AGGREGATIONS, aggregate
from pipeline.federation.one_shot import OneShot
from pipeline.federation.power import Power
from pipeline.federation.rounds import Method
from pipeline.federation.site import Site

__all__ = ["AGGREGATIONS", "METHODS", "Site", "aggregate"]

METHODS: dict[str, Callable[..., Method[Any]]] = {
    "power": Power,
    **{name: lambda name=name, **options: OneShot(name, options) for name in AGGREGATIONS},
}
"""Name to maker: what `aggregation=` of `FederatedPCA` takes."""
