"""`pipeline ingest`: files of samples are appended to a chunked Zarr store."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from pipeline.cli import _json as as_json_option
from pipeline.cli import _quiet as quiet
from pipeline.console import say

__all__ = ["ingest"]


@click.command()
@click.argument("source", nargs=-1, required=True)
@click.option("--out", "store", required=True, metavar="STORE", help="Zarr store that grows; made where nothing is.")
@click.option("--variable", multiple=True, metavar="NAME", help="Variable, dataset, matrix or column; may be repeated.")
@click.option("--sample-dim", metavar="DIM", help="The dim that grows; default: the first.")
@click.option("--labels", metavar="COLUMN", help="The column of a table that names its samples.")
@click.option("--dtype", metavar="DTYPE", help="Of the store; entries are rounded to it.")
@click.option("--missing", default="error", show_default=True, help="NaN in features that have values: error, keep.")
@click.option("--chunk-rows", type=click.IntRange(min=1), metavar="N", help="Height of the chunks of a new store.")
@click.option("--settle", type=click.FloatRange(min=0), default=0.0, help="Leave files written to in so many seconds.")
@as_json_option
@click.pass_context
def ingest(
    ctx: click.Context,
    source: tuple[str, ...],
    store: str,
    variable: tuple[str, ...],
    sample_dim: str | None,
    labels: str | None,
    dtype: str | None,
    missing: str,
    chunk_rows: int | None,
    settle: float,
    as_json: bool,
) -> None:
    """Append the samples of SOURCE to STORE: NetCDF, HDF5, Parquet, CSV, NPY, anndata, Zarr.

    Each file (or file of a folder) is checked, then added whole; one that STORE has already adds nothing.
    """
    from pipeline.intake import ingest as take_in

    found = take_in(
        store,
        source,
        variable=variable or None,
        sample_dim=sample_dim,
        labels=labels,
        dtype=dtype,
        missing=missing,  # type: ignore[arg-type]
        chunk_rows=chunk_rows,
        settle=settle,
    )
    if not quiet(ctx):
        say(str(found))
    if as_json:
        facts = {"store": found.store, "samples": found.n_samples, "known": found.known}
        click.echo(json.dumps({**facts, "added": [asdict(b) for b in found.added]}, indent=2))
    else:
        click.echo(found.store)
