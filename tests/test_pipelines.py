"""PCA and TruncatedSVD among the tools of others: scikit-learn's, dask-ml's, joblib's."""

from __future__ import annotations

from typing import Any

import dask.array as da
import dask_ml.cluster
import dask_ml.decomposition
import dask_ml.preprocessing
import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn.cluster
import sklearn.decomposition
from dask_ml.wrappers import ParallelPostFit
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import PCA, TruncatedSVD


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Three clusters in 10 dimensions, and which row is of which."""
    rng = np.random.default_rng(0)
    which = np.arange(240) % 3
    return rng.normal(size=(3, 10))[which] * 8 + rng.normal(size=(240, 10)), which


def same_clusters(a: Any, b: np.ndarray) -> bool:
    """Whether labels agree but for their names."""
    pairs = set(zip(np.asarray(a).tolist(), b.tolist(), strict=True))
    return len(pairs) == 3 == len({x for x, _ in pairs})


def test_between_scaler_and_clusters(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X, which = blobs
    steps = make_pipeline(StandardScaler(), PCA(2), sklearn.cluster.KMeans(3, n_init=5, random_state=0))
    assert same_clusters(steps.fit_predict(X), which)
    assert same_clusters(steps.predict(X), which)
    assert steps[:-1].get_feature_names_out().tolist() == ["pca0", "pca1"]


def test_a_search_finds_the_number_of_components(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = blobs
    steps = make_pipeline(StandardScaler(), PCA(), LogisticRegression())
    search = GridSearchCV(steps, {"pca__n_components": [1, 2, 0.9], "pca__whiten": [False, True]}, cv=3, n_jobs=2)
    search.fit(X, y)
    assert search.best_score_ > 0.98
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(search.cv_results_["params"]) == 6


def test_likelihood_is_what_cross_validation_scores(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X, _ = blobs
    ours = cross_val_score(PCA(2), X, cv=4)
    np.testing.assert_allclose(ours, cross_val_score(sklearn.decomposition.PCA(2), X, cv=4))
    # Two directions hold three clusters: no other number explains unseen rows better.
    search = GridSearchCV(PCA(), {"n_components": [1, 2, 5, 8]}, cv=4).fit(X)
    assert search.best_params_ == {"n_components": 2}


def test_beside_other_transformers(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    frame = pd.DataFrame(blobs[0], columns=[f"x{i}" for i in range(10)])
    parts = ColumnTransformer([("pca", PCA(2), [f"x{i}" for i in range(6)])], remainder="passthrough")
    table = parts.set_output(transform="pandas").fit_transform(frame)
    assert list(table.columns) == ["pca__pca0", "pca__pca1", *(f"remainder__x{i}" for i in range(6, 10))]
    both = FeatureUnion([("pca", PCA(2)), ("svd", TruncatedSVD(3))]).fit(frame)
    assert both.transform(frame).shape == (240, 5)
    assert both.get_feature_names_out().tolist()[2:] == [f"svd__truncatedsvd{i}" for i in range(3)]


def test_latent_semantics_of_sparse_counts() -> None:
    texts = ["the cat sat", "the cat ran", "a dog ran", "stocks fell", "stocks rose", "markets and stocks fell"] * 4
    steps = make_pipeline(TfidfVectorizer(), TruncatedSVD(2), sklearn.cluster.KMeans(2, n_init=3, random_state=0))
    labels = steps.fit_predict(texts)
    assert len(set(labels[[0, 1]])) == len(set(labels[[3, 4, 5]])) == 1
    assert labels[0] != labels[3]
    assert scipy.sparse.issparse(steps[:1].transform(texts))


def test_between_the_steps_of_dask_ml(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X, which = da.from_array(blobs[0], chunks=(50, 5)), blobs[1]
    scaled = dask_ml.preprocessing.StandardScaler().fit_transform(X.rechunk((50, 10)))
    scores = PCA(2).fit_transform(scaled)
    assert isinstance(scores, da.Array)
    assert scores.chunks == ((50, 50, 50, 50, 40), (2,))
    clusters = dask_ml.cluster.KMeans(3, random_state=0, init_max_iter=3).fit(scores)
    assert same_clusters(clusters.labels_.compute(), which)


def test_steps_of_dask_ml_in_a_pipeline(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X, which = da.from_array(blobs[0], chunks=(50, 10)), blobs[1]
    steps = make_pipeline(
        dask_ml.preprocessing.StandardScaler(), PCA(2), dask_ml.cluster.KMeans(3, random_state=0, init_max_iter=3)
    ).fit(X)
    labels = steps.predict(X)
    assert isinstance(labels, da.Array)
    assert same_clusters(labels.compute(), which)
    unknown = X[X[:, 0] > -1e9]
    assert np.isnan(steps[:2].transform(unknown).shape[0])  # dask-ml's KMeans itself wants known heights
    scaled = (blobs[0] - blobs[0].mean(axis=0)) / blobs[0].std(axis=0)
    expected = sklearn.decomposition.PCA(2).fit(scaled)
    np.testing.assert_allclose(steps[1].explained_variance_, expected.explained_variance_)
    np.testing.assert_allclose(np.abs(steps[:2].transform(X)), np.abs(expected.transform(scaled)), atol=1e-9)


def test_agreement_with_dask_mls_own(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X = da.from_array(blobs[0], chunks=(50, 10))
    theirs = dask_ml.decomposition.PCA(3, svd_solver="tsqr").fit(X)
    ours = PCA(3).fit(X)
    for name in ("singular_values_", "explained_variance_", "explained_variance_ratio_", "mean_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-9, err_msg=name)
    np.testing.assert_allclose(np.abs(ours.transform(X)), np.abs(theirs.transform(X)), atol=1e-8)


def test_wrapped_to_transform_in_parallel(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X, _ = blobs
    wrapped = ParallelPostFit(PCA(2)).fit(X)
    scores = wrapped.transform(da.from_array(X, chunks=50))
    np.testing.assert_allclose(scores, PCA(2).fit(X).transform(X))


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_many_fits_at_once(backend: str, blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X, _ = blobs
    fitted = joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(PCA(k).fit)(X) for k in (1, 2, 3))
    whole = PCA(3).fit(X)
    for model in fitted:
        np.testing.assert_allclose(model.components_, whole.components_[: model.n_components_], atol=1e-9)


def test_a_dumped_model_is_the_same(blobs: tuple[np.ndarray, np.ndarray], tmp_path: Any) -> None:
    X, y = blobs
    steps = make_pipeline(StandardScaler(), PCA(2), LogisticRegression()).fit(X, y)
    joblib.dump(steps, tmp_path / "steps.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "steps.joblib").predict(X), steps.predict(X))
