"""One self-contained HTML page about a subspace: what it is, how good it is, what it looks like, what it cost."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError, StoreError

if TYPE_CHECKING:
    import xarray as xr

    from pipeline.subspace import Subspace

__all__ = ["write_report"]

MOST_MODES = 6  # that are drawn
MOST_ROWS = 40  # of a table


def write_report(
    subspace: Subspace,
    out: str | PathLike[str],
    *,
    scores: xr.DataArray | np.ndarray | None = None,
    title: str | None = None,
) -> Path:
    """Write one HTML file with scree, modes, scores, certificate, costs and provenance of a subspace.

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

    Raises
    ------
    InputError
        When the scores are not those of this subspace.
    StoreError
        When the file cannot be written.
    """
    page = render(subspace, scores, title)
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


def render(subspace: Subspace, scores: xr.DataArray | np.ndarray | None = None, title: str | None = None) -> str:
    """The page as text; raises InputError when the scores are not those of the subspace."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from pipeline.report import figures

    shown, subject = min(subspace.k, MOST_MODES), _subject(subspace)
    drawn = None if scores is None else _first_scores(subspace, scores, shown)
    said = dict(subspace.provenance)
    passes, plan = said.pop("walks", None) or [], said.pop("plan", None)
    said.pop("cuts", None)  # of a filter: arrays, as text
    robust = dict(said.get("robust") or {})
    mapped = np.array(robust.pop("map", None) or np.zeros((0, 2)))
    said |= {"robust": robust} if robust else {}
    modes = [
        {
            "number": j + 1,
            "share": _percent(subspace.explained_variance_ratio[j]),
            "picture": figures.mode(subspace, j),
            "score": None if drawn is None else figures.score(subspace, drawn, j),
        }
        for j in range(shown)
    ]
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        title=title or subject or "Principal subspace",
        summary=([("data", subject)] if title and subject else []) + _summary(subspace),
        promise=_promise(subspace),
        scree=[figures.scree(subspace), figures.cumulative(subspace)] if subspace.k else [],
        modes=modes,
        k=subspace.k,
        has_scores=drawn is not None,
        certificate=_certificate(subspace)[:MOST_ROWS],
        walks=_walks(passes)[:MOST_ROWS],
        walks_total=_walks([_sum(passes)])[0] if passes else None,
        outliers=figures.outliers(mapped, (robust["score_cutoff"], robust["orthogonal_cutoff"]))
        if len(mapped)
        else None,
        walks_picture=figures.walks(passes) if passes else None,
        plan=None if plan is None else str(plan),
        provenance=[(name, _words(value)) for name, value in said.items()],
    )


def _subject(subspace: Subspace) -> str:
    """What the features are called: the long name of the variable, else its name, with its unit."""
    attrs = subspace.features.attrs if subspace.features else {}
    name = next((str(attrs[key]) for key in ("long_name", "name", "standard_name") if attrs.get(key)), "")
    units = attrs.get("units")
    return f"{name} ({units})" if name and units else name


def _summary(subspace: Subspace) -> list[tuple[str, str]]:
    """The header: names and facts, in words."""
    source = subspace.provenance.get("source") or ""
    if isinstance(source, Mapping):
        source = source.get("name", "")
    ratio, labels = subspace.explained_variance_ratio, subspace.features
    grid = " x ".join(f"{_count(n)} {d}" for d, n in zip(labels.dims, labels.sizes, strict=True)) if labels else ""
    without = int((~subspace.present).sum())
    features = f"{_count(subspace.n_samples)} samples x {_count(subspace.n_features)} features"
    if labels and len(labels.dims) > 1:
        features += f" ({grid})"
    if without:
        features += f"; {_count(without)} features have no values and are left out"
    share = f"{_count(subspace.k)} {'component explains' if subspace.k == 1 else 'components explain'} "
    share += f"{_percent(ratio.sum())} of the variance"
    if subspace.k > 1:
        share += f", the first alone {_percent(ratio[0])}"
    facts = [
        ("source", _words(source)),
        ("matrix", features),
        ("method", _method(subspace)),
        ("answer", share),
    ]
    return [(name, fact) for name, fact in facts if fact]


def _method(subspace: Subspace) -> str:
    """How the answer came about, as far as the provenance tells."""
    said = subspace.provenance
    words = [_words(said.get("method") or ("principal components" if subspace.centered else "truncated SVD"))]
    if said.get("solver"):
        words.append(f"solver {_words(said['solver'])}")
    if subspace.passes:
        words.append(f"{subspace.passes} {'pass' if subspace.passes == 1 else 'passes'} over the data")
    if said.get("reason"):
        words.append(f"ended as: {_words(said['reason'])}")
    return ", ".join(words)


def _promise(subspace: Subspace) -> str:
    """The certificate in one sentence."""
    if not subspace.k:
        return "There are no components, and nothing to certify."
    separated = int((subspace.angle_bounds < np.pi / 2).sum())
    if not separated:
        return "Nothing is certified: the variances lie too close together, or the solver stopped too early."
    sine = _sine(subspace.angle_bounds[separated - 1])
    who = "the component lies" if separated == 1 else f"the first {separated} components together lie"
    if separated == subspace.k > 1:
        who = f"all {separated} components together lie"
    sentence = f"{who[0].upper()}{who[1:]} within an angle of sine {sine} of the true ones"
    if separated < subspace.k:
        sentence += "; from there on the modes are not separated from what follows, and no angle is certified"
    return sentence + "."


def _certificate(subspace: Subspace) -> list[tuple[str, ...]]:
    ratio = subspace.explained_variance_ratio
    return [
        (
            str(j + 1),
            f"{subspace.singular_values[j]:.6g}",
            _percent(ratio[j]),
            _percent(together),
            f"{subspace.residual[j]:.1e}",
            _sine(subspace.angle_bounds[j]),
        )
        for j, together in enumerate(np.cumsum(ratio))
    ]


def _walks(passes: list[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    from dask.utils import format_bytes, format_time

    rows = []
    for number, walk in enumerate(passes, 1):
        seconds, size = float(walk.get("seconds") or 0), int(walk.get("bytes") or 0)
        spent = (format_time(float(walk.get(key) or 0)) for key in ("seconds", "read_seconds", "compute_seconds"))
        rate = f"{format_bytes(int(size / seconds))}/s" if seconds > 0 else "–"
        rows.append((str(walk.get("pass", number)), _count(walk.get("blocks") or 0), format_bytes(size), *spent, rate))
    return rows


def _sum(passes: list[Mapping[str, Any]]) -> dict[str, Any]:
    keys = ("blocks", "bytes", "seconds", "read_seconds", "compute_seconds")
    return {"pass": "all", **{key: sum(p.get(key) or 0 for p in passes) for key in keys}}


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


def _sine(angle: float) -> str:
    return f"{np.sin(angle):.1e}" if angle < np.pi / 2 else "not separated"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share >= 0.0001 or share == 0 else "< 0.01 %"


def _count(number: float) -> str:
    """With thin spaces between thousands."""
    return f"{number:,.10g}".replace(",", "\u202f")


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str, indent=None if np.isscalar(value) else 1)


def _discard(draft: Path) -> None:
    """Leave no half-made page behind; after a success the draft has already become the page."""
    try:
        draft.unlink(missing_ok=True)
    except OSError:  # its folder cannot be entered: then no draft was made either
        return
