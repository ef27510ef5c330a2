"""The page about a subspace: what it shows for every kind of feature, and that nothing in it can bite."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread

from pipeline.errors import InputError, StoreError
from pipeline.labels import Coord, Labels
from pipeline.report import write_report
from pipeline.report.figures import effect, outliers
from pipeline.report.layout import Axis, sheet
from pipeline.report.page import render
from pipeline.subspace import Subspace

WALKS = [
    {"pass": 1, "seconds": 0.8, "read_seconds": 0.9, "compute_seconds": 0.2, "bytes": 750_000, "blocks": 9},
    {"pass": 2, "seconds": 0.5, "read_seconds": 0.4, "compute_seconds": 0.3, "bytes": 750_000, "blocks": 9},
]
HOSTILE = "<script>alert('x')</script>$\\frac{$&\""


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.canvas.DPI", 50)


class Tags(HTMLParser):
    """Collects the tags of a page, each with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def __iter__(self) -> Iterator[tuple[str, dict[str, str | None]]]:
        return iter(self.found)

    def images(self) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self if tag == "img"]


def line(name: str, size: int, **attrs: str) -> Coord:
    return Coord((name,), np.linspace(-30.0, 30.0, size), attrs)


def subspace(labels: Labels | None, k: int = 3, d: int = 0, land: bool = False, **other: object) -> Subspace:
    d = labels.size if labels else d
    rng = np.random.default_rng(0)
    rows = np.linalg.qr(rng.normal(size=(d, k)))[0].T
    mean = np.zeros(d)
    if land:
        mean[: d // 4] = np.nan
        rows[:, : d // 4] = np.nan
    values = 10.0 / np.arange(1, k + 1)
    given = {
        "components": rows,
        "singular_values": values,
        "mean": mean,
        "n_samples": 50,
        "total_variance": float((values**2).sum() / 49 * 1.25),
        "residual": np.full(k, 1e-9),
        "angle_bounds": np.append(np.full(k - 1, 1e-8), np.pi / 2),
        "features": labels,
        "provenance": {"source": "sst.zarr", "method": "gram", "walks": WALKS, "plan": "one pass of 750 kB"},
    }
    return Subspace(**(given | other))


GRID = Labels(
    ("lat", "lon"),
    (12, 20),
    {"lat": line("lat", 12, units="degrees_north"), "lon": line("lon", 20, units="degrees_east")},
    {"units": "K", "long_name": "sea surface temperature"},
)
LEVELS = Labels(
    ("lat", "level", "lon"),
    (5, 9, 7),
    {"lat": line("lat", 5), "level": line("level", 9, units="hPa"), "lon": line("lon", 7)},
)
JOINED = Labels(("feature",), (300,), {"variable": Coord(("feature",), np.repeat(["sst", "msl", "u10"], 100), {})})
FIELDS = Labels(("variable", "lat", "lon"), (2, 4, 5), {"variable": Coord(("variable",), np.array(["sst", "msl"]), {})})
GENES = Labels(("gene",), (5,), {"gene": Coord(("gene",), np.array(list("abcde")), {})})
CASES = {
    "map": (GRID, "Map of mode 1 over lat, lon"),
    "image": (Labels(("row", "shade"), (16, 12)), "Image of mode 1 over row, shade"),
    "levels": (LEVELS, "Map of mode 1 over lat, level, lon"),
    "variables": (FIELDS, "Map of mode 1"),
    "joined": (JOINED, "Mode 1 along feature"),
    "bars": (GENES, "highest"),
    "long": (Labels.plain("feature", 20_000), "Mode 1 along feature"),
    "four": (Labels(("a", "b", "c", "d"), (2, 2, 3, 4)), "Image of mode 1 over a, b, c, d"),
    "one": (Labels(("lat", "lon"), (1, 1), {"lat": line("lat", 1), "lon": line("lon", 1)}), "Map of mode 1"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_feature_is_drawn(name: str) -> None:
    labels, words = CASES[name]
    images = Tags(render(subspace(labels, k=min(3, labels.size)))).images()
    assert any(words in str(i["alt"]) for i in images)
    for image in images:
        kind, data = str(image["src"]).split(",", 1)
        assert kind == "data:image/png;base64"
        pixels = imread(io.BytesIO(base64.b64decode(data)))
        assert np.ptp(pixels[..., :3]) > 0.2, image["alt"]
        assert len(str(image["alt"])) > 20


def test_features_without_labels_and_land_everywhere() -> None:
    assert "Mode 1 along feature" in render(subspace(None, d=30))
    empty = subspace(GRID)
    nothing = np.full(GRID.size, np.nan)
    page = render(subspace(GRID, components=np.tile(nothing, (3, 1)), mean=nothing, residual=empty.residual))
    assert "no values" in page


def test_land_is_counted_and_numbers_are_said_in_words() -> None:
    page = render(subspace(GRID, land=True))
    assert "60 features have no values" in page
    assert "The first 2 components together lie within an angle of sine 1.0e-08" in page
    assert "not separated" in page
    assert "1.6e+00" not in page
    assert "sea surface temperature (K)" in page
    assert "one pass of 750 kB" in page
    assert "1.43 MiB" in page


def test_a_mode_is_drawn_in_the_units_of_the_data() -> None:
    """X = score x direction: one standard deviation of the score does std(X) to each feature, whatever the weights."""
    rng = np.random.default_rng(1)
    weights, scale = np.array([1.0, 0.5, 2.0]), np.array([3.0, 1.0, 1.0])
    X = rng.normal(size=(40, 1)) * np.array([[1.0, -2.0, 0.5]])
    _, s, vt = np.linalg.svd((X - X.mean(0)) * weights / scale, full_matrices=False)
    one = subspace(None, k=1, d=3, components=vt[:1], singular_values=s[:1], n_samples=40, weights=weights, scale=scale)
    np.testing.assert_allclose(np.abs(effect(one, 0)), X.std(0, ddof=1), rtol=1e-12)


def test_maps_lie_as_on_the_globe() -> None:
    turned = Labels(
        ("lon", "lat"), (4, 3), {"lat": line("lat", 3), "lon": Coord(("lon",), np.array([350.0, 355, 0, 5]), {})}
    )
    drawn = sheet(turned, np.arange(12.0))
    assert (drawn.rows.name, drawn.columns.name) == ("lat", "lon")
    np.testing.assert_array_equal(drawn.panels[0], np.arange(12.0).reshape(4, 3).T)
    np.testing.assert_array_equal(drawn.columns.edges, [347.5, 352.5, 357.5, 362.5, 367.5])
    assert not drawn.downwards
    named = Labels(
        ("j", "i"), (2, 2), {"j": line("j", 2, standard_name="latitude"), "i": line("i", 2, units="degrees_east")}
    )
    assert sheet(named, np.zeros(4)).geographic


def test_panels_follow_the_other_dim() -> None:
    drawn = sheet(LEVELS, np.arange(315.0))
    assert len(drawn.panels) == 6
    assert drawn.titles[0] == "level = -30 hPa"
    np.testing.assert_array_equal(drawn.panels[-1], np.arange(315.0).reshape(5, 9, 7)[:, 8])
    assert "6 of 9 places along level" in drawn.note


def test_a_large_grid_is_thinned_and_says_so() -> None:
    drawn = sheet(Labels(("a", "b"), (1500, 1000)), np.zeros(1_500_000))
    assert drawn.panels[0].shape == (750, 500)
    assert "One of 2 cells" in drawn.note


def test_dates_make_an_axis() -> None:
    days = np.array(["2000-01-01", "2000-01-03", "2000-01-04"], "M8[ns]")
    axis = Axis.of(Labels(("t",), (3,), {"t": Coord(("t",), days, {})}), "t")
    assert axis.known
    assert axis.edges[1] == np.datetime64("2000-01-02")


def test_scores_of_every_kind() -> None:
    S = subspace(GRID, k=1, angle_bounds=np.zeros(1))
    values = np.random.default_rng(2).normal(size=(50, 1))
    months = np.datetime64("2000-01", "M") + np.arange(50)
    dated = xr.DataArray(values, dims=("time", "mode"), coords={"time": months.astype("M8[ns]")})
    members = xr.DataArray(values.reshape(5, 10, 1), dims=("member", "time", "mode"))
    lazy = dated.chunk({"time": 10})
    calendar = dated.assign_coords(time=xr.date_range("2000-01-01", periods=50, calendar="360_day", use_cftime=True))
    many = np.random.default_rng(3).normal(size=(9000, 1))
    for scores, words in [
        (dated, "along time"),
        (lazy, "along time"),
        (members, "along time"),
        (calendar, "along time (year)"),
        (values, "along sample"),
        (many, "along sample"),
    ]:
        alts = [str(i["alt"]) for i in Tags(render(S, scores)).images()]
        assert sum(words in a for a in alts) == 1
    assert "5 of 5" in render(S, members)
    assert "Band: smallest to largest" in render(S, many)


def test_without_scores_the_page_says_how_to_get_them() -> None:
    page = render(subspace(GRID))
    assert "pipeline transform MODEL SOURCE --out SCORES" in page
    assert "pipeline transform" not in render(subspace(GRID), np.zeros((50, 3)))


@pytest.mark.parametrize("scores", [np.zeros((50, 2)), np.zeros(4), np.zeros((2, 2, 3))])
def test_scores_of_another_model_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(InputError, match="3 components along 'mode'"):
        render(subspace(GRID), scores)


def test_what_a_store_says_is_escaped() -> None:
    labels = Labels(
        (HOSTILE, "lon"),
        (3, 4),
        {HOSTILE: Coord((HOSTILE,), np.arange(3.0), {"units": HOSTILE}), "lon": line("lon", 4)},
        {"units": HOSTILE, "long_name": HOSTILE},
    )
    names = Labels(("gene",), (2,), {"gene": Coord(("gene",), np.array([HOSTILE, "b$"]), {})})
    said = {"source": HOSTILE, "method": HOSTILE, "plan": HOSTILE, HOSTILE: {HOSTILE: [HOSTILE]}, "walks": WALKS}
    for which in (labels, names):
        page = render(subspace(which, k=2, provenance=said), title=HOSTILE)
        assert "<script" not in page
        assert not [tag for tag, _ in Tags(page) if tag in ("script", "iframe", "object", "embed")]
        assert not [name for _, attrs in Tags(page) for name in attrs if name.startswith("on")]


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    page = write_report(subspace(GRID), tmp_path / "r.html").read_text("utf-8")
    for _, attrs in Tags(page):
        for name in ("src", "href", "srcset", "data", "action"):
            assert attrs.get(name) is None or str(attrs[name]).startswith("data:")
    assert not re.search(r"url\(|@import|https?://", page)


def test_one_mode_no_record_and_no_separation() -> None:
    page = render(subspace(GRID, k=1, provenance={}))
    assert "Nothing is certified" in page
    assert "no record of its passes" in page
    assert "<details>" not in page
    assert "1 component explains" in page


def test_writing_replaces_whole_and_fails_clean(tmp_path: Path) -> None:
    out, one = tmp_path / "deep" / "r.html", subspace(None, k=1, d=5)
    assert write_report(one, out, title="first") == out
    write_report(one, str(out), title="second")
    assert "<h1>second</h1>" in out.read_text("utf-8")
    assert [p.name for p in out.parent.iterdir()] == ["r.html"]
    (tmp_path / "taken").mkdir()
    with pytest.raises(StoreError, match="cannot write the report"):
        write_report(one, tmp_path / "taken")
    with pytest.raises(StoreError, match="another --out"):
        write_report(one, out / "under-a-file.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "taken"]


def test_far_outliers_do_not_press_the_others_flat() -> None:
    near = np.random.default_rng(0).uniform(0.5, 1.0, (50, 2))
    assert outliers(near, (2.0, 2.0)).note == ""
    far = outliers(np.r_[near, [[1.0, 900.0]]], (2.0, 2.0))
    assert "logarithmic" in far.note
    ink = imread(io.BytesIO(far.png))[..., :3].min(axis=2) < 0.9
    assert ink[ink.shape[0] // 2 :, ink.shape[1] // 4 :].any(axis=1).mean() > 0.3  # the cloud has a height of its own
    assert outliers(np.zeros((3, 2)), (0.0, 0.0)).note == ""
