"""`pipeline inspect`: what a stored model is, in words and as a table."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import _json as as_json_option
from pipeline.cli import _scheduler as scheduler_option
from pipeline.cli import place_and_version

if TYPE_CHECKING:
    from pipeline.subspace import Subspace

__all__ = ["inspect"]


@click.command()
@click.argument("model")
@scheduler_option
@as_json_option
def inspect(model: str, scheduler: str | None, as_json: bool) -> None:
    """Say what is in MODEL (or MODEL@VERSION), in words and as a table."""
    from pipeline.jobs.cluster import cluster_client
    from pipeline.store import load

    with cluster_client(scheduler):
        facts = _facts(load(*place_and_version(model)))
    if as_json:
        click.echo(json.dumps(facts, indent=2, default=str))
    else:
        _print_model(facts)


def _facts(subspace: Subspace) -> dict[str, Any]:
    """All that `inspect` tells, as plain JSON values."""
    import numpy as np

    columns = {
        "singular_value": subspace.singular_values,
        "explained_variance": subspace.explained_variance,
        "explained_variance_ratio": subspace.explained_variance_ratio,
        "cumulative_ratio": np.cumsum(subspace.explained_variance_ratio),
        "residual": subspace.residual,
        "sin_angle_bound": np.sin(subspace.angle_bounds),
    }
    labels = subspace.features
    return {
        "n_components": subspace.k,
        "n_samples": subspace.n_samples,
        "n_features": subspace.n_features,
        "features": dict(zip(labels.dims, labels.sizes, strict=True)) if labels else {"feature": subspace.n_features},
        "features_without_values": int(subspace.n_features - subspace.present.sum()),
        "centered": subspace.centered,
        "scaled": subspace.scale is not None,
        "weighted": subspace.weights is not None,
        "total_variance": subspace.total_variance,
        "passes": subspace.passes,
        "provenance": dict(subspace.provenance),
        "modes": [
            {"mode": i + 1, **{name: float(values[i]) for name, values in columns.items()}} for i in range(subspace.k)
        ],
    }


def _words(facts: dict[str, Any]) -> dict[str, str]:
    """What a model is, without its modes: a name and some words a line."""
    dims = " x ".join(f"{dim} {size}" for dim, size in facts["features"].items())
    empty = facts["features_without_values"]
    done = [word for word in ("centered", "scaled", "weighted") if facts[word]]
    told = {
        "components": str(facts["n_components"]),
        "samples": f"{facts['n_samples']:g}",
        "features": f"{facts['n_features']} ({dims})" + (f", {empty} of them without values" if empty else ""),
        "preprocessing": ", ".join(done) or "none",
        "total variance": f"{facts['total_variance']:.6g}",
        "passes": str(facts["passes"]),
    }
    for name, value in facts["provenance"].items():
        if name == "cuts":  # of a filter: arrays, as text
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k}={v}" for k, v in value.items() if v is not None)
        if not isinstance(value, list):  # one entry a walk, for the report
            told[name.replace("_", " ")] = str(value)
    return told


def _print_model(facts: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    # In a pipe nothing is cut, wrapped or padded.
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else 200)
    words = _words(facts)
    if terminal:
        about = Table.grid("", Column(overflow="fold"), padding=(0, 2))
        for name, value in words.items():
            about.add_row(Text(name, style="bold"), Text(value))
        console.print(about)
    else:
        width = max(map(len, words)) + 2
        for name, value in words.items():
            click.echo(f"{name:{width}s}" + value.replace("\n", "\n" + " " * width))
    modes = Table(box=box.SIMPLE_HEAD if console.is_terminal else None)
    for head in ("mode", "singular value", "variance %", "cumulative %", "residual", "sin angle <="):
        modes.add_column(head, justify="right")
    for m in facts["modes"]:
        shares = (f"{100 * m[name]:.3f}" for name in ("explained_variance_ratio", "cumulative_ratio"))
        bounds = (f"{m[name]:.1e}" for name in ("residual", "sin_angle_bound"))
        modes.add_row(str(m["mode"]), f"{m['singular_value']:.6g}", *shares, *bounds)
    console.print(Text(), modes, sep="\n")
