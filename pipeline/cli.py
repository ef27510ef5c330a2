"""The `pipeline` command: data on stdout, all else on stderr; exit code 0 done, 2 wrong input, 1 the rest.

Dask, xarray and scikit-learn take seconds to import, so that each command imports what it needs when it is called:
`--help` must not wait for them.
"""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline import __version__
from pipeline.commands.federation import federate, site
from pipeline.console import say, showing_progress
from pipeline.errors import InputError, PipelineError, PlanError, StoreError

if TYPE_CHECKING:
    from pipeline.jobs.spec import JobSpec

__all__ = ["main"]

F = TypeVar("F", bound=Callable[..., Any])


# Commands that have a module of their own: name to where it is.
_ELSEWHERE = {
    **dict.fromkeys(("log", "diff", "rollback", "tag", "expire", "update"), "pipeline.commands.history"),
    "ingest": "pipeline.commands.ingest",
    "inspect": "pipeline.commands.inspect",
    **dict.fromkeys(("submit", "jobs", "logs", "cancel"), "pipeline.commands.jobs"),
    **dict.fromkeys(("doctor", "cluster"), "pipeline.commands.doctor"),
    **dict.fromkeys(("report", "serve"), "pipeline.commands.page"),
}


class _OneSentence(click.Group):
    """A group whose commands end in one sentence and an exit code, never in a traceback (unless asked for)."""

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params["debug"]
        try:
            with warnings.catch_warnings():
                if not debug:  # warnings of libraries are for developers
                    warnings.simplefilter("ignore")
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            say("pipeline: interrupted")
            ctx.exit(130)
        except Exception as error:
            if debug:
                traceback.print_exc()
            sentence, code = _verdict(error)
            say(f"pipeline: {sentence}")
            ctx.exit(code)


class _Commands(_OneSentence):
    """The commands of this module and of others, which are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            return getattr(import_module(_ELSEWHERE[cmd_name]), cmd_name)
        return super().get_command(ctx, cmd_name)


def _verdict(error: Exception) -> tuple[str, int]:
    """What a person is told about an error, and the exit code."""
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "pipeline"
        return f"{error.format_message().rstrip('.')} (see '{where} --help')", 2
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, PipelineError):
        return str(error), 2 if isinstance(error, InputError | StoreError | PlanError) else 1
    return f"{type(error).__name__}: {error}; rerun as 'pipeline --debug ...' for the traceback", 1


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pipeline")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", is_flag=True, help="No progress and messages on stderr, errors only.")
def main(debug: bool, quiet: bool) -> None:
    """Find, keep and serve the dominant subspaces of matrices far larger than memory."""


def _several(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_source_options = _several(
    click.option("--variable", multiple=True, metavar="NAME", help="Variable inside a group; repeat to join several."),
    click.option("--sample-dim", "sample_dims", multiple=True, metavar="DIM", help="Dim of samples; may be repeated."),
    click.option("--weights", metavar="coslat", help="Weigh features by sqrt(cos(latitude))."),
    click.option(
        "--select",
        multiple=True,
        metavar="DIM=START:STOP",
        help="Part of a dim: ints are positions, dates and numbers with a point are labels; may be repeated.",
    ),
)
_model_options = _several(
    click.option("-n", "n_components", required=True, metavar="K", help="How many, a fraction of variance, or auto."),
    click.option("--solver", default="auto", show_default=True, help="Name of a solver."),
    click.option("--tol", metavar="T", help="Certified bound on the sine of the largest angle."),
    click.option("--scale", metavar="std", help="Divide features by their standard deviation."),
    click.option("--missing", default="error", show_default=True, help="What to do with NaN: error, mean or em."),
    click.option("--memory-limit", metavar="BYTES", help="Of a worker, such as 2GB."),
    click.option("--no-center", is_flag=True, help="Do not subtract the mean."),
    click.option("--robust", "method", metavar="METHOD", help="Withstand outliers: filter, spherical, dpd, ..."),
    click.option("--eps", type=float, metavar="SHARE", help="Of the rows that may lie, below 0.5 (with --robust)."),
    click.option("--seed", "random_state", type=int, default=0, show_default=True, help="Of random numbers."),
)


def place_and_version(text: str) -> tuple[str, str | None]:
    """MODEL@VERSION as two words; what is a place as it stands is one."""
    place, at, version = text.rpartition("@")
    return (text, None) if not (at and version) or "/" in version or Path(text).exists() else (place, version)


_scheduler = click.option("--scheduler", metavar="ADDRESS", help="A running Dask scheduler, such as tcp://host:8786.")
_cluster = click.option("--cluster", metavar="FILE", help="Cluster instead: a YAML file, or a name in conf/clusters.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _source(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """The source section of a job, from the options of a command."""
    select = {}
    for text in options.pop("select"):
        dim, equals, stretch = text.partition("=")
        if not equals:
            raise InputError(f"--select {text}: expected DIM=START:STOP")
        select[dim] = stretch
    names = {key: list(options.pop(key)) or None for key in ("variable", "sample_dims")}
    # One name means that variable, as in Python; a list would mean several that are joined.
    names = {key: value[0] if value and len(value) == 1 else value for key, value in names.items()}
    return {"path": path, **names, "weights": options.pop("weights"), "select": select or None}


def _model(options: dict[str, Any]) -> dict[str, Any]:
    """The model section of a job, from the options of a command."""
    from pipeline.jobs.spec import scalar

    if options["eps"] is not None and options["method"] is None:
        raise InputError("--eps is the share of rows that may lie: give --robust METHOD too")
    estimator = "PCA" if options["method"] is None else "RobustPCA"
    number, center = scalar(options.pop("n_components")), not options.pop("no_center")
    return {"estimator": estimator, "n_components": number, "center": center, **options}


@main.command()
@click.argument("source")
@_model_options
@_source_options
@click.option("--out", required=True, metavar="MODEL", help="Zarr store to write the model to.")
@click.option("--scores", metavar="STORE", help="Zarr store to write the scores of the samples to.")
@click.option("--store", type=click.Choice(["zarr", "icechunk"]), default="zarr", help="What MODEL is kept in.")
@click.option("--checkpoint", metavar="STORE", help="Where to keep the state: the same command goes on from there.")
@click.option("--start", metavar="MODEL", help="Model to begin with: that of SOURCE before it changed a little.")
@_scheduler
@_overwrite
@click.pass_context
def fit(
    ctx: click.Context,
    source: str,
    out: str,
    scores: str | None,
    store: str,
    scheduler: str | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Fit the leading K components of SOURCE and write them to MODEL."""
    from pipeline.jobs.spec import parse_job

    job = parse_job(
        {
            "source": _source(source, options),
            "model": _model(options),
            "output": {"model": out, "scores": scores, "store": store, "overwrite": overwrite},
            "cluster": {"address": scheduler} if scheduler else None,
        }
    )
    _run(ctx, job)


@main.command()
@click.argument("job", metavar="JOB.yaml")
@_scheduler
@_cluster
@_overwrite
@click.pass_context
def run(ctx: click.Context, job: str, scheduler: str | None, cluster: str | None, overwrite: bool) -> None:
    """Run the whole job that JOB.yaml describes."""
    from pipeline.jobs.cluster import meant
    from pipeline.jobs.spec import load_job

    spec = load_job(job)
    _run(ctx, spec.with_(meant(scheduler, cluster, spec.cluster), overwrite=overwrite))


def _run(ctx: click.Context, job: JobSpec) -> None:
    from pipeline.jobs.run import run_job

    with showing_progress(_quiet(ctx)):
        result = run_job(job)
    if not _quiet(ctx):
        say(str(result.subspace))
    promise = result.subspace.provenance.get("robust", {}).get("certificate", {"holds": True})
    if not promise["holds"]:  # never a silent answer, however quiet
        say(f"the certificate does not hold: {promise['text']}")
    for written in filter(None, (result.model, result.scores, result.report)):
        click.echo(written)


def _quiet(ctx: click.Context) -> bool:
    return bool(ctx.find_root().params["quiet"])


@main.command()
@click.argument("source")
@_model_options
@_source_options
@_scheduler
@_json
def plan(source: str, scheduler: str | None, as_json: bool, **options: Any) -> None:
    """Say what a fit would cost; nothing is run.

    Solver and why, passes over SOURCE, bytes read, peak memory of a worker, blocks kept, seconds.
    """
    from pipeline.jobs.spec import ModelSpec, SourceSpec, parse

    source_spec, model_spec = parse(SourceSpec, _source(source, options)), parse(ModelSpec, _model(options))

    from pipeline.jobs.cluster import cluster_client
    from pipeline.jobs.run import make_estimator, open_source
    from pipeline.plans import plan as plan_fit

    with cluster_client(scheduler):
        planned = plan_fit(open_source(source_spec), make_estimator(model_spec))
    click.echo(json.dumps(planned.to_dict(), indent=2) if as_json else str(planned))


@main.command()
@click.argument("model")
@click.argument("source")
@_source_options
@click.option("--out", required=True, metavar="SCORES", help="Zarr store to write the scores to.")
@_scheduler
@_overwrite
@click.pass_context
def transform(
    ctx: click.Context, model: str, source: str, out: str, scheduler: str | None, overwrite: bool, **options: Any
) -> None:
    """Write the scores of samples to SCORES.

    The samples of SOURCE are projected on the components of MODEL, or of an earlier version of it: MODEL@VERSION.
    """
    from pipeline.jobs.spec import SourceSpec, parse

    spec = parse(SourceSpec, _source(source, options))

    from pipeline.jobs.cluster import cluster_client
    from pipeline.jobs.run import check_outputs, scores_of
    from pipeline.store import load

    check_outputs([out], source, overwrite=overwrite)
    subspace = load(*place_and_version(model))
    with cluster_client(scheduler), showing_progress(_quiet(ctx)):
        scores_of(subspace, spec, out, overwrite=overwrite)
    click.echo(out)


@main.command()
@click.argument("model")
@click.argument("source")
@_source_options
@click.option("--out", required=True, metavar="STORE", help="Zarr store to write the scores to.")
@click.option("--fit", "normal", metavar="SOURCE", help="Normal samples: how many of SOURCE are stranger than these.")
@click.option("--threshold", metavar="SHARE", help="Quantile of the normal scores, or q (with --fit).  [default: 0.99]")
@_scheduler
@_overwrite
@_json
@click.pass_context
def score(
    ctx: click.Context,
    model: str,
    source: str,
    out: str,
    normal: str | None,
    threshold: str | None,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write how far samples lie from MODEL to STORE: the higher, the stranger.

    Squared distances from the components, in their units. An earlier version of MODEL is MODEL@VERSION.
    """
    from pipeline.jobs.spec import SourceSpec, parse

    if threshold is not None and normal is None:
        raise InputError("--threshold is about the scores of normal samples: give --fit SOURCE too")
    spec = parse(SourceSpec, _source(source, options))

    from pipeline.jobs.cluster import cluster_client
    from pipeline.jobs.run import anomalies_of, check_outputs
    from pipeline.store import load

    check_outputs([out], source, overwrite=overwrite)
    subspace = load(*place_and_version(model))
    with cluster_client(scheduler), showing_progress(_quiet(ctx)):
        facts = anomalies_of(subspace, spec, out, normal=normal, threshold=threshold or "0.99", overwrite=overwrite)
    if normal is not None and not _quiet(ctx):
        say(f"{facts['anomalies']} of {facts['samples']} samples lie above the threshold {facts['threshold']:.6g}")
    click.echo(json.dumps({"scores": out, **facts}, indent=2) if as_json else out)


for command in (federate, site):
    main.add_command(command)

if __name__ == "__main__":
    main()
