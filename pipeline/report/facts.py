"""What a page says of a subspace in words and numbers; what is escaped, and how it looks, is the page's business."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pipeline.drift import Drift
    from pipeline.report.course import Course
    from pipeline.store import Version
    from pipeline.subspace import Subspace

__all__ = [
    "certificate",
    "count",
    "degrees",
    "drifted",
    "percent",
    "promise",
    "robust_promise",
    "sine",
    "source_name",
    "subject",
    "summary",
    "total",
    "version",
    "versions",
    "walks",
    "words",
]


def subject(subspace: Subspace) -> str:
    """What the features are called: the long name of the variable, else its name, with its unit."""
    attrs = subspace.features.attrs if subspace.features else {}
    name = next((str(attrs[key]) for key in ("long_name", "name", "standard_name") if attrs.get(key)), "")
    units = attrs.get("units")
    return f"{name} ({units})" if name and units else name


def summary(subspace: Subspace) -> list[tuple[str, str]]:
    """The header: names and facts, in words."""
    ratio, labels = subspace.explained_variance_ratio, subspace.features
    grid = " x ".join(f"{count(n)} {d}" for d, n in zip(labels.dims, labels.sizes, strict=True)) if labels else ""
    without = int((~subspace.present).sum())
    features = f"{count(subspace.n_samples)} samples x {count(subspace.n_features)} features"
    if labels and len(labels.dims) > 1:
        features += f" ({grid})"
    if without:
        features += f"; {count(without)} features have no values and are left out"
    share = f"{count(subspace.k)} {'component explains' if subspace.k == 1 else 'components explain'} "
    share += f"{percent(ratio.sum())} of the variance"
    if subspace.k > 1:
        share += f", the first alone {percent(ratio[0])}"
    facts = [
        ("source", source_name(subspace)),
        ("matrix", features),
        ("method", _method(subspace)),
        ("answer", share),
    ]
    return [(name, fact) for name, fact in facts if fact]


def source_name(subspace: Subspace) -> str:
    """What the samples were read from, as far as the provenance tells."""
    source = subspace.provenance.get("source") or ""
    return words(source.get("name", "") if isinstance(source, Mapping) else source)


def _method(subspace: Subspace) -> str:
    """How the answer came about, as far as the provenance tells."""
    said = subspace.provenance
    parts = [words(said.get("method") or ("principal components" if subspace.centered else "truncated SVD"))]
    if said.get("solver"):
        parts.append(f"solver {words(said['solver'])}")
    if subspace.passes:
        parts.append(f"{subspace.passes} {'pass' if subspace.passes == 1 else 'passes'} over the data")
    if said.get("reason"):
        parts.append(f"ended as: {words(said['reason'])}")
    return ", ".join(parts)


def promise(subspace: Subspace) -> str:
    """The certificate in one sentence."""
    if not subspace.k:
        return "There are no components, and nothing to certify."
    separated = int((subspace.angle_bounds < np.pi / 2).sum())
    if not separated:
        return "Nothing is certified: the variances lie too close together, or the solver stopped too early."
    bound = sine(subspace.angle_bounds[separated - 1])
    truth = "true one" if separated == 1 else "true ones"
    who = "the first component lies" if separated == 1 else f"the first {separated} components together lie"
    if separated == subspace.k:
        who = "the component lies" if separated == 1 else f"all {separated} components together lie"
    sentence = f"{who[0].upper()}{who[1:]} within an angle of sine {bound} of the {truth}"
    if separated < subspace.k:
        sentence += "; from there on the modes are not separated from what follows, and no angle is certified"
    return sentence + "."


def robust_promise(subspace: Subspace) -> list[str]:
    """Whether the promise of a robust method holds, and what that rests on; nothing of other methods."""
    story = subspace.provenance.get("robust")
    found = story.get("certificate") if isinstance(story, Mapping) else None
    if not isinstance(found, Mapping):
        return []
    verdict = "holds" if found.get("holds") is True else "does not hold"
    return [f"Against outliers: the promise of the method {verdict}: {words(found.get('text', ''))}."]


def certificate(subspace: Subspace) -> list[tuple[str, ...]]:
    """One row a mode: singular value, share, share so far, residual, sine of the bound."""
    ratio = subspace.explained_variance_ratio
    return [
        (
            str(j + 1),
            f"{subspace.singular_values[j]:.6g}",
            percent(ratio[j]),
            percent(together),
            f"{subspace.residual[j]:.1e}",
            sine(subspace.angle_bounds[j]),
        )
        for j, together in enumerate(np.cumsum(ratio))
    ]


def walks(passes: list[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row a pass: blocks, bytes and seconds."""
    from dask.utils import format_bytes, format_time

    rows = []
    for number, walk in enumerate(passes, 1):
        seconds, size = float(walk.get("seconds") or 0), int(walk.get("bytes") or 0)
        spent = (format_time(float(walk.get(key) or 0)) for key in ("seconds", "read_seconds", "compute_seconds"))
        rate = f"{format_bytes(int(size / seconds))}/s" if seconds > 0 else "–"
        name = str(walk.get("pass", number) or "sample")
        rows.append((name, count(walk.get("blocks") or 0), format_bytes(size), *spent, rate))
    return rows


def total(passes: list[Mapping[str, Any]]) -> dict[str, Any]:
    """All passes as if they were one."""
    keys = ("blocks", "bytes", "seconds", "read_seconds", "compute_seconds")
    return {"pass": "all", **{key: sum(p.get(key) or 0 for p in passes) for key in keys}}


def versions(course: Course) -> list[dict[str, Any]]:
    """One row a version, the newest first."""
    rows = []
    for step in reversed(course.steps):
        version, measured = step.version, step.measured
        moved = measured and measured.drift
        rows.append(
            {
                "number": version.number,
                "is_head": step.is_head,
                "created": _time(version),
                "kind": version.kind,
                "parent": step.parent and step.parent.number,
                "tags": step.tags,
                "samples": count(measured.samples) if measured else "",
                "share": percent(float(measured.shares.sum())) if measured else "",
                "angle": degrees(moved.angles.max(initial=0.0)) if moved else "–",
                "mean": f"{moved.mean_shift:.2g} s.d." if moved else "–",
                "source": measured.source if measured else "",
                "trouble": step.trouble,
            }
        )
    return rows


def version(shown: Version, told: Course | None) -> str:
    """One version: its number, whether it is the head, its tags, when and how it was made."""
    parts = [str(shown.number)]
    if told is not None:
        parts += ["the head"] if told.history.head == shown.id else []
        parts += [f"tagged {name}" for name in told.history.tags_of(shown)]
    return ", ".join([*parts, f"made {_time(shown)} UTC by {shown.kind}"])


def _time(version: Version) -> str:
    return version.created[:19].replace("T", " ")


def drifted(found: Drift) -> list[tuple[str, ...]]:
    """One row a mode of the first of two subspaces: what it has become."""
    rows: list[tuple[str, ...]] = []
    for mode in found.to_dict()["modes"]:
        became = (str(mode["partner"]), degrees(np.radians(mode["degrees"])), f"{mode['variance_ratio']:.4g}")
        rows.append((str(mode["mode"]), *(became if mode["partner"] else ("gone", "–", "–"))))
    return rows


def degrees(angle: float) -> str:
    """An angle in radians as degrees."""
    return f"{np.degrees(angle):.2g}°" if angle < np.radians(0.1) else f"{np.degrees(angle):.1f}°"


def sine(angle: float) -> str:
    """The sine of a bound in radians."""
    if not angle < np.pi / 2:
        return "not separated"
    return f"{np.sin(angle):.1e}" if angle > 0 else "0"


def percent(share: float) -> str:
    """A share of one as per cent."""
    return f"{100 * share:.2f} %" if share >= 0.0001 or share == 0 else "< 0.01 %"


def count(number: float) -> str:
    """With thin spaces between thousands."""
    return f"{number:,.10g}".replace(",", "\u202f")


def words(value: Any) -> str:
    """Text as it is, all else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str, indent=None if np.isscalar(value) else 1)
