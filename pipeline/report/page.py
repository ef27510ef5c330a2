"""One self-contained HTML page about a subspace: what it is, how good it is, what it looks like, what it cost.

`pipeline serve` shows the same page, with links to the other versions; both are made here.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError, StoreError
from pipeline.report import facts
from pipeline.report.course import Course, course

if TYPE_CHECKING:
    import xarray as xr

    from pipeline.drift import Drift
    from pipeline.report.canvas import Picture
    from pipeline.store import Version
    from pipeline.store.read import Place
    from pipeline.subspace import Subspace

__all__ = ["Site", "comparison", "drawings", "policy", "render", "sentence", "write_report"]

MOST_MODES = 6  # that are drawn
MOST_ROWS = 40  # of a table


@dataclass(frozen=True)
class Site:
    """Where a page is served: the relative path `up` to the first page, the model, and the version that is shown."""

    up: str
    model: str
    version: Version | None = None


def write_report(
    subspace: Subspace,
    out: str | PathLike[str],
    *,
    scores: xr.DataArray | np.ndarray | None = None,
    title: str | None = None,
    distances: np.ndarray | None = None,
    model: Place | None = None,
) -> Path:
    """Write one HTML file with scree, modes, scores, outlier map, versions, certificate, costs and provenance.

    The page asks for nothing from outside: images are inline, and whatever names and attributes say is escaped.

    Parameters
    ----------
    subspace : Subspace
        What the page is about.
    out : path
        The file; its folder is made, and a file of that name is replaced in one step.
    scores : DataArray with dim `mode` or (n, k) array, optional
        What `transform` gave; the first modes are drawn along time or along the samples.
    title : str, optional
        Default: the name of the variable.
    distances : (n, 2) array, optional
        Score distance and orthogonal distance of samples, as `RobustPCA.distances` gives them: the outlier map.
    model : path, URL or store, optional
        Where the subspace is stored: its versions are told, and how far they have drifted.

    Raises
    ------
    InputError
        When the scores are not those of this subspace.
    StoreError
        When the file cannot be written, or the history of the model cannot be read.
    """
    told = None if model is None else course(model)
    page = render(subspace, scores, title, distances=distances, told=told)
    path = Path(fspath(out))
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise StoreError(
            f"cannot write the report {str(path)!r}: {error.strerror or error}; name another --out file"
        ) from error
    finally:
        _discard(draft)
    return path


def render(
    subspace: Subspace,
    scores: xr.DataArray | np.ndarray | None = None,
    title: str | None = None,
    *,
    distances: np.ndarray | None = None,
    told: Course | None = None,
    site: Site | None = None,
) -> str:
    """The page as text; raises InputError when the scores are not those of the subspace."""
    said, subject = dict(subspace.provenance), facts.subject(subspace)
    passes, plan = _passes(subspace), said.pop("plan", None)
    for name in ("walks", "cuts"):  # a table of its own; of a filter: arrays, as text
        said.pop(name, None)
    if said.get("robust"):
        said["robust"] = {name: value for name, value in said["robust"].items() if name != "map"}  # a picture
    summary = [("data", subject)] if title and subject else []
    if site is not None and site.version is not None:
        summary += [("model", site.model), ("version", facts.version(site.version, told))]
    return _page(
        "report.html",
        title=title or subject or "Principal subspace",
        site=site,
        pictures={name: draw() for name, draw in drawings(subspace, scores, distances, told).items()},
        summary=summary + facts.summary(subspace),
        promises=[facts.promise(subspace), *facts.robust_promise(subspace)],
        modes=[
            (j + 1, facts.percent(subspace.explained_variance_ratio[j])) for j in range(min(subspace.k, MOST_MODES))
        ],
        k=subspace.k,
        robust="robust" in said,
        certificate=facts.certificate(subspace)[:MOST_ROWS],
        versions=[] if told is None else facts.versions(told),
        earlier=told.earlier if told else 0,
        walks=facts.walks(passes)[:MOST_ROWS],
        walks_total=facts.walks([facts.total(passes)])[0] if passes else None,
        plan=None if plan is None else str(plan),
        provenance=[(name, facts.words(value)) for name, value in said.items()],
    )


def drawings(
    subspace: Subspace,
    scores: xr.DataArray | np.ndarray | None = None,
    distances: np.ndarray | None = None,
    told: Course | None = None,
) -> dict[str, Callable[[], Picture]]:
    """The pictures of a page by their names, each drawn when it is called for."""
    from pipeline.report import changes, figures

    passes = _passes(subspace)
    drawn: dict[str, Callable[[], Picture]] = {}
    if subspace.k:
        drawn |= {"scree": partial(figures.scree, subspace), "cumulative": partial(figures.cumulative, subspace)}
    shown = min(subspace.k, MOST_MODES)
    for j in range(shown):
        drawn[f"mode-{j + 1}"] = partial(figures.mode, subspace, j)
    if scores is not None:
        named = _first_scores(subspace, scores, shown)
        for j in range(shown):
            drawn[f"score-{j + 1}"] = partial(figures.score, subspace, named, j)
    if distances is None and (known := (subspace.provenance.get("robust") or {}).get("map")):
        distances = np.asarray(known)  # of a sample of the rows that it was fitted to
    if distances is not None:
        drawn["outliers"] = partial(figures.outliers, distances, _cutoffs(subspace, distances))
    if told is not None and len(told.steps) > 1:
        drawn["drift"] = partial(changes.drifts, told)
        drawn["shares"] = partial(changes.shares, told)
    if passes:
        drawn["walks"] = partial(figures.walks, passes)
    return drawn


def comparison(a: Subspace, b: Subspace, found: Drift, names: tuple[str, str], site: Site, told: Course) -> str:
    """The page that shows what became of each mode from one version to another."""
    from pipeline.report import changes, figures

    pairs, pictures = [], {"angles": changes.angles(found)}
    for i, j in enumerate(found.partner[:MOST_MODES]):
        pictures[f"before-{i + 1}"] = figures.mode(a, i)
        if j >= 0:
            turned = np.vdot(b.basis[j], a.basis[i]).real < 0  # signs are a convention
            pictures[f"after-{i + 1}"] = figures.mode(replace(b, components=-b.components) if turned else b, int(j))
        pairs.append((i + 1, int(j) + 1, facts.degrees(found.modes[i])))
    return _page(
        "comparison.html",
        title=f"{names[0]} and {names[1]}",
        site=site,
        pictures=pictures,
        names=names,
        summary=[
            ("model", site.model),
            ("largest angle", facts.degrees(found.angles.max(initial=0.0))),
            (
                "outside",
                f"{facts.percent(found.outside)} of the second one's explained variance lies outside the first",
            ),
            ("mean", f"moved by {found.mean_shift:.3g} standard deviations"),
        ],
        pairs=pairs,
        rows=facts.drifted(found)[:MOST_ROWS],
        versions=facts.versions(told),
    )


def sentence(title: str, words: str, site: Site, told: Course | None = None) -> str:
    """A page that says why there is no other, and which versions there are."""
    versions = [] if told is None else facts.versions(told)
    return _page("sentence.html", title=title, words=words, site=site, versions=versions, earlier=0, pictures={})


@cache
def policy() -> str:
    """The content security policy of every page: pictures that are in it, its one style sheet, nothing else."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'self'"


@cache
def _style() -> str:
    return files("pipeline.report").joinpath("style.css").read_text("utf-8")


def _page(template: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("pipeline.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(template).render(style=Markup(_style()), policy=policy(), **values)
    return page.encode("utf-8", "replace").decode("utf-8")  # stored text may hold half a surrogate pair


def _passes(subspace: Subspace) -> list[Mapping[str, Any]]:
    return list(subspace.provenance.get("walks") or [])


def _cutoffs(subspace: Subspace, distances: np.ndarray) -> tuple[float, float]:
    """Of score and orthogonal distances: those that the model was fitted with, or what fits these samples."""
    from pipeline.robust.solver import cutoffs_of

    told = subspace.provenance.get("robust") or cutoffs_of(subspace, distances)
    return float(told["score_cutoff"]), float(told["orthogonal_cutoff"])


def _first_scores(subspace: Subspace, scores: xr.DataArray | np.ndarray, shown: int) -> xr.DataArray:
    """The scores that are drawn, in memory, with dim `mode`."""
    import xarray as xr

    named = scores if isinstance(scores, xr.DataArray) else None
    if named is None:
        rows = np.atleast_2d(np.asarray(scores))
        named = xr.DataArray(rows, dims=("sample", "mode") if rows.ndim == 2 else None)
    if named.sizes.get("mode") != subspace.k or named.ndim < 2:
        raise InputError(
            f"scores have dims {dict(named.sizes)}, the subspace has {subspace.k} components along 'mode': "
            "give what transform() of this model returned"
        )
    return named.isel(mode=slice(0, shown)).compute()


def _discard(draft: Path) -> None:
    """Leave no half-made page behind; after a success the draft has already become the page."""
    try:
        draft.unlink(missing_ok=True)
    except OSError:  # its folder cannot be entered: then no draft was made either
        return
