"""`pipeline submit`, `jobs`, `logs` and `cancel`: jobs that go on when the laptop closes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import _cluster as cluster_option
from pipeline.cli import _json as as_json_option
from pipeline.cli import _overwrite as overwrite_option
from pipeline.cli import _quiet as quiet
from pipeline.cli import _scheduler as scheduler_option
from pipeline.console import say
from pipeline.errors import InputError, StoreError

if TYPE_CHECKING:
    from pipeline.jobs.record import Record
    from pipeline.jobs.spec import ClusterSpec

__all__ = ["cancel", "jobs", "logs", "submit"]

_store = click.option("--store", metavar="STORE", help="The jobs' store; default: those that you have submitted to.")


@click.command()
@click.argument("job", metavar="JOB.yaml")
@scheduler_option
@cluster_option
@overwrite_option
@as_json_option
@click.pass_context
def submit(
    ctx: click.Context, job: str, scheduler: str | None, cluster: str | None, overwrite: bool, as_json: bool
) -> None:
    """Start the job that JOB.yaml describes on a cluster, and leave it there.

    It prints the job's id: `pipeline jobs`, `logs` and `cancel` know it. Relative paths start at the current directory;
    the workers must see the same files.
    """
    from pipeline.jobs.cluster import meant
    from pipeline.jobs.known import remember
    from pipeline.jobs.spec import load_job
    from pipeline.jobs.submit import submit_job

    spec = load_job(job)
    where = meant(scheduler, cluster, spec.cluster)
    if where is None:
        raise InputError(
            "no cluster is named: give --scheduler ADDRESS or --cluster FILE, or a section cluster in the job"
        )
    with where.client(stays=True) as client:
        submitted = submit_job(spec.with_(None, overwrite=overwrite), where, client)
    record = submitted.record
    remember(record.store)
    if not quiet(ctx):
        for line in submitted.told:
            say(line)
        say(f"submitted: follow it with pipeline logs --follow {record.id}")
    click.echo(json.dumps({"id": record.id, "store": record.store}) if as_json else record.id)


@click.command()
@_store
@scheduler_option
@cluster_option
@as_json_option
def jobs(store: str | None, scheduler: str | None, cluster: str | None, as_json: bool) -> None:
    """Tell which jobs there are and how they fare, the newest first.

    Those in the stores that you have submitted to, those of one STORE, or those that a scheduler knows.
    """
    from pipeline.jobs.record import records_in

    if scheduler or cluster:
        records = _on_scheduler(scheduler, cluster)
    else:
        records = [record for place in _stores(store) for record in _readable(records_in, place, store is not None)]
    rows = sorted((record.facts() for record in records), key=lambda row: str(row["submitted"]), reverse=True)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max((len(row["id"]) for row in rows), default=0)
    for row in rows:
        fate = (row["error"] or {}).get("sentence") or row["outputs"]["model"]
        took = _took(row["started"], row["ended"] or (row["alive"] if row["state"] == "lost" else None))
        click.echo(f"{row['id']:{width}s}  {row['state']:10s}  {row['submitted'][:19]}  {took:>8s}  {fate}")


@click.command()
@click.argument("id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@_store
@scheduler_option
@cluster_option
@as_json_option
def logs(id: str, follow: bool, store: str | None, scheduler: str | None, cluster: str | None, as_json: bool) -> None:
    """Print what the job ID has told so far, and how it ended.

    The first letters of the id do where they are of one job only. Times are UTC.
    """
    from pipeline.jobs.record import ENDED

    record, told = _found(id, store, scheduler, cluster), 0
    while True:
        facts = record.facts()
        lines = record.log
        if as_json and (not follow or facts["state"] in ENDED):
            click.echo(json.dumps({**facts, "log": lines}, indent=2))
            return
        for line in () if as_json else lines[told:]:
            click.echo(line)
        told = len(lines)
        if facts["state"] in ENDED or facts["state"] == "lost" or not follow:
            break
        time.sleep(1.0)
    if facts["error"] is not None:
        click.echo(facts["error"]["traceback"].rstrip() or facts["error"]["sentence"])
    if facts["state"] not in ENDED or not lines:
        since = f" since {facts['alive']}: its cluster is gone, or does not reach the store" if facts["alive"] else ""
        click.echo(f"{facts['state']}{since if facts['state'] == 'lost' else ''}")


@click.command()
@click.argument("id")
@_store
@scheduler_option
@cluster_option
@click.pass_context
def cancel(ctx: click.Context, id: str, store: str | None, scheduler: str | None, cluster: str | None) -> None:
    """Stop the job ID, and wait until it has stopped.

    What it has published stays, and so does its checkpoint: the same job goes on from there.
    """
    from pipeline.jobs.submit import cancel_job

    record = _found(id, store, scheduler, cluster)
    state = cancel_job(record, _connecting(scheduler, cluster))
    if state != "cancelled":
        raise InputError(f"{record.id} was faster: it is {state}")
    if not quiet(ctx):
        say("cancelled")
    click.echo(record.id)


def _found(id: str, store: str | None, scheduler: str | None, cluster: str | None) -> Record:
    from pipeline.jobs.known import find_job

    if store is None and (scheduler or cluster):
        stores = list(dict.fromkeys(record.store for record in _on_scheduler(scheduler, cluster)))
    else:
        stores = _stores(store)
    return find_job(id, stores)


def _stores(store: str | None) -> list[str]:
    from pipeline.jobs.known import known_stores

    if store is not None and "://" not in store and not Path(store).exists():
        raise InputError(
            f"{store} does not exist: a job's store is output.jobs of the job, or jobs.zarr beside its model"
        )
    return known_stores() if store is None else [store]


def _on_scheduler(scheduler: str | None, cluster: str | None) -> list[Record]:
    from pipeline.jobs.submit import jobs_on

    with _client(scheduler, cluster) as client:
        return [record for record, _ in jobs_on(client).values()]


@contextmanager
def _client(scheduler: str | None, cluster: str | None) -> Iterator[Any]:
    from pipeline.jobs.cluster import meant

    where = meant(scheduler, cluster)
    assert where is not None
    with where.client(stays=True) as client:
        yield client


def _connecting(scheduler: str | None, cluster: str | None) -> Callable[[ClusterSpec], Any]:
    """Where a job's cluster is reached: as it was when it was submitted, unless it is said otherwise."""
    if scheduler or cluster:
        return lambda _: _client(scheduler, cluster)
    return lambda kept: kept.client(stays=True)


def _readable(read: Callable[[str], Iterator[Record]], place: str, asked: bool) -> list[Record]:
    """The records of a store; one that was not asked for and cannot be read is told of and left out."""
    try:
        return list(read(place))
    except StoreError as error:
        if asked:
            raise
        say(str(error))
        return []


def _took(started: str | None, ended: str | None) -> str:
    """How long it has run.

    >>> _took("2026-01-01T00:00:00+00:00", "2026-01-01T01:00:05+00:00"), _took(None, None)
    ('1:00:05', '')
    """
    from datetime import UTC, datetime, timedelta

    if started is None:
        return ""
    end = datetime.now(UTC) if ended is None else datetime.fromisoformat(ended)
    return str(timedelta(seconds=max(0, round((end - datetime.fromisoformat(started)).total_seconds()))))
