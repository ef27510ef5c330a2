"""What each flow does, without an orchestrator: settings that are checked, and one plain function of `pipeline`.

Whatever runs a step, Prefect here, gives it its settings and a place for alerts, and gets an `Outcome`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.jobs.spec import JobSpec, _Name, _Names, _Spec

__all__ = ["STEPS", "Alert", "Outcome", "Step"]


@dataclass(frozen=True)
class Alert:
    """Something that a person should look at; the same facts make the same alert, which is told once."""

    flow: str
    text: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a step came to, for people and as plain JSON values; `new` tells whether it has changed anything."""

    text: str
    facts: dict[str, Any]
    new: bool
    alert: bool = False


Tell = Callable[[Alert], None]


class IngestSettings(_Spec):
    """Of `pipeline.intake.ingest`."""

    source: _Names = Field(description="files, a pattern such as incoming/*.nc, or a folder")
    store: _Name = Field(description="the path of the store that grows")
    variable: _Names | None = Field(default=None, description="a name or a list of names")
    sample_dim: _Name | None = Field(default=None, description="a dim")
    labels: _Name | None = Field(default=None, description="the column that names the samples")
    dtype: _Name | None = Field(default=None, description="a dtype such as float32")
    missing: Literal["error", "keep"] = Field(default="error", description="error or keep")
    chunk_rows: int | None = Field(default=None, ge=1, description="an int of at least 1")
    settle: float = Field(default=0.0, ge=0, strict=False, description="seconds, at least 0")


class FitSettings(JobSpec):
    """A job: source, model, output, cluster."""


class UpdateSettings(_Spec):
    """Of `pipeline.jobs.update.update_model`."""

    model: _Name = Field(description="the path or URL of a model")
    source: _Name = Field(description="the path or URL of a store")
    forget: float = Field(default=1.0, gt=0, le=1, strict=False, description="a number above 0, at most 1")
    align: Literal["procrustes"] | None = Field(default=None, description="procrustes")


class FederateSettings(_Spec):
    """Of `pipeline.jobs.federation.run_federation`."""

    configuration: _Name = Field(description="the path of a coordinator's configuration")


_Share = Annotated[float, Field(ge=0, le=1, strict=False)]
_Degrees = Annotated[float, Field(ge=0, le=90, strict=False)]
_SHARE, _DEGREES = "a share from 0 to 1", "degrees from 0 to 90"


class ScoreSettings(_Spec):
    """Of `pipeline.jobs.alarms.score_new_rows`."""

    model: _Name = Field(description="the path or URL of a model")
    source: _Name = Field(description="the path or URL of a store that grows")
    scores: _Name = Field(description="the folder for the scores")
    normal: _Name = Field(description="the path or URL of normal samples")
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["q"] = Field(
        default=0.99, description="a quantile between 0 and 1, or q"
    )
    most: float = Field(default=0.05, ge=0, lt=1, strict=False, description="a share from 0 and below 1")


class DriftSettings(_Spec):
    """Of `pipeline.jobs.watch.watch_drift`."""

    model: _Name = Field(description="the path or URL of a model")
    against: _Name | int | None = Field(default=None, description="a version or a tag")
    source: _Name | None = Field(default=None, description="the path or URL of a store")
    newest: int | None = Field(default=None, ge=1, description="an int of at least 1")
    max_angle: _Degrees | None = Field(default=None, description=_DEGREES)
    max_outside: _Share | None = Field(default=None, description=_SHARE)
    max_energy: _Share | None = Field(default=None, description=_SHARE)


class PublishSettings(_Spec):
    """Of `pipeline.jobs.release.release`."""

    model: _Name = Field(description="the path or URL of a model")
    tag: _Name = Field(description="a name such as operational")
    min_samples: int | None = Field(default=None, ge=1, description="an int of at least 1")
    min_variance: _Share | None = Field(default=None, description=_SHARE)
    max_bound: _Degrees | None = Field(default=None, description=_DEGREES)
    max_angle: _Degrees | None = Field(default=None, description=_DEGREES)
    max_outside: _Share | None = Field(default=None, description=_SHARE)


def ingest(settings: IngestSettings, tell: Tell) -> Outcome:
    """Append what has arrived to a store."""
    from pipeline.intake import ingest as take_in

    given = settings.model_dump()
    found = take_in(given.pop("store"), given.pop("source"), **given)
    facts = {"samples": found.n_samples, "files": len(found.added), "known": found.known}
    return Outcome(str(found), facts, bool(found.added))


def fit(settings: FitSettings, tell: Tell) -> Outcome:
    """Fit anew, where there is something new."""
    from pipeline.jobs.refit import refit

    found = refit(settings)
    if found is None:
        return Outcome(f"nothing new: {settings.output.model} was fitted to this already", {}, False)
    S = found.subspace
    facts = {"model": found.model, "components": S.k, "samples": float(S.n_samples), "angle_bound": S.angle_bound}
    return Outcome(f"{found.model}: {S}", facts, True)


def update(settings: UpdateSettings, tell: Tell) -> Outcome:
    """Add the rows that the model has not seen."""
    from pipeline.jobs.update import update_model

    found = update_model(**settings.model_dump())
    return Outcome(str(found), {"version": found.version, "rows": found.rows}, found.rows != 0)


def federate(settings: FederateSettings, tell: Tell) -> Outcome:
    """Agree with all sites on one subspace."""
    from pipeline.jobs.federation import load_federation, run_federation
    from pipeline.jobs.run import head_of

    spec = load_federation(settings.configuration)
    before = head_of(spec.output.model, overwrite=True)
    found = run_federation(spec)
    new = head_of(spec.output.model, overwrite=True) != before
    facts = {"rounds": int(found.n_rounds_), "samples": float(found.subspace_.n_samples)}
    return Outcome(f"{'' if new else 'nothing new: '}{spec.output.model}: {found.subspace_}", facts, new)


def score(settings: ScoreSettings, tell: Tell) -> Outcome:
    """Score the rows that were not scored yet."""
    from pipeline.jobs.alarms import Scored, score_new_rows

    def heard(found: Scored) -> None:
        if found.alert:
            tell(Alert("score", str(found), asdict(found)))

    s = settings
    found = score_new_rows(s.model, s.source, s.scores, s.normal, s.threshold, s.most, heard)
    return Outcome(str(found), asdict(found), found.scores is not None, found.alert)


def drift(settings: DriftSettings, tell: Tell) -> Outcome:
    """Compare the head with an earlier version and with new rows."""
    from pipeline.jobs.watch import watch_drift

    found = watch_drift(**settings.model_dump())
    facts = {"model": settings.model, **asdict(found)}
    if found.alert:
        tell(Alert("drift", str(found), facts))
    return Outcome(str(found), facts, False, found.alert)


def publish(settings: PublishSettings, tell: Tell) -> Outcome:
    """Tag the head after its checks pass."""
    from pipeline.jobs.release import release

    given = settings.model_dump()
    found = release(given.pop("model"), given.pop("tag"), **given)
    facts = {"model": settings.model, **asdict(found)}
    if not found.passed:
        tell(Alert("publish", str(found), facts))
    return Outcome(str(found), facts, found.passed and found.before != found.version, not found.passed)


@dataclass(frozen=True)
class Step:
    """The settings of a flow and its body."""

    settings: type[_Spec]
    run: Callable[[Any, Tell], Outcome]


STEPS = {
    "ingest": Step(IngestSettings, ingest),
    "fit": Step(FitSettings, fit),
    "update": Step(UpdateSettings, update),
    "federate": Step(FederateSettings, federate),
    "score": Step(ScoreSettings, score),
    "drift": Step(DriftSettings, drift),
    "publish": Step(PublishSettings, publish),
}
