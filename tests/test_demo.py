"""The demo: real data in, El Niño out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
import zarr

pytest.importorskip("iris_sample_data")

from flows.demo import CHUNKS, JOB, anomalies, main, nino34, read_sst, score_of, write_source

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("demo") / "sst.zarr")


def test_the_source_is_chunked_zarr_v3_with_names(source: Path) -> None:
    array = zarr.open_group(source, mode="r")["sst_anomaly"]
    assert isinstance(array, zarr.Array)
    assert array.metadata.zarr_format == 3
    assert array.chunks == tuple(CHUNKS.values())
    assert array.dtype == np.float32
    with xr.open_zarr(source, consolidated=False) as ds:
        assert ds.sst_anomaly.dims == ("time", "latitude", "longitude")
        assert ds.sst_anomaly.attrs["units"] == "K"
        assert "standard_name" not in ds.sst_anomaly.attrs
        assert ds.latitude.attrs["units"] == "degrees_north"
        assert ds.time.dtype.kind == "M"
        assert float(ds.longitude.min()) >= 120
        assert float(ds.longitude.max()) <= 280


def test_the_source_keeps_land_and_loses_the_annual_cycle(source: Path) -> None:
    with xr.open_zarr(source, consolidated=False) as ds:
        anomaly = ds.sst_anomaly.load()
    land = anomaly.isnull()
    assert 0.05 < float(land.mean()) < 0.1
    assert bool((land == land.isel(time=0)).all())
    assert float(abs(anomaly.groupby("time.month").mean()).max()) < 1e-3


def test_writing_the_source_again_replaces_it(source: Path) -> None:
    before = xr.open_zarr(source, consolidated=False).load()
    write_source(source)
    xr.testing.assert_identical(before, xr.open_zarr(source, consolidated=False).load())


def test_the_index_is_that_of_the_published_events() -> None:
    """Known from the climate services: La Niña in the winter of 2007/08, El Niño in that of 2009/10."""
    index = nino34()
    assert float(index.sel(time="2008-01").item()) < -1
    assert float(index.sel(time="2009-12").item()) > 1
    assert float(abs(anomalies(read_sst()).sel(latitude=0, longitude=215, method="nearest") - index).mean()) < 0.5


def test_the_job_file_is_valid_and_explains_every_key() -> None:
    jobs = pytest.importorskip("pipeline.jobs.spec")
    spec = jobs.load_job(JOB)
    assert spec.source.variable == "sst_anomaly"
    keys = [line for line in JOB.read_text("utf-8").splitlines() if line.startswith("  ") and ":" in line]
    assert all("#" in line for line in keys if "workers" not in line and "threads" not in line)


def test_another_answer_than_el_nino_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The index of some other part of the sea: the demo must not say that all is well."""
    noise = nino34().copy(data=np.random.default_rng(0).normal(size=54))
    monkeypatch.setattr("flows.demo.write_source", lambda store: store)
    monkeypatch.setattr("flows.demo.run_job", lambda spec: type("Result", (), {"scores": tmp_path})())
    monkeypatch.setattr("flows.demo.score_of", lambda store: noise)
    monkeypatch.setattr("flows.demo._told", lambda *told: "")
    assert main() == 1
    assert "not El Niño" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_finds_el_nino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "flows.demo"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out" / "demo"
    for product in ("sst.zarr", "model.zarr", "scores.zarr", "report.html"):
        assert (out / product).exists()
        assert f"out/demo/{product}" in done.stdout
    with xr.open_zarr(out / "model.zarr", consolidated=False) as model:
        assert model.components.dims == ("mode", "latitude", "longitude")
        assert float(model.explained_variance_ratio[0]) == pytest.approx(0.735, abs=0.005)
        assert model.attrs["source"]
    assert abs(float(xr.corr(score_of(out / "scores.zarr"), nino34()))) > 0.95
    page = (out / "report.html").read_text("utf-8")
    assert "Map of mode 1 over latitude, longitude" in page
    assert "Score of mode 1 along time" in page
    monkeypatch.chdir(tmp_path)
    exec(_blocks("python")[0], {})
    with (
        xr.open_zarr(out.parent / "eof.zarr", consolidated=False) as again,
        xr.open_zarr(out / "model.zarr", consolidated=False) as model,
    ):
        np.testing.assert_allclose(again.singular_values, model.singular_values, rtol=1e-6)


def _blocks(language: str) -> list[str]:
    """The examples of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)


def test_the_readme_shows_the_job_of_the_demo() -> None:
    jobs = pytest.importorskip("pipeline.jobs.spec")
    assert jobs.parse_job(yaml.safe_load(_blocks("yaml")[0])) == jobs.load_job(JOB)
