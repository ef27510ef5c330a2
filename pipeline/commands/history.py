"""`pipeline log`, `diff`, `rollback`, `tag`, `expire` and `update`: the versions of a model."""

from __future__ import annotations

import json
from typing import Any

import click

from pipeline.cli import _json as as_json_option
from pipeline.cli import _quiet as quiet
from pipeline.cli import _scheduler as scheduler_option
from pipeline.cli import _source as source_of
from pipeline.cli import _source_options as source_options
from pipeline.cli import place_and_version
from pipeline.console import say, showing_progress

__all__ = ["diff", "expire", "log", "rollback", "tag", "update"]


@click.command()
@click.argument("model")
@as_json_option
def log(model: str, as_json: bool) -> None:
    """Tell the versions of MODEL, the newest first.

    What made each, from what, and when (UTC); the head is marked with a star.
    """
    from pipeline.store import history, provenance_of

    told = history(model)
    rows: list[dict[str, Any]] = []
    for version in sorted(told.versions, key=lambda v: -v.number):
        story = provenance_of(model, version)
        source = story.get("source")
        source = source if isinstance(source, dict) else {"name": source}  # of a Subspace that somebody made by hand
        rows.append(
            {
                "version": version.number,
                "id": version.id,
                "parent": next((v.number for v in told.versions if v.id == version.parent), None),
                "created": version.created,
                "kind": version.kind,
                "head": version.id == told.head,
                "tags": told.tags_of(version),
                "path": version.path,
                "source": source.get("name"),
                "shape": source.get("shape"),
                "content": source.get("content"),
                "provenance": story,
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    for row in rows:
        mark, tags = "*" if row["head"] else " ", f" ({', '.join(row['tags'])})" if row["tags"] else ""
        rows_seen = (row["shape"] or ["?"])[0]
        parent = f" from {row['parent']}" if row["parent"] is not None else ""
        click.echo(
            f"{mark}{row['version']:>4}  {row['id'][:12]}  {row['created'][:19]}  {row['kind']}{parent}{tags}: "
            f"{rows_seen} rows of {row['source']}, content {str(row['content'])[:12]}"
        )


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@as_json_option
def diff(a: str, b: str, as_json: bool) -> None:
    """Tell how two models differ: principal angles, and the drift of each mode.

    A and B are models, or versions of them: MODEL@VERSION, with a number, a tag or an id.
    """
    from pipeline.drift import drift
    from pipeline.store import load

    found = drift(*(load(*place_and_version(text)) for text in (a, b)))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        click.echo(str(found))


@click.command()
@click.argument("model")
@click.argument("version")
def rollback(model: str, version: str) -> None:
    """Make an earlier VERSION the head of MODEL again; nothing is lost.

    VERSION is a number, a tag or the first digits of an id, as `pipeline log` tells them.
    """
    from pipeline.store import rollback as roll_back

    click.echo(f"{model}@{roll_back(model, version).number}")


@click.command()
@click.argument("model")
@click.argument("name")
@click.argument("version", required=False)
def tag(model: str, name: str, version: str | None) -> None:
    """Give a VERSION of MODEL (the head by default) a NAME, which keeps it from expiring."""
    from pipeline.store import tag as give_tag

    click.echo(f"{model}@{give_tag(model, name, version).number}")


@click.command()
@click.argument("model")
@click.option("--keep", type=click.IntRange(min=1), required=True, metavar="N", help="How many of the newest stay.")
@click.option("--grace", type=float, default=None, metavar="SECONDS", help="For readers of what was the head just now.")
@click.pass_context
def expire(ctx: click.Context, model: str, keep: int, grace: float | None) -> None:
    """Let all versions of MODEL but the newest N go; the head and tagged ones stay."""
    from pipeline.store import expire as let_go
    from pipeline.store.history import GRACE

    gone = let_go(model, keep, GRACE if grace is None else grace)
    if not quiet(ctx):
        say(f"{len(gone)} versions of {model} have expired")
    for version in gone:
        click.echo(f"{model}@{version.number}")


@click.command()
@click.argument("model")
@click.argument("source")
@source_options
@click.option(
    "--forget", type=float, default=1.0, metavar="RATE", help="What all samples before count from now on, such as 0.99."
)
@click.option("--remove", is_flag=True, help="Take the samples of SOURCE away again.")
@click.option(
    "--align", type=click.Choice(["procrustes"]), help="Turn the modes to lie as those of the version before."
)
@click.option("--out", metavar="MODEL", help="Write the first version of another model instead.")
@scheduler_option
@click.pass_context
def update(
    ctx: click.Context,
    model: str,
    source: str,
    forget: float,
    remove: bool,
    align: str | None,
    out: str | None,
    scheduler: str | None,
    **options: Any,
) -> None:
    """Add the samples of SOURCE that MODEL has not seen, as a new version.

    A SOURCE that has grown is read from where it had ended; the same samples again make no new version.
    """
    from pipeline.jobs.cluster import cluster_client
    from pipeline.jobs.spec import SourceSpec, parse
    from pipeline.jobs.update import update_model

    spec = parse(SourceSpec, source_of(source, options))
    with cluster_client(scheduler), showing_progress(quiet(ctx)):
        result = update_model(model, spec, forget=forget, remove=remove, align=align, out=out)
    if not quiet(ctx):
        say(str(result))
    click.echo(result.place)
