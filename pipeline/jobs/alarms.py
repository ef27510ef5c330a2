"""`score_new_rows`: rows that were added to a store are scored once, and too many strange ones are an alert."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from pipeline.errors import InputError, StoreError
from pipeline.estimators.anomaly_detector import AnomalyDetector
from pipeline.jobs.run import count_above
from pipeline.matrix import open_matrix
from pipeline.store import load
from pipeline.store.lock import only_writer
from pipeline.store.publish import synced

__all__ = ["Scored", "score_new_rows"]

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
    tell: Callable[[Scored], None] | None = None,
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
    tell : callable, optional
        Gets the verdict; once, unless a run is killed while it tells.

    Raises
    ------
    InputError, StoreError
        When data or model cannot be used, or the source has fewer rows than were scored.
    """
    if not 0 <= most < 1:
        raise InputError(f"most={most!r}: give a share of the rows, from 0 and below 1")
    detector, matrix = AnomalyDetector(load(str(model)), threshold), open_matrix(str(source))
    folder = _made(folder)
    with only_writer(folder / "scores", "is scoring the rows of"):
        limit, found = _threshold(detector, folder, str(normal), str(model)), None
        done = _done(folder)
        for a, b in done:
            if not _verdict(folder, a, b).exists():  # the run was killed before it told
                found = _told(folder, a, b, limit, most, tell)
        start, stop = max((b for _, b in done), default=0), len(matrix)
        if stop < start:
            raise InputError(
                f"{source} has {stop} rows, but {start} were scored in {folder}: give other rows another folder"
            )
        if stop == start:
            return found or Scored(start, start, 0, limit, None, False)
        detector.score(matrix.rows(start, stop), out=_scores(folder, start, stop))
        return _told(folder, start, stop, limit, most, tell)


def _made(folder: str | Path) -> Path:
    """The folder for the scores, on a local disk."""
    if "://" in str(folder):
        raise InputError(f"{folder}: scores of a store that grows go to a folder on a local disk")
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder {place} cannot be made ({error.strerror}): choose another one") from error
    return place


def _told(
    folder: Path, start: int, stop: int, limit: float, most: float, tell: Callable[[Scored], None] | None
) -> Scored:
    """The verdict on rows that have scores: told, then noted."""
    out = _scores(folder, start, stop)
    with xr.open_zarr(out, chunks=None, consolidated=False) as ds:
        above = count_above(ds["anomaly_score"], limit)
    found = Scored(start, stop, above, limit, str(out), above > most * (stop - start))
    if tell is not None:
        tell(found)
    _write(_verdict(folder, start, stop), asdict(found))
    return found


def _scores(folder: Path, start: int, stop: int) -> Path:
    return folder / f"rows-{start}-{stop}.zarr"


def _verdict(folder: Path, start: int, stop: int) -> Path:
    return folder / f"rows-{start}-{stop}.json"


def _write(path: Path, facts: dict[str, Any]) -> None:
    fresh = path.with_suffix(".partial")
    fresh.write_text(json.dumps(facts))
    synced(fresh)
    fresh.rename(path)


def _done(folder: Path) -> list[tuple[int, int]]:
    """The stretches of rows that have been scored."""
    found = [m for p in folder.iterdir() if (m := _SCORES.fullmatch(p.name))]
    return sorted((int(m.group(1)), int(m.group(2))) for m in found)


def _threshold(detector: AnomalyDetector, folder: Path, normal: str, model: str) -> float:
    """Calibrated once and kept, so that what was strange yesterday is strange today."""
    kept = folder / "threshold.json"
    asked = {"model": model, "normal": normal, "threshold": detector.threshold}
    if kept.exists():
        try:
            known = json.loads(kept.read_text("utf-8"))
            value, made_for = float(known["value"]), known["asked"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{kept} is damaged ({error}): remove it, and the threshold is calibrated anew") from error
        if made_for != asked:
            raise InputError(f"{kept} was made for {made_for}: choose another folder")
        return value
    value = detector.fit(normal).threshold_
    _write(kept, {"asked": asked, "value": value})
    return value
