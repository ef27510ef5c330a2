"""The course of a model: what each of its versions holds, and how far it lies from the one that it came from."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from pipeline.drift import Drift, drift
from pipeline.errors import PipelineError
from pipeline.report.facts import source_name
from pipeline.store import History, Version, history, load
from pipeline.store.read import Place
from pipeline.subspace import Subspace

__all__ = ["Course", "Measured", "Step", "course"]

MOST_VERSIONS = 30  # that are loaded and told, the newest


@dataclass(frozen=True, eq=False)
class Measured:
    """What one version holds; it never changes.

    Parameters
    ----------
    samples : float
        How many it was made from, or the sum of their weights.
    shares : (k,) array
        Of each mode, of the total variance.
    source : str
        Where its last samples came from.
    drift : Drift or None
        From its parent; None where there is none, or it has other features.
    """

    samples: float
    shares: np.ndarray
    source: str
    drift: Drift | None


@dataclass(frozen=True, eq=False)
class Step:
    """One version: what its history says, and what it holds, or in a sentence why that cannot be read."""

    version: Version
    parent: Version | None
    tags: tuple[str, ...]
    is_head: bool
    measured: Measured | None
    trouble: str = ""


@dataclass(frozen=True, eq=False)
class Course:
    """The newest versions of a model, oldest first; `earlier` says how many came before."""

    history: History
    steps: tuple[Step, ...]
    earlier: int


def course(store: Place, known: MutableMapping[str, Measured] | None = None) -> Course:
    """Follow a stored model through its versions; one that is damaged is told as such, the others all the same.

    Parameters
    ----------
    store : Place
    known : mapping from ids, optional
        What was measured before; what is measured now joins it.

    Raises
    ------
    StoreError
        When there is no model, or its history cannot be read.
    """
    told, known = history(store), {} if known is None else known
    by_id = {v.id: v for v in told.versions}
    loaded = lru_cache(maxsize=2)(partial(load, store))  # a parent is most often the one before
    steps = []
    for version in told.versions[-MOST_VERSIONS:]:
        parent, trouble = by_id.get(version.parent or ""), ""
        if version.id not in known:
            try:
                known[version.id] = _measured(loaded, version, parent)
            except PipelineError as error:
                trouble = str(error)
        tags = tuple(told.tags_of(version))
        steps.append(Step(version, parent, tags, version.id == told.head, known.get(version.id), trouble))
    return Course(told, tuple(steps), len(told.versions) - len(steps))


def _measured(loaded: Callable[[str], Subspace], version: Version, parent: Version | None) -> Measured:
    subspace, moved = loaded(version.id), None
    if parent is not None:
        try:
            moved = drift(loaded(parent.id), subspace)
        except (PipelineError, ValueError):  # of other features, or damaged: that is told at its own place
            moved = None
    return Measured(subspace.n_samples, subspace.explained_variance_ratio, source_name(subspace), moved)
