"""`pipeline report` and `serve`: a model as a page for people, in a file or on a web server."""

from __future__ import annotations

import click

from pipeline.cli import _overwrite as overwrite_option
from pipeline.cli import _quiet as quiet
from pipeline.cli import _scheduler as scheduler_option
from pipeline.cli import _several as several
from pipeline.console import say, showing_progress
from pipeline.errors import InputError

__all__ = ["report", "serve"]

samples_options = several(
    click.option("--scores", metavar="STORE", help="Scores as `transform` or `fit --scores` wrote them."),
    click.option(
        "--source", metavar="SOURCE", help="Samples whose scores and outlier map are to be shown: they are computed."
    ),
)


@click.command()
@click.argument("model")
@click.option("--out", required=True, metavar="FILE.html", help="HTML file to write.")
@samples_options
@scheduler_option
@overwrite_option
@click.pass_context
def report(
    ctx: click.Context,
    model: str,
    out: str,
    scores: str | None,
    source: str | None,
    scheduler: str | None,
    overwrite: bool,
) -> None:
    """Write an HTML page about MODEL.

    Scree, maps of the modes, scores and outlier map where given, versions and their drift, certificate: one file that
    needs nothing else.
    """
    from pipeline.jobs.cluster import cluster_client
    from pipeline.jobs.run import check_outputs
    from pipeline.report import write_report
    from pipeline.report.samples import measured_samples, stored_scores
    from pipeline.store import load

    _check(scores, source)
    check_outputs([out], model, overwrite=overwrite)
    subspace, shown, distances = load(model), None if scores is None else stored_scores(scores), None
    with cluster_client(scheduler), showing_progress(quiet(ctx)):
        if source is not None:
            shown, distances = measured_samples(subspace, source)
        write_report(subspace, out, scores=shown, distances=distances, model=model)
    click.echo(out)


@click.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any that is free.")
@samples_options
@scheduler_option
@click.pass_context
def serve(
    ctx: click.Context,
    model: str,
    host: str,
    port: int,
    scores: str | None,
    source: str | None,
    scheduler: str | None,
) -> None:
    """Show MODEL as a page in the browser, until Ctrl-C.

    What `report` writes, for every version, with what changed between two. A new version shows when the page is loaded
    again. The address is printed; only this machine can reach it, unless --host says otherwise.
    """
    _check(scores, source)
    try:
        import uvicorn

        from pipeline.report.app import LOCAL, Exhibit, application, is_local, listen
    except ImportError as error:
        raise InputError(f"serve needs {error.name}: pip install 'subspace-pipeline[serve]'") from error
    from pipeline.jobs.cluster import cluster_client

    exhibit = Exhibit(model, source, scores)
    with listen(host, port) as door, cluster_client(scheduler):
        with showing_progress(quiet(ctx)):
            exhibit.prepare()
        local = is_local(host)
        if not local:
            say(f"whoever can reach {host} can read all of {model} there: there is no password and no encryption")
        app = application(exhibit, [*LOCAL, host] if local else ["*"])
        click.echo(f"http://{f'[{host}]' if ':' in host.strip('[]') else host}:{door.getsockname()[1]}/")
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
        config.timeout_graceful_shutdown = 3
        try:
            uvicorn.Server(config).run(sockets=[door])
        except KeyboardInterrupt:  # the way to end it
            return


def _check(scores: str | None, source: str | None) -> None:
    if scores and source:
        raise InputError("--scores and --source both give scores: choose one")
