"""`FlowSpec`: one file of `conf/flows`: which flow, with which settings, when, and what becomes of its alerts."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, create_model, field_validator, model_validator

from flows.steps import STEPS
from pipeline.errors import InputError
from pipeline.jobs.spec import _Name, _Spec, load_spec

__all__ = ["AlertSpec", "FlowSpec", "ScheduleSpec", "load_flow", "load_flows"]


class ScheduleSpec(_Spec):
    """When a flow runs."""

    cron: _Name | None = Field(
        default=None, description="minute hour day month weekday, such as '0 3 * * *'; a sixth word is of seconds"
    )
    interval: float | None = Field(default=None, gt=0, strict=False, description="seconds, a positive number")
    timezone: _Name = Field(default="UTC", description="a time zone such as Europe/Berlin")

    @model_validator(mode="after")
    def _one(self) -> ScheduleSpec:
        if (self.cron is None) == (self.interval is None):
            raise ValueError("schedule: give either cron or interval")
        return self

    @field_validator("cron")
    @classmethod
    def _words(cls, cron: str | None) -> str | None:
        if cron is not None and len(cron.split()) not in (5, 6):
            raise ValueError("five or six words")
        return cron


class AlertSpec(_Spec):
    """Where alerts go, besides the log and the page; nothing leaves the machine unless a webhook is named."""

    file: _Name | None = Field(default=None, description="the path of a file, one line of JSON an alert")
    webhook: _Name | None = Field(default=None, description="a URL that begins with http:// or https://")

    @field_validator("webhook")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("no http")
        return url


class FlowSpec(_Spec):
    """A flow as it is deployed."""

    name: _Name = Field(default="", description="text; default: that of the file")
    flow: Literal["ingest", "fit", "update", "federate", "score", "drift", "publish"] = Field(
        description=f"one of {', '.join(STEPS)}"
    )
    schedule: ScheduleSpec | None = Field(default=None, description="a section with cron or interval")
    retries: int = Field(default=2, ge=0, description="an int of at least 0")
    retry_delay: float = Field(default=30.0, ge=0, strict=False, description="seconds, at least 0")
    alert: AlertSpec = Field(default=AlertSpec(), description="a section of keys such as file")
    parameters: Any = Field(description="a section of the flow's own keys")


def _with(name: str, settings: type[_Spec]) -> type[FlowSpec]:
    """The kind of files whose parameters are these settings."""
    about = f"a section of keys such as {next(iter(settings.model_fields))}"
    return create_model(name, __base__=FlowSpec, parameters=(settings, Field(description=about)))


_KINDS = {name: _with(name, step.settings) for name, step in STEPS.items()}


def load_flow(path: str | PathLike[str]) -> FlowSpec:
    """The flow that a YAML file describes; raises InputError that names file, line and what was expected."""
    try:
        asked = yaml.safe_load(Path(path).read_text("utf-8"))
        kind = _KINDS.get(str(asked.get("flow")), FlowSpec) if isinstance(asked, dict) else FlowSpec
    except (OSError, ValueError, TypeError, yaml.YAMLError):  # told by load_spec, with its place
        kind = FlowSpec
    spec = load_spec(kind, path)
    return spec if spec.name else spec.model_copy(update={"name": Path(path).stem})


def load_flows(folder: str | PathLike[str]) -> list[FlowSpec]:
    """All flows of a folder, or that of one file; raises InputError where one is wrong or two have a name."""
    place = Path(folder)
    if not place.exists():
        raise InputError(f"{folder} does not exist")
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    if not files:
        raise InputError(f"{folder} holds no flows: each is a file NAME.yaml")
    specs = [load_flow(file) for file in files]
    names = [spec.name for spec in specs]
    for spec, file in zip(specs, files, strict=True):
        if names.count(spec.name) > 1:
            raise InputError(f"{file}: another flow has the name {spec.name!r} too")
    return specs
