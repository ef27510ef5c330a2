"""Anomaly scores: calibrated thresholds, streams that are written, the command, and the flow that raises an alert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from scipy import stats
from sklearn.exceptions import NotFittedError

from pipeline import PCA, AnomalyDetector, FederatedPCA, open_matrix
from pipeline.cli import main
from pipeline.errors import InputError, StoreError
from pipeline.estimators.anomaly_detector import q_limit
from pipeline.jobs.alarms import Scored, score_new_rows

RNG = np.random.default_rng(0)
SPREAD = np.r_[9.0, 5.0, np.linspace(1.5, 0.3, 10)]
X = RNG.standard_normal((20_000, 12)) * SPREAD + 100
MODEL = PCA(2).fit(X)
STRANGE = X[:20] + np.where(np.arange(12) == 5, 15.0, 0.0)


def by_hand(rows: np.ndarray) -> np.ndarray:
    z = rows - MODEL.mean_
    return np.square(z - z @ MODEL.components_.T @ MODEL.components_).sum(axis=1)


def test_scores_are_squared_distances_in_every_kind_of_container() -> None:
    detector = AnomalyDetector(MODEL.subspace_).fit(X)
    np.testing.assert_allclose(detector.score(X), by_hand(X), rtol=1e-7)
    lazy = detector.score(da.from_array(X, chunks=(3000, 5)))
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), by_hand(X), rtol=1e-7)
    labelled = xr.DataArray(X[:50], dims=("time", "feature"), coords={"time": np.arange(50)})
    assert detector.score(labelled).dims == ("time",)
    assert detector.score(X[:5].astype(np.float32)).dtype == np.float32
    assert detector.predict(STRANGE).all()
    assert detector.predict(STRANGE).dtype == bool
    np.testing.assert_allclose(AnomalyDetector(MODEL).score(X[:9]), by_hand(X[:9]), rtol=1e-7)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("kind", ["array", "weighted", "chunked", "many"])
def test_quantiles(q: float, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "many":  # numbers are not kept whole
        monkeypatch.setattr("pipeline.folds.digest._MANY", 1000)
    weights = np.repeat([1.0, 3.0], 10_000) if kind == "weighted" else None
    matrix = open_matrix(X, sample_weights=weights)
    matrix = matrix.cut_at(777) if kind == "chunked" else matrix
    found = AnomalyDetector(MODEL.subspace_, q).fit(matrix)
    scores = by_hand(X if weights is None else np.repeat(X, weights.astype(int), axis=0))
    assert found.threshold_ == pytest.approx(np.quantile(scores, q), rel=2e-4 if kind == "many" else 1e-7)
    assert found.n_samples_ == len(scores)


def test_the_q_statistic() -> None:
    left = SPREAD[2:] ** 2
    theta = np.array([np.sum(left**i) for i in (1, 2, 3)])
    draws = (RNG.standard_normal((200_000, 10)) ** 2) @ left
    for level in (0.9, 0.95, 0.99):
        assert np.mean(draws > q_limit(theta, level)) == pytest.approx(1 - level, rel=0.15)
        found = AnomalyDetector(MODEL.subspace_, "q", level).fit(X)
        assert found.threshold_ == pytest.approx(q_limit(theta, level), rel=0.03)
        assert np.mean(found.predict(X)) == pytest.approx(1 - level, rel=0.2)
    for dof in (3, 10, 50):
        assert q_limit(np.full(3, float(dof)), 0.99) == pytest.approx(stats.chi2.ppf(0.99, dof), rel=0.01)
    spiked = np.array([np.sum(np.r_[9.0, np.full(200, 0.05)] ** i) for i in (1, 2, 3)])  # where h is negative
    draws = (RNG.standard_normal((50_000, 201)) ** 2) @ np.r_[9.0, np.full(200, 0.05)]
    assert 0.001 < np.mean(draws > q_limit(spiked, 0.99)) < 0.03


def test_the_q_statistic_of_many_features(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = AnomalyDetector(MODEL.subspace_, "q").fit(X).threshold_
    monkeypatch.setattr("pipeline.estimators.anomaly_detector._MOMENTS", 1)
    assert AnomalyDetector(MODEL.subspace_, "q").fit(X).threshold_ == pytest.approx(exact, rel=0.02)


def test_wrong_input_is_told() -> None:
    for threshold in (0, 1, -0.5, "z", None, True):
        with pytest.raises(InputError, match="threshold"):
            AnomalyDetector(MODEL.subspace_, threshold).fit(X)
    with pytest.raises(InputError, match="level"):
        AnomalyDetector(MODEL.subspace_, "q", 1.5).fit(X)
    with pytest.raises(InputError, match="subspace"):
        AnomalyDetector(3).fit(X)
    detector = AnomalyDetector(MODEL.subspace_)
    with pytest.raises(NotFittedError):
        detector.predict(X)
    hole = X[:10].copy()
    hole[3, 2] = np.nan
    for call in (detector.fit, detector.score):
        with pytest.raises(InputError, match="row 3, feature 2"):
            call(hole)
        with pytest.raises(InputError, match="features"):
            call(X[:, :5])


def test_scores_are_written_block_by_block(tmp_path: Path) -> None:
    MODEL.subspace_.save(tmp_path / "m.zarr")
    detector = AnomalyDetector(str(tmp_path / "m.zarr")).fit(X)
    written = detector.score(X, out=tmp_path / "s.zarr")
    np.testing.assert_allclose(written.values, by_hand(X), rtol=1e-7)
    np.testing.assert_array_equal(
        xr.open_zarr(tmp_path / "s.zarr", consolidated=False)["anomaly_score"].values, written.values
    )


def test_a_federated_model_finds_anomalies() -> None:
    fed = FederatedPCA(2).fit(np.array_split(X, 4))
    detector = AnomalyDetector(fed.subspace_, 0.99).fit(X)
    assert detector.predict(STRANGE).all()
    assert detector.predict(X).mean() == pytest.approx(0.01, abs=1e-3)


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, str]:
    paths = {name: str(tmp_path / f"{name}.zarr") for name in ("model", "normal", "new", "scores")}
    MODEL.subspace_.save(paths["model"])
    for name, rows in (("normal", X[:2000]), ("new", np.concatenate([X[2000:2080], STRANGE]))):
        zarr.create_array(paths[name], shape=rows.shape, chunks=(500, 12), dtype="f8")[...] = rows
    return paths


def test_the_command(stores: dict[str, str]) -> None:
    arguments = ["score", stores["model"], stores["new"], "--out", stores["scores"]]
    done = CliRunner().invoke(main, [*arguments, "--fit", stores["normal"], "--json"])
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["samples"] == 100
    assert 20 <= facts["anomalies"] <= 25
    scores = xr.open_zarr(stores["scores"], consolidated=False)["anomaly_score"].values
    assert (scores > facts["threshold"]).sum() == facts["anomalies"]
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 2
    assert "exists" in again.stderr
    plain = CliRunner().invoke(main, [*arguments, "--overwrite"])
    assert plain.stdout.strip() == stores["scores"]
    wrong = CliRunner().invoke(main, [*arguments, "--overwrite", "--fit", stores["normal"], "--threshold", "most"])
    assert wrong.exit_code == 2
    assert "threshold" in wrong.stderr
    alone = CliRunner().invoke(main, [*arguments, "--overwrite", "--threshold", "0.9"])
    assert (alone.exit_code, "--fit" in alone.stderr) == (2, True)


def test_new_rows_are_scored_once_and_raise_an_alert(stores: dict[str, str], tmp_path: Path) -> None:
    folder, growing = tmp_path / "alarms", str(tmp_path / "growing.zarr")
    array = zarr.create_array(growing, shape=(300, 12), chunks=(100, 12), dtype="f8")
    array[...] = X[3000:3300]

    def run(**options: Any) -> Any:
        return score_new_rows(stores["model"], growing, folder, stores["normal"], **options)

    first = run()
    assert (first.start, first.stop, first.alert) == (0, 300, False)
    assert run().scores is None
    array.resize((320, 12))
    array[300:] = STRANGE
    second = run()
    assert (second.start, second.stop, second.anomalies, second.alert) == (300, 320, 20, True)
    assert second.threshold == first.threshold
    assert xr.open_zarr(second.scores, consolidated=False)["anomaly_score"].size == 20
    with pytest.raises(InputError, match="another folder"):
        run(threshold=0.9)
    array.resize((340, 12))
    array[320:] = STRANGE

    def deaf(found: Scored) -> None:
        raise OSError("killed while it told")

    with pytest.raises(OSError, match="killed"):
        run(tell=deaf)
    heard: list[Scored] = []
    assert run(tell=heard.append).anomalies == 20  # the rows are not scored again, the alert is not lost
    assert run(tell=heard.append).scores is None
    assert [(s.start, s.stop, s.alert) for s in heard] == [(320, 340, True)]


def test_what_is_wrong_with_a_folder_of_scores_is_one_sentence(stores: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "alarms"

    def run(place: str | Path = folder, model: str = stores["model"]) -> Any:
        return score_new_rows(model, stores["new"], place, stores["normal"])

    with pytest.raises(StoreError, match="does not exist"):
        run(model="none")
    with pytest.raises(StoreError, match="cannot be made"):
        run(Path(__file__) / "scores")
    with pytest.raises(InputError, match="local disk"):
        run("s3://bucket/scores")
    assert not folder.exists()
    assert run().stop == 100
    zarr.open_array(stores["new"], mode="r+").resize((90, 12))
    with pytest.raises(InputError, match="has 90 rows, but 100 were scored in"):
        run()
    for broken in ("{", "{}", '{"value": null, "asked": 3}'):
        (folder / "threshold.json").write_text(broken)
        with pytest.raises(StoreError, match=r"threshold.json is damaged .*: remove it"):
            run()
