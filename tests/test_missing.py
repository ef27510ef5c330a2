"""`missing='em'`: probabilistic PCA of what is seen: equal to PCA on complete data, likeliest on data with gaps."""

from __future__ import annotations

from itertools import pairwise

import dask.array as da
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp
import xarray as xr

from pipeline import PCA, TruncatedSVD, load, open_matrix, plan
from pipeline.errors import ConvergenceError, InputError
from pipeline.kernels.em import gather, maximised
from pipeline.kernels.linalg import principal_angles
from tests.problems import SOLVERS

N, D, K = 150, 12, 3


def planted(noise: float = 0.4, share: float = 0.25, n: int = N, d: int = D) -> tuple[np.ndarray, np.ndarray]:
    """Complete data of a plane with noise, and the same with gaps."""
    rng = np.random.default_rng(3)
    plane = np.linalg.qr(rng.standard_normal((d, K)))[0] * [6, 4, 3]
    x = rng.standard_normal((n, K)) @ plane.T + noise * rng.standard_normal((n, d)) + rng.normal(0, 5, d)
    gaps = x.copy()
    gaps[rng.random(x.shape) < share] = np.nan
    return x, gaps


COMPLETE, GAPS = planted()


def log_likelihood(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Of the entries that are seen, row by row."""
    total = 0.0
    for row in x:
        seen = ~np.isnan(row)
        c, z = covariance[np.ix_(seen, seen)], (row - mean)[seen]
        total += -0.5 * (seen.sum() * np.log(2 * np.pi) + np.linalg.slogdet(c)[1] + z @ np.linalg.solve(c, z))
    return total


def model(found: PCA) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the fitted model, of maximum likelihood (over n, not n - 1)."""
    n = found.subspace_.n_samples
    return found.mean_, found.get_covariance() * (n - 1) / n


@pytest.mark.parametrize("solver", SOLVERS)
def test_complete_data_gets_the_answer_and_the_certificate_of_pca(solver: str) -> None:
    same, found = (PCA(K, missing=missing, solver=solver).fit(COMPLETE) for missing in ("error", "em"))
    np.testing.assert_array_equal(found.components_, same.components_)
    np.testing.assert_array_equal(found.singular_values_, same.singular_values_)
    assert found.subspace_.angle_bound == same.subspace_.angle_bound
    np.testing.assert_array_equal(found.transform(COMPLETE), same.transform(COMPLETE))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("k", [1, K, 5])
def test_nothing_is_likelier(k: int, solver: str) -> None:
    found = PCA(k, missing="em", solver=solver).fit(GAPS)
    mean, covariance = model(found)
    best = log_likelihood(GAPS, mean, covariance)
    values, vectors = np.linalg.eigh(covariance)
    left, noise = vectors[:, -k:] * np.sqrt(values[-k:] - values[0]), values[0]

    def loss(p: np.ndarray) -> float:
        w = p[: D * k].reshape(D, k)
        return -log_likelihood(GAPS, p[D * k : -1], w @ w.T + np.exp(p[-1]) * np.eye(D))

    start = np.concatenate([left.ravel(), mean, [np.log(noise)]])
    slope = scipy.optimize.approx_fprime(start, loss, 1e-6)
    assert np.abs(slope).max() < 2e-2  # of a likelihood of thousands; the means of gaps filled in: tens
    assert np.all([best >= -loss(start + 1e-2 * d) for d in np.random.default_rng(0).standard_normal((20, start.size))])
    assert found.subspace_.angle_bound == pytest.approx(np.pi / 2)
    assert found.subspace_.provenance["reason"] == "converged"


def test_steps_never_lose_likelihood_and_partitions_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    seen = (~np.isnan(GAPS)).astype(float)
    x = np.where(seen > 0, GAPS - np.nanmean(GAPS, axis=0), 0.0)
    w, offset, noise = rng.standard_normal((D, K)), np.zeros(D), 2.0
    history = []
    for _ in range(30):
        whole = gather(x, seen, w, offset, noise)
        parts = sum((gather(x[a:b], seen[a:b], w, offset, noise) for a, b in pairwise([7, 80, N])),
                    gather(x[:7], seen[:7], w, offset, noise))  # fmt: skip
        np.testing.assert_allclose(parts.moments, whole.moments)
        assert parts.gaps == whole.gaps
        history.append(whole.log_likelihood)
        assert whole.log_likelihood == pytest.approx(
            log_likelihood(np.where(seen > 0, x, np.nan), offset, w @ w.T + noise * np.eye(D))
        )
        w, offset, noise = maximised(whole, True, 1e-12)
    assert np.all(np.diff(history) >= -1e-9 * np.abs(history[:-1]))


def test_the_plane_is_found_where_means_miss_it() -> None:
    x, gaps = planted(noise=0.05, share=0.4, n=400)
    truth = PCA(K).fit(x)
    found, filled = (PCA(K, missing=missing).fit(gaps) for missing in ("em", "mean"))
    near, far = (principal_angles(m.components_, truth.components_)[0] for m in (found, filled))
    assert near < 0.02 < 0.2 < far
    np.testing.assert_allclose(found.singular_values_, truth.singular_values_, rtol=0.1)
    assert found.noise_variance_ == pytest.approx(0.05**2, rel=0.1)
    # Scores of rows with gaps, from what is seen of them, are near those of the whole rows.
    scores, whole = found.transform(gaps), found.transform(x)
    assert np.median(np.abs(scores - whole)) < 0.1
    assert np.abs(found.inverse_transform(scores) - x)[np.isnan(gaps)].mean() < 0.2
    holes = ~np.isnan(gaps).any(axis=1)
    np.testing.assert_array_equal(scores[holes], whole[holes])


@pytest.mark.parametrize("kind", [
    np.asarray, sp.csr_array, lambda x: open_matrix(x).cut_at(13), lambda x: da.from_array(x, chunks=(40, 5)),
    lambda x: x.astype("f4"), lambda x: np.ma.masked_invalid(x),
])  # fmt: skip
def test_every_container_gives_the_same(kind) -> None:
    truth, found = PCA(K, missing="em").fit(GAPS), PCA(K, missing="em").fit(kind(GAPS))
    np.testing.assert_allclose(found.singular_values_, truth.singular_values_, rtol=1e-5)
    assert principal_angles(found.components_.astype(float), truth.components_)[0] < 1e-5
    np.testing.assert_allclose(np.asarray(found.transform(kind(GAPS))), truth.transform(GAPS), atol=1e-3)


def test_repeated_rows_weights_and_absent_features() -> None:
    times = np.random.default_rng(1).integers(0, 3, N)
    gaps = np.column_stack([GAPS, np.full(N, np.nan)])
    counted = PCA(K, missing="em").fit(open_matrix(gaps, sample_weights=times))
    repeated = PCA(K, missing="em").fit(np.repeat(GAPS, times, axis=0))
    np.testing.assert_allclose(counted.singular_values_, repeated.singular_values_, rtol=1e-6)
    np.testing.assert_allclose(counted.mean_[:-1], repeated.mean_, rtol=1e-6)
    assert np.isnan(counted.components_[:, -1]).all()
    assert np.isfinite(counted.transform(gaps)).all()


def test_without_centring_the_model_is_about_zero() -> None:
    gaps = GAPS - np.nanmean(GAPS, axis=0)
    found = TruncatedSVD(K, missing="em").fit(gaps)
    s = found.subspace_
    energy = s.total_variance * s.dof + N * np.square(s.mean).sum()
    noise = (energy - np.square(s.singular_values).sum()) / N / (D - K)
    w = found.components_.T * np.sqrt(found.singular_values_**2 / N - noise)

    def likelihood(w: np.ndarray, noise: float) -> float:
        return log_likelihood(gaps, np.zeros(D), w @ w.T + noise * np.eye(D))

    best, rng = likelihood(w, noise), np.random.default_rng(0)
    assert all(best >= likelihood(w + 1e-2 * rng.standard_normal(w.shape), noise * f) for f in (0.98, 1, 1.02))
    assert best >= max(likelihood(w, 0.999 * noise), likelihood(w, 1.001 * noise))
    assert np.isfinite(found.transform(gaps)).all()


def test_models_are_kept_and_score_as_before(tmp_path) -> None:
    found = PCA(K, missing="em").fit(GAPS)
    found.subspace_.save(tmp_path / "m.zarr")
    again = PCA.from_subspace(load(tmp_path / "m.zarr"))
    np.testing.assert_array_equal(again.transform(GAPS), found.transform(GAPS))
    assert np.isfinite(found.score_samples(GAPS)).all()
    assert np.isfinite(found.reconstruction_error(GAPS)).all()


def test_maps_keep_their_places() -> None:
    for x in (COMPLETE, GAPS):
        field = xr.DataArray(x.reshape(N, 3, 4), dims=("time", "lat", "lon"), coords={"lat": [-5.0, 0.0, 5.0]})
        found = PCA(K, missing="em").fit(field)
        assert found.subspace_.features.describe(5) == "lat=0.0, lon=1"
        scores = found.transform(field)
        assert scores.dims == ("time", "mode")
        np.testing.assert_allclose(scores, PCA(K, missing="em").fit(x).transform(x), atol=1e-8)


def test_rows_of_which_nothing_is_seen_score_zero_and_infinity_is_refused() -> None:
    gaps = GAPS.copy()
    gaps[5] = np.nan
    found = PCA(K, missing="em").fit(gaps)
    np.testing.assert_allclose(found.transform(gaps)[5], 0, atol=1e-9)
    gaps[9, 4] = np.inf
    with pytest.raises(InputError, match=r"infinity.*row 9, feature 4"):
        PCA(K, missing="em").fit(gaps)
    with pytest.raises(InputError, match="row 9, feature 4"):
        found.transform(gaps)


def test_a_tol_cannot_be_certified_where_entries_are_missing() -> None:
    with pytest.raises(ConvergenceError, match="no bound is known where entries are missing") as caught:
        PCA(K, missing="em", tol=1e-3).fit(GAPS)
    assert caught.value.subspace is not None
    assert caught.value.subspace.k == K
    assert PCA(K, missing="em", tol=1e-3).fit(COMPLETE).subspace_.angle_bound < 1e-3
    with pytest.raises(InputError, match="real numbers"):
        PCA(K, missing="em").fit(GAPS + 1j)


def test_what_does_not_converge_says_so(monkeypatch) -> None:
    monkeypatch.setattr("pipeline.solvers.em._MOST", 4)
    with pytest.raises(ConvergenceError, match="has not converged after") as caught:
        PCA(K, missing="em").fit(planted(noise=0.0, share=0.5)[1])
    assert caught.value.subspace is not None


def test_the_plan_counts_the_state() -> None:
    small, large = (plan(np.ones((50, 2000)), PCA(20, missing=missing, solver="krylov")).peak_memory for missing in
                    ("mean", "em"))  # fmt: skip
    assert large - small > 8 * 2000 * 21 * 22 / 2
