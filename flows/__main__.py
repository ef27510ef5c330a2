"""`python -m flows`: serve the flows of a folder with Prefect, run one of them once and here, or check them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from flows.alerts import raise_alert
from flows.spec import load_flow, load_flows
from flows.steps import STEPS
from pipeline.cli import _OneSentence
from pipeline.console import say

_ALERT = 3


@click.group(cls=_OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", is_flag=True, help="Errors only.")
def main(debug: bool, quiet: bool) -> None:
    """Flows on schedules: ingest, fit, update, federate, score, drift, publish."""


@main.command()
@click.argument("folder", default="conf/flows")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where the page is; whoever reaches it runs flows."
)
@click.option("--port", default=4200, show_default=True, help="Of the page.")
@click.option("--home", default="out/prefect", show_default=True, help="Folder of Prefect's SQLite and logs.")
@click.option("--limit", default=2, show_default=True, type=click.IntRange(min=1), help="Runs at a time.")
def serve(folder: str, host: str, port: int, home: str, limit: int) -> None:
    """Start a Prefect server and run the flows of FOLDER on their schedules, until interrupted."""
    specs = load_flows(folder)

    from flows.serve import serve as serve_all

    serve_all(specs, Path(home), host, port, limit)


@main.command()
@click.argument("file", metavar="FLOW.yaml")
def run(file: str) -> None:
    """Run one flow once, here and without Prefect; exit code 3 where it raises an alert."""
    spec = load_flow(file)
    found = STEPS[spec.flow].run(spec.parameters, lambda alert: _tell(alert, spec))
    say(found.text)
    click.echo(json.dumps(found.facts, default=str))
    sys.exit(_ALERT if found.alert else 0)


@main.command()
@click.argument("folder", default="conf/flows")
def check(folder: str) -> None:
    """Say which flows FOLDER holds, and when they run."""
    for spec in load_flows(folder):
        when = spec.schedule
        told = "by hand" if when is None else f"cron {when.cron}" if when.cron else f"every {when.interval:g} s"
        click.echo(f"{spec.name}: {spec.flow}, {told}")


def _tell(alert: Any, spec: Any) -> None:
    raise_alert(alert, spec.alert)


if __name__ == "__main__":
    main(prog_name="flows")
