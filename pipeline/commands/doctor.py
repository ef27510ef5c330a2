"""`pipeline doctor` and `cluster`: what stands in the way of a job, and what is asked of a cluster."""

from __future__ import annotations

import json

import click

from pipeline.cli import _cluster as cluster_option
from pipeline.cli import _json as as_json_option
from pipeline.cli import _scheduler as scheduler_option

__all__ = ["cluster", "doctor"]


@click.command()
@click.argument("stores", nargs=-1, metavar="[STORE]...")
@scheduler_option
@cluster_option
@as_json_option
@click.pass_context
def doctor(
    ctx: click.Context, stores: tuple[str, ...], scheduler: str | None, cluster: str | None, as_json: bool
) -> None:
    """Look at versions, workers, memory, threads, and what each STORE allows, a line each.

    Here, and on the scheduler and the workers of a cluster where one is named. The exit code is 1 when something is
    wrong.
    """
    from pipeline.jobs.cluster import cluster_client, meant
    from pipeline.jobs.doctor import WRONG, examine

    with cluster_client(spec=meant(scheduler, cluster)) as client:
        findings = []
        for finding in examine(client, stores):
            findings.append(finding)
            if not as_json:
                click.echo(str(finding))
    if as_json:
        click.echo(json.dumps([finding.to_dict() for finding in findings], indent=2))
    if any(finding.verdict == WRONG for finding in findings):
        ctx.exit(1)


@click.command()
@click.argument("file", metavar="FILE")
def cluster(file: str) -> None:
    """Print what is asked of the system that starts the cluster of FILE; nothing is started.

    The script of a SLURM or PBS job, the manifest of Kubernetes, the options of a gateway.
    """
    from pipeline.jobs.cluster import meant

    described = meant(None, file)
    assert described is not None
    click.echo(described.shown().rstrip())
