"""Subspaces of many sites: rules that aggregate them, and rounds in which sites agree without showing a row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline.federation.admm import Consensus
from pipeline.federation.aggregation import AGGREGATIONS, aggregate
from pipeline.federation.one_shot import OneShot
from pipeline.federation.power import Power
from pipeline.federation.privacy import DP
from pipeline.federation.rounds import Method
from pipeline.federation.site import Site

__all__ = ["AGGREGATIONS", "DP", "METHODS", "Site", "aggregate"]


def _one_shot(rule: str, **options: Any) -> OneShot:
    return OneShot(rule, options)


METHODS: dict[str, Callable[..., Method[Any]]] = {
    "admm": partial(Consensus, "fedpg"),
    "fedpe": partial(Consensus, "fedpe"),
    "fedpg": partial(Consensus, "fedpg"),
    "power": Power,
    **{name: partial(_one_shot, name) for name in AGGREGATIONS},
}
"""Name to maker: what `aggregation=` of `FederatedPCA` takes."""
