"""`serve`: a Prefect server on this machine, and all flows of a folder on their schedules until it is interrupted.

Prefect reads its settings when it is imported: they are set first, and Prefect is imported here only inside functions.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.spec import FlowSpec
from pipeline.errors import InputError, PipelineError

__all__ = ["serve", "server", "settings"]

_PATIENCE = 600.0  # seconds: a server took 12 s on a quiet machine, and minutes on one with seven times its work


def settings(home: Path, host: str, port: int) -> dict[str, str]:
    """The environment of server and flows: all state in `home`, no account, nothing told to anybody."""
    return {
        "PREFECT_HOME": str(home.resolve()),
        "PREFECT_PROFILES_PATH": str(home.resolve() / "profiles.toml"),
        "PREFECT_API_URL": f"http://{host}:{port}/api",
        "PREFECT_UI_API_URL": f"http://{host}:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # SQLite takes one writer at a time: the others wait, and do not fail
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
        "DO_NOT_TRACK": "1",
    }


@contextmanager
def server(home: Path, host: str = "127.0.0.1", port: int = 4200) -> Iterator[str]:
    """A Prefect server for the time inside, which keeps its runs in SQLite under `home`; its page's address.

    Raises InputError where Prefect is missing or the port is taken, PipelineError when the server does not come up.
    """
    if find_spec("prefect") is None:
        raise InputError("flows need Prefect: pip install 'subspace-pipeline[flows]'")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"{host}:{port} cannot be listened on ({error.strerror}): choose another --port"
            ) from error
    home.mkdir(parents=True, exist_ok=True)
    os.environ.update(settings(home, host, port))
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
    with open(home / "server.log", "ab") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        _wait(process, f"http://{host}:{port}/api/health", home / "server.log")
        yield f"http://{host}:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _die_with_parent() -> None:
    """On Linux, a server does not outlive a parent that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PipelineError(f"Prefect's server has ended with code {process.returncode}: see {log}")
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise PipelineError(f"Prefect's server is not up after {_PATIENCE:g} s: see {log}")


def deployments(specs: Sequence[FlowSpec]) -> list[Any]:
    """What Prefect is to run, and when; raises InputError where a schedule is none."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.flows import EntrypointType
    from prefect.schedules import Cron, Interval

    from flows.etl import FLOWS

    # A run that is due while the one before still goes on is not started, but shown as cancelled.
    alone = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    found = []
    for spec in specs:
        when, schedule = spec.schedule, None
        try:
            if when is not None and when.cron is not None:
                schedule = Cron(when.cron, timezone=when.timezone)
            elif when is not None and when.interval is not None:
                schedule = Interval(when.interval, timezone=when.timezone)
            found.append(
                FLOWS[spec.flow].to_deployment(
                    spec.name,
                    schedule=schedule,
                    parameters={
                        "settings": spec.parameters.model_dump(exclude_unset=True),
                        "retries": spec.retries,
                        "retry_delay": spec.retry_delay,
                        "alert": spec.alert.model_dump(),
                    },
                    concurrency_limit=alone,
                    entrypoint_type=EntrypointType.MODULE_PATH,
                )
            )
        except ValueError as error:
            raise InputError(f"{spec.name}: its schedule cannot be used: {str(error).splitlines()[0]}") from error
    return found


def revive() -> int:
    """Runs that a serving process left behind when it was killed are scheduled again; how many."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    from flows.etl import try_again

    unfinished = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING"]}}})
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=unfinished)
        for run in runs:
            state = Crashed(message="whoever served it was killed")
            client.set_flow_run_state(run.id, state)
            try_again(None, run, state)
    return len(runs)


def serve(specs: Sequence[FlowSpec], home: Path, host: str = "127.0.0.1", port: int = 4200, limit: int = 2) -> None:
    """Run flows on their schedules until interrupted, `limit` at a time."""
    with server(home, host, port) as page:
        from prefect import serve as run_deployments

        ready = deployments(specs)
        again = revive()
        print(f"{len(ready)} flows are served; their page: {page}", file=sys.stderr, flush=True)
        if again:
            print(f"{again} runs that were broken off are taken up again", file=sys.stderr, flush=True)
        run_deployments(*ready, limit=limit, print_starting_message=False)
