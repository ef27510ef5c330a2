"""Score the rows that are new in a store, and raise an alert where too many of them are strange.

The work is plain functions; `alarm_flow` makes a Prefect flow of them (extra `flows`), which emits an event that an
automation can turn into a message. Run as `python -m flows.alarms MODEL SOURCE FOLDER --normal NORMAL`, with
`--cron '*/10 * * * *'` every ten minutes.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from pipeline import AnomalyDetector, load, open_matrix
from pipeline.errors import InputError

__all__ = ["Scored", "alarm_flow", "main", "score_new_rows"]

_SCORES = re.compile(r"rows-(\d+)-(\d+)\.zarr")


@dataclass(frozen=True)
class Scored:
    """Rows [start, stop) that were scored, how many are above the threshold, where the scores are, and the verdict."""

    start: int
    stop: int
    anomalies: int
    threshold: float
    scores: str | None
    alert: bool

    def __str__(self) -> str:
        if self.scores is None:
            return f"no rows after {self.stop}"
        verdict = "ALERT: " if self.alert else ""
        rows = f"{self.anomalies} of rows {self.start} to {self.stop}"
        return f"{verdict}{rows} are above {self.threshold:.6g}; {self.scores}"


def score_new_rows(
    model: str | Path,
    source: str | Path,
    folder: str | Path,
    normal: str | Path,
    threshold: float | str = 0.99,
    most: float = 0.05,
) -> Scored:
    """Score the rows of a growing store that were not scored yet; running it again does nothing twice.

    Parameters
    ----------
    model : path
        Of a stored subspace.
    source : path or URL
        A store to which rows are appended.
    folder : path
        Scores go here, one store a run; their names tell which rows are done.
    normal : path or URL
        Rows that the threshold is calibrated on, once.
    threshold : float or 'q'
        As of `AnomalyDetector`.
    most : float
        Share of the new rows above the threshold from which on it is an alert.

    Raises
    ------
    InputError, StoreError
        When data or model cannot be used.
    """
    if not 0 <= most < 1:
        raise InputError(f"most={most!r}: give a share of the rows, from 0 and below 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    detector = AnomalyDetector(load(str(model)), threshold)
    limit = _threshold(detector, folder, str(normal), str(model))
    matrix, start = open_matrix(str(source)), _done(folder)
    stop = len(matrix)
    if stop <= start:
        return Scored(start, start, 0, limit, None, False)
    out = folder / f"rows-{start}-{stop}.zarr"
    scores = detector.score(matrix.rows(start, stop), out=out)
    above = int((scores > limit).sum())
    return Scored(start, stop, above, limit, str(out), above > most * (stop - start))


def alarm_flow() -> Any:
    """The Prefect flow of `score_new_rows`; raises InputError where Prefect is not installed."""
    try:
        from prefect import flow
        from prefect.events import emit_event
    except ImportError as error:
        raise InputError("flows need Prefect: pip install 'subspace-pipeline[flows]'") from error

    @flow(name="score-new-rows", retries=2, retry_delay_seconds=30, log_prints=True)
    def score(model: str, source: str, folder: str, normal: str, threshold: float = 0.99, most: float = 0.05) -> dict:
        found = score_new_rows(model, source, folder, normal, threshold, most)
        print(found)
        if found.alert:
            resource = {"prefect.resource.id": f"subspace-pipeline.alarm.{Path(folder).name}"}
            emit_event("subspace-pipeline.alert", resource=resource, payload=asdict(found))
        return asdict(found)

    return score


def _done(folder: Path) -> int:
    """How many rows have been scored."""
    stops = [int(m.group(2)) for p in folder.iterdir() if (m := _SCORES.fullmatch(p.name))]
    return max(stops, default=0)


def _threshold(detector: AnomalyDetector, folder: Path, normal: str, model: str) -> float:
    """Calibrated once and kept, so that what was strange yesterday is strange today."""
    kept = folder / "threshold.json"
    asked = {"model": model, "normal": normal, "threshold": detector.threshold}
    if kept.exists():
        known = json.loads(kept.read_text())
        if known["asked"] != asked:
            raise InputError(f"{kept} was made for {known['asked']}: choose another folder")
        return float(known["value"])
    value = detector.fit(normal).threshold_
    fresh = kept.with_suffix(".partial")
    fresh.write_text(json.dumps({"asked": asked, "value": value}))
    fresh.rename(kept)
    return value


@click.command(help=__doc__)
@click.argument("model")
@click.argument("source")
@click.argument("folder")
@click.option("--normal", required=True, help="Store of rows that are normal.")
@click.option("--threshold", default=0.99, show_default=True, help="Quantile of their scores.")
@click.option("--most", default=0.05, show_default=True, help="Share of strange rows from which on it is an alert.")
@click.option("--cron", help="Serve the Prefect flow on this schedule, instead of one run here.")
def main(cron: str | None, **options: Any) -> None:
    """Score once, exit code 3 on an alert; or serve the flow."""
    if cron is not None:
        alarm_flow().serve(name="score-new-rows", cron=cron, parameters=options)
        return
    found = score_new_rows(**options)
    click.echo(str(found))
    sys.exit(3 if found.alert else 0)


if __name__ == "__main__":
    main()
