"""The seven flows as Prefect sees them: one task each, whose body is a plain function (`flows.steps`).

A task that fails is tried again, unless its input is wrong or it does not converge, which trying again does not mend.
A run whose process dies is scheduled again by whoever serves it, and goes on from its checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import AwaitingRetry

from flows.alerts import alert_id, raise_alert
from flows.spec import AlertSpec
from flows.steps import (
    STEPS,
    Alert,
    DriftSettings,
    FederateSettings,
    FitSettings,
    IngestSettings,
    Outcome,
    PublishSettings,
    ScoreSettings,
    UpdateSettings,
)
from pipeline.errors import ConvergenceError, InputError

__all__ = ["FLOWS", "try_again"]


def try_again(flow: Any, flow_run: Any, state: Any) -> None:
    """Schedule a run whose process died once more, as often as its parameters allow."""
    retries, delay = flow_run.parameters.get("retries", 0), flow_run.parameters.get("retry_delay", 0)
    with get_client(sync_client=True) as client:
        if client.read_flow_run(flow_run.id).run_count > retries:
            return
        when = datetime.now(UTC) + timedelta(seconds=delay)
        client.set_flow_run_state(flow_run.id, AwaitingRetry(scheduled_time=when), force=True)


def _mendable(task: Any, run: Any, state: Any) -> bool:
    """Whether a step is worth another try."""
    return not isinstance(state.result(raise_on_failure=False), InputError | ConvergenceError)


def _run(name: str, settings: Any, retries: int, retry_delay: float, alert: AlertSpec) -> dict[str, Any]:
    log = get_run_logger()

    def tell(found: Alert) -> None:
        if not raise_alert(found, alert, log):
            return
        facts = {"text": found.text, **found.facts}
        resource = {"prefect.resource.id": f"subspace-pipeline.alert.{alert_id(found)}"}
        emit_event(f"subspace-pipeline.alert.{name}", resource=resource, payload=facts)
        table = "\n".join(f"| {key} | {value} |" for key, value in found.facts.items())
        create_markdown_artifact(
            key=f"{name}-alert", markdown=f"**{found.text}**\n\n| | |\n|---|---|\n{table}", description=found.text
        )

    @task(
        name=name,
        retries=retries,
        retry_delay_seconds=retry_delay,
        retry_condition_fn=_mendable,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def step() -> Outcome:
        return STEPS[name].run(settings, tell)

    found = step()
    log.info(found.text)
    return asdict(found)


_OPTIONS: dict[str, Any] = {"on_crashed": [try_again], "persist_result": False, "log_prints": True}
_QUIET = AlertSpec()


@flow(name="ingest", **_OPTIONS)
def ingest(
    settings: IngestSettings, retries: int = 2, retry_delay: float = 30, alert: AlertSpec = _QUIET
) -> dict[str, Any]:
    """Append the samples of files that have arrived to a chunked Zarr store."""
    return _run("ingest", settings, retries, retry_delay, alert)


@flow(name="fit", **_OPTIONS)
def fit(settings: FitSettings, retries: int = 2, retry_delay: float = 30, alert: AlertSpec = _QUIET) -> dict[str, Any]:
    """Fit a model anew, as its next version."""
    return _run("fit", settings, retries, retry_delay, alert)


@flow(name="update", **_OPTIONS)
def update(
    settings: UpdateSettings, retries: int = 2, retry_delay: float = 30, alert: AlertSpec = _QUIET
) -> dict[str, Any]:
    """Bring a model up to date with the rows that it has not seen."""
    return _run("update", settings, retries, retry_delay, alert)


@flow(name="federate", **_OPTIONS)
def federate(
    settings: FederateSettings, retries: int = 2, retry_delay: float = 30, alert: AlertSpec = _QUIET
) -> dict[str, Any]:
    """Agree with sites on one subspace."""
    return _run("federate", settings, retries, retry_delay, alert)


@flow(name="score", **_OPTIONS)
def score(
    settings: ScoreSettings, retries: int = 2, retry_delay: float = 30, alert: AlertSpec = _QUIET
) -> dict[str, Any]:
    """Score new rows; too many strange ones are an alert."""
    return _run("score", settings, retries, retry_delay, alert)


@flow(name="drift", **_OPTIONS)
def drift(
    settings: DriftSettings, retries: int = 2, retry_delay: float = 30, alert: AlertSpec = _QUIET
) -> dict[str, Any]:
    """Compare a model with an earlier version and with new rows; too large a drift is an alert."""
    return _run("drift", settings, retries, retry_delay, alert)


@flow(name="publish", **_OPTIONS)
def publish(
    settings: PublishSettings, retries: int = 2, retry_delay: float = 30, alert: AlertSpec = _QUIET
) -> dict[str, Any]:
    """Give a version its tag after its checks have passed; fails where they do not."""
    found = _run("publish", settings, retries, retry_delay, alert)
    if found["alert"]:
        raise InputError(found["text"])
    return found


FLOWS = {f.name: f for f in (ingest, fit, update, federate, score, drift, publish)}
