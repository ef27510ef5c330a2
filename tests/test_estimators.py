"""The scikit-learn contract of PCA and TruncatedSVD, and their agreement with scikit-learn's own."""

from __future__ import annotations

import copy
import inspect
import pickle
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn.decomposition
from dask.utils import parse_bytes
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

import pipeline
from pipeline import PCA, Subspace, TruncatedSVD, open_matrix, plan
from pipeline.errors import InputError, PlanError

SOLVERS = ("gram", "dual_gram", "krylov", "randomized")


def spectrum(n: int = 80, d: int = 12, seed: int = 0) -> np.ndarray:
    """Data with a decaying spectrum about a mean of some size."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n, d)) @ np.diag(0.7 ** np.arange(d) * 10) @ rng.normal(size=(d, d)) + rng.normal(size=d) * 5
    )


@parametrize_with_checks(
    [
        PCA(),
        PCA(n_components=1),
        PCA(n_components=0.7),
        PCA(n_components="auto"),
        PCA(n_components=1, whiten=True),
        PCA(n_components=1, center=False),
        PCA(n_components=1, scale="std"),
        PCA(n_components=1, missing="mean"),
        *(PCA(n_components=1, solver=solver) for solver in SOLVERS),
        TruncatedSVD(n_components=1),
        TruncatedSVD(n_components=1, solver="randomized"),
        TruncatedSVD(n_components=None, solver="dual_gram"),
    ]
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(
    ("ours", "defaults"),
    [
        (PCA, {"n_components": None, "center": True, "scale": None, "solver": "auto", "tol": None, "missing": "error",
               "memory_limit": None, "checkpoint": None, "random_state": 0}),
        (TruncatedSVD, {"n_components": 2, "scale": None, "solver": "auto", "tol": None, "missing": "error",
                        "memory_limit": None, "checkpoint": None, "random_state": 0}),
        (open_matrix, {"variable": None, "sample_dims": None, "weights": None, "sample_weights": None, "select": None}),
        (Subspace.save, {"overwrite": False}),
        (PCA.transform, {"out": None}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_signatures_are_as_promised(ours: Any, defaults: dict[str, Any]) -> None:
    given = {n: p.default for n, p in inspect.signature(ours).parameters.items() if p.default is not p.empty}
    assert {name: given[name] for name in defaults} == defaults
    assert [name for name in given if name in defaults] == list(defaults)


def agree(ours: Any, theirs: Any, names: tuple[str, ...], rtol: float = 1e-8) -> np.ndarray:
    """Equal attributes, but for the signs of components, which are returned."""
    for name in names:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=rtol, atol=1e-9, err_msg=name)
    signs = np.sign((ours.components_ * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.components_, signs[:, None] * theirs.components_, atol=1e3 * rtol * 1e-3 + 1e-9)
    return signs


ATTRIBUTES = ("singular_values_", "explained_variance_", "explained_variance_ratio_", "mean_", "noise_variance_",
              "n_components_", "n_samples_", "n_features_in_")  # fmt: skip


@pytest.mark.parametrize("shape", [(80, 12), (9, 30), (12, 12)], ids=str)
@pytest.mark.parametrize("n_components", [1, 4, 0.5, 0.9, 0.99, None], ids=str)
@pytest.mark.parametrize("whiten", [False, True])
def test_pca_agrees_with_scikit_learn(shape: tuple[int, int], n_components: Any, whiten: bool) -> None:
    X, new = spectrum(*shape), spectrum(5, shape[1], seed=1)
    wanted = min(shape) - 1 if n_components is None and shape[0] <= shape[1] else n_components  # the last has no sign
    ours = PCA(wanted, whiten=whiten).fit(X)
    theirs = sklearn.decomposition.PCA(wanted, whiten=whiten, svd_solver="full").fit(X)
    signs = agree(ours, theirs, ATTRIBUTES)
    np.testing.assert_allclose(ours.transform(new), theirs.transform(new) * signs, atol=1e-7)
    np.testing.assert_allclose(ours.fit_transform(X), theirs.transform(X) * signs, atol=1e-7)
    np.testing.assert_allclose(
        ours.inverse_transform(ours.transform(new)), theirs.inverse_transform(theirs.transform(new))
    )
    theirs.whiten = False  # with it, scikit-learn multiplies by the variances twice
    np.testing.assert_allclose(ours.get_covariance(), theirs.get_covariance(), atol=1e-8)
    if theirs.noise_variance_ > 1e-6 or ours.n_components_ == shape[1]:
        np.testing.assert_allclose(ours.get_precision(), theirs.get_precision(), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(ours.score_samples(new), theirs.score_samples(new), rtol=1e-7)
        assert ours.score(X) == pytest.approx(theirs.score(X))


def test_none_is_all_of_them() -> None:
    for shape in ((80, 12), (9, 30)):
        model = PCA().fit(spectrum(*shape))
        assert model.n_components_ == min(shape)
        assert model.noise_variance_ == 0.0
        np.testing.assert_allclose(model.inverse_transform(model.transform(spectrum(*shape))), spectrum(*shape))
        gram = model.components_ @ model.components_.T
        np.testing.assert_allclose(gram, np.eye(min(shape)), atol=1e-9)


@pytest.mark.parametrize("algorithm", ["arpack", "randomized"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_truncated_svd_agrees_with_scikit_learn(algorithm: str, sparse: bool) -> None:
    X = np.maximum(spectrum(), 0)
    data = scipy.sparse.csr_array(X) if sparse else X
    ours, theirs = (
        TruncatedSVD(3).fit(data),
        sklearn.decomposition.TruncatedSVD(3, algorithm=algorithm, n_iter=60).fit(data),
    )
    names = ("singular_values_", "explained_variance_", "explained_variance_ratio_", "n_features_in_")
    signs = agree(ours, theirs, names, rtol=1e-6)
    np.testing.assert_allclose(ours.transform(data), theirs.transform(data) * signs, atol=1e-4)
    assert TruncatedSVD().fit(X).n_components_ == 2


def test_a_fraction_is_passed_strictly() -> None:
    # Shares are 1/2, 1/4, 1/8, 1/8 of the variance, exactly.
    X = np.concatenate([np.diag(s) for s in (np.sqrt([4.0, 2, 1, 1]), -np.sqrt([4.0, 2, 1, 1]))])
    for fraction, k in ((0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.9, 4)):
        assert PCA(fraction).fit(X).n_components_ == k
        assert PCA(fraction, solver="dual_gram").fit(X).n_components_ == k


def test_auto_takes_what_rises_above_the_noise() -> None:
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(400, 3)) * [9, 6, 4]) @ np.linalg.qr(rng.normal(size=(60, 3)))[0].T + 0.5 * rng.normal(
        size=(400, 60)
    )
    for solver in ("auto", *SOLVERS):
        assert PCA("auto", solver=solver).fit(X).n_components_ == 3


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("make", "options"),
    [(PCA, {"whiten": True}), *product([PCA, TruncatedSVD], [{}, {"scale": "std"}, {"n_components": 0.8}])],
)
def test_norms_of_scores_are_singular_values(make: Any, solver: str, options: dict[str, Any]) -> None:
    for X in (spectrum(300, 40), spectrum(40, 200)):
        model = make(**{"n_components": 5, "solver": solver, **options})
        norms = np.linalg.norm(model.fit_transform(X), axis=0)
        expected = np.sqrt(len(X) - 1) * np.ones(model.n_components_) if "whiten" in options else model.singular_values_
        np.testing.assert_allclose(norms, expected, rtol=1e-7)


def test_scaling_is_standardisation() -> None:
    X = spectrum()
    ours = PCA(4, scale="std").fit(X)
    theirs = sklearn.decomposition.PCA(4).fit((X - X.mean(axis=0)) / X.std(axis=0))
    signs = np.sign((ours.components_ * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_)
    np.testing.assert_allclose(ours.transform(X), theirs.transform((X - X.mean(axis=0)) / X.std(axis=0)) * signs)
    np.testing.assert_allclose(ours.mean_, X.mean(axis=0))  # in the data's own units
    every = PCA(scale="std").fit(X)
    np.testing.assert_allclose(every.inverse_transform(every.transform(X)), X)


def test_weights_multiply_features_and_leave_units_alone() -> None:
    X, weights = spectrum(), np.linspace(0.5, 2, 12)
    matrix = open_matrix(X, weights=weights)
    ours, theirs = PCA(3).fit(matrix), sklearn.decomposition.PCA(3).fit(X * weights)
    agree(ours, theirs, ("singular_values_", "explained_variance_ratio_"))
    np.testing.assert_allclose(ours.mean_, X.mean(axis=0))
    restored = theirs.inverse_transform(theirs.transform(X * weights)) / weights
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(X)), restored)
    np.testing.assert_allclose(ours.reconstruction_error(X), (((X - restored) * weights) ** 2).sum(axis=1))
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X * weights))


def test_sample_weights_count_rows() -> None:
    X, times = spectrum(20, 5), np.arange(20) % 4
    weighted = PCA(2).fit(open_matrix(X, sample_weights=times))
    repeated = PCA(2).fit(np.repeat(X, times, axis=0))
    agree(weighted, repeated, ("singular_values_", "mean_", "explained_variance_", "noise_variance_", "n_samples_"))


def test_float32_keeps_its_precision() -> None:
    X = spectrum().astype(np.float32)
    ours, exact = PCA(3).fit(X), PCA(3).fit(X.astype(float))
    assert (
        ours.components_.dtype
        == ours.transform(X).dtype
        == ours.inverse_transform(ours.transform(X)).dtype
        == np.float32
    )
    assert ours.transform(X.astype(float)).dtype == np.float64
    np.testing.assert_allclose(ours.singular_values_, exact.singular_values_, rtol=1e-5)
    np.testing.assert_allclose(ours.transform(X), exact.transform(X), atol=1e-3)
    np.testing.assert_allclose(ours.score_samples(X), exact.score_samples(X.astype(float)), rtol=1e-3)


@pytest.mark.parametrize("seed", [0, 7, None, np.random.RandomState(0), np.random.default_rng(0), np.int64(3)], ids=str)
def test_random_states(seed: Any) -> None:
    X = spectrum(200, 30)
    model = PCA(3, solver="randomized", random_state=seed, tol=1e-8).fit(X)
    np.testing.assert_allclose(model.components_, PCA(3).fit(X).components_, atol=1e-7)
    if isinstance(seed, int):
        again = PCA(3, solver="randomized", random_state=seed, tol=1e-8).fit(X)
        np.testing.assert_array_equal(again.components_, model.components_)


@pytest.mark.parametrize("heights", [(80,), (1,) * 80, (1, 79), (79, 1), (3, 40, 2, 35), (20, 20, 20, 20)], ids=str)
@pytest.mark.parametrize("center", [True, False])
def test_batches_of_any_height_give_the_same(heights: tuple[int, ...], center: bool) -> None:
    X = spectrum()
    whole, batched = PCA(center=center).fit(X), PCA(center=center)
    for a, b in zip(np.cumsum((0, *heights[:-1])), np.cumsum(heights), strict=True):
        assert batched.partial_fit(X[a:b]) is batched
    agree(
        batched,
        whole,
        ("singular_values_", "explained_variance_", "explained_variance_ratio_", "mean_", "n_samples_"),
        1e-7,
    )
    np.testing.assert_allclose(batched.transform(X), whole.transform(X), atol=1e-7)
    assert batched.subspace_.angle_bound < 1e-4


def test_batches_that_are_truncated_stay_near() -> None:
    plain = spectrum(600, 20)
    noise = np.random.default_rng(1).normal(size=plain.shape)  # of another seed: white beside the signal, too
    noisy = plain[:, :4] @ np.linalg.qr(plain[:20, :4])[0].T + noise
    for X, wanted in ((plain, 3), (plain, 0.9), (noisy, "auto")):
        whole, batched = PCA(wanted).fit(X), PCA(wanted)
        for part in np.array_split(X, 6):
            batched.partial_fit(scipy.sparse.csr_array(part))
        assert batched.n_components_ == whole.n_components_
        assert batched.mean_ == pytest.approx(whole.mean_)
        sines = np.sin(batched.subspace_.distance(whole.subspace_))
        assert sines.max() <= np.sin(batched.subspace_.angle_bound) + 1e-12
    assert batched.subspace_.provenance["method"] == "PCA"


def test_batches_may_follow_a_fit_and_have_land() -> None:
    X = spectrum()
    X[:, [2, 5]] = np.nan
    model = PCA().fit(X[:50]).partial_fit(X[50:])
    agree_on = np.delete(np.arange(12), [2, 5])
    whole = PCA().fit(X)
    np.testing.assert_allclose(model.singular_values_[:10], whole.singular_values_[:10])
    np.testing.assert_allclose(model.components_[:9, agree_on], whole.components_[:9, agree_on], atol=1e-7)
    assert np.isnan(PCA().partial_fit(X).components_[:, [2, 5]]).all()
    land = np.isin(np.arange(12), [2, 5])
    covariance = PCA(3).fit(X).get_covariance()
    assert (np.isnan(covariance) == (land[:, None] | land)).all()
    product = covariance[~land][:, ~land] @ PCA(3).fit(X).get_precision()[~land][:, ~land]
    np.testing.assert_allclose(product, np.eye(10), atol=1e-9)


def test_batches_that_do_not_fit_are_refused() -> None:
    X = spectrum()
    model = PCA(3).partial_fit(X[:40])
    with pytest.raises(InputError, match="n_components was 3"):
        model.set_params(n_components=2).partial_fit(X[40:])
    model.set_params(n_components=3)
    with pytest.raises(InputError, match="features"):
        model.partial_fit(X[40:, :5])
    broken = X[40:].copy()
    broken[7, 3] = np.nan
    with pytest.raises(InputError, match="row 7, feature 3"):
        model.partial_fit(broken)
    with pytest.raises(InputError, match="sample_weights"):
        model.partial_fit(open_matrix(X, sample_weights=np.ones(80)))
    assert model.n_samples_ == 40
    for options in ({"scale": "std"}, {"missing": "mean"}):
        refused = PCA(**options)
        assert not hasattr(refused, "partial_fit")
        with pytest.raises(AttributeError) as caught:
            refused.partial_fit(X)
        assert isinstance(caught.value.__cause__, InputError)
    frames = [pd.DataFrame(X[:40], columns=list("abcdefghijkl")), pd.DataFrame(X[40:], columns=list("lkjihgfedcba"))]
    with pytest.raises(InputError, match="feature names"):
        PCA(3).partial_fit(frames[0]).partial_fit(frames[1])


def test_missing_entries_are_filled_with_means() -> None:
    X = spectrum()
    holes = np.random.default_rng(0).random(X.shape) < 0.1
    X[holes] = np.nan
    filled = np.where(holes, np.nanmean(X, axis=0), X)
    for solver in SOLVERS:
        ours, expected = PCA(3, missing="mean", solver=solver, tol=1e-9).fit(X), PCA(3).fit(filled)
        agree(ours, expected, ("singular_values_", "mean_", "explained_variance_ratio_"), 1e-7)
        np.testing.assert_allclose(ours.transform(X), expected.transform(filled), atol=1e-6)
    lazy = ours.transform(da.from_array(X, chunks=(9, 5)))
    np.testing.assert_allclose(lazy, ours.transform(X))
    X[30, 2] = np.inf
    for method in (PCA(3, missing="mean").fit, ours.transform):
        with pytest.raises(InputError, match=r"infinity .* row 30, feature 2"):
            method(X)
    with pytest.raises(InputError, match=r"inf at row 3 of a chunk, feature 2"):
        ours.transform(da.from_array(X, chunks=(9, 5))).compute()


METHODS = [
    "transform",
    "inverse_transform",
    "score_samples",
    "score",
    "reconstruction_error",
    "get_covariance",
    "get_precision",
]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_fitted_says_so(method: str) -> None:
    arguments = () if method.startswith("get_") else (spectrum(),)
    with pytest.raises(NotFittedError):
        getattr(PCA(), method)(*arguments)
    with pytest.raises(NotFittedError):
        _ = PCA().subspace
    if hasattr(TruncatedSVD, method):
        with pytest.raises(NotFittedError):
            getattr(TruncatedSVD(), method)(*arguments)


def test_copies_are_equal() -> None:
    X = spectrum()
    model = PCA(3, whiten=True, random_state=np.random.RandomState(3)).fit(X)
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert copied.subspace_ == model.subspace_
        np.testing.assert_array_equal(copied.transform(X), model.transform(X))
    fresh = clone(model)
    assert not hasattr(fresh, "subspace_")
    assert fresh.get_params().keys() == model.get_params().keys()
    assert repr(PCA(3, scale="std")) == "PCA(n_components=3, scale='std')"
    assert repr(TruncatedSVD(3)) == "TruncatedSVD(n_components=3)"


def test_an_estimator_of_a_stored_subspace(tmp_path: Any) -> None:
    frame = pd.DataFrame(spectrum(), columns=[f"gene {i}" for i in range(12)])
    batched = PCA(3, whiten=True).partial_fit(frame[:40]).partial_fit(frame[40:])
    for i, model in enumerate((PCA(3, whiten=True).fit(frame), TruncatedSVD(3).fit(frame), batched)):
        model.subspace_.save(tmp_path / f"{i}")
        loaded = type(model).from_subspace(pipeline.load(tmp_path / f"{i}"))
        assert loaded.get_params() == model.get_params()
        np.testing.assert_array_equal(loaded.transform(frame), model.transform(frame))
        with pytest.raises(InputError, match="same order"):
            loaded.transform(frame[frame.columns[::-1]])
        assert loaded.get_feature_names_out().tolist() == model.get_feature_names_out().tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "n_components=0"),
        ({"n_components": -2}, "n_components=-2"),
        ({"n_components": 1.0}, "n_components=1.0"),
        ({"n_components": 2.5}, "n_components=2.5"),
        ({"n_components": np.nan}, "n_components=nan"),
        ({"n_components": True}, "n_components=True"),
        ({"n_components": "mle"}, "n_components='mle'"),
        ({"n_components": "3"}, "n_components='3'"),
        ({"n_components": [3]}, r"n_components=\[3\]"),
        ({"n_components": 13}, "n_components=13.*12"),
        ({"tol": 0}, "tol=0"),
        ({"tol": -1}, "tol=-1"),
        ({"tol": 2}, "tol=2"),
        ({"tol": "1e-6"}, "tol='1e-6'"),
        ({"tol": True}, "tol=True"),
        ({"tol": np.nan}, "tol=nan"),
        ({"scale": "foo"}, "scale='foo'"),
        ({"scale": True}, "scale=True"),
        ({"scale": ["std"]}, "scale="),
        ({"solver": "foo"}, "solver='foo'.*gram"),
        ({"solver": None}, "solver=None"),
        ({"solver": ["gram"]}, "solver="),
        ({"missing": "drop"}, "missing='drop'"),
        ({"missing": ["mean"]}, "missing="),
        ({"memory_limit": "abc"}, "memory_limit='abc'"),
        ({"memory_limit": 0}, "memory_limit=0"),
        ({"memory_limit": -5}, "memory_limit=-5"),
        ({"memory_limit": [1]}, r"memory_limit=\[1\]"),
        ({"checkpoint": 3}, "checkpoint"),
        ({"random_state": "a"}, "random_state='a'"),
        ({"random_state": -1}, "random_state=-1"),
        ({"random_state": 1.5}, "random_state=1.5"),
        ({"center": "no"}, "center='no'"),
        ({"whiten": "no"}, "whiten='no'"),
    ],
    ids=str,
)
def test_wrong_parameters_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PCA(**options).fit(spectrum())
    if not {"center", "whiten"} & options.keys():
        with pytest.raises(InputError, match=message):
            TruncatedSVD(**options).fit(spectrum())
        with pytest.raises(InputError, match=message):
            plan(spectrum(), PCA(**options))


def test_too_little_memory_names_the_least_that_does() -> None:
    X = spectrum(2000, 200)
    for solver in ("auto", *SOLVERS):
        with pytest.raises(PlanError, match=r"memory_limit to \d+ .B or more") as caught:
            PCA(3, memory_limit="100kB", solver=solver).fit(X)
        least = str(caught.value).split("memory_limit to ")[1].split(" or")[0]
        model = PCA(3, memory_limit=least, solver=solver).fit(X)
        assert model.plan_.peak_memory <= parse_bytes(least)
        np.testing.assert_allclose(model.singular_values_, PCA(3).fit(X).singular_values_, rtol=1e-4)


def test_data_that_cannot_be_fitted_says_why() -> None:
    for X, message in (
        (np.zeros((0, 3)), "0 sample"),
        (np.zeros((3, 0)), "0 feature"),
        (np.zeros((1, 3)), "n_samples = 1"),
        (np.zeros(3), "Expected 2D|dim"),
        (np.float64(3), "0D|dim|scalar"),
        ([[1, "a"], [2, "b"]], "string|numeric|convert"),
        (np.array([["a", "b"], ["c", "d"]]), "string|numeric|convert|numbers"),
        (np.full((4, 3), np.nan), "NaN|no feature|nothing"),
        ([[1, 2], [3]], "inhomogeneous|shape"),
        (None, "None|dim|array"),
        ({"a": 1}, "dict|dim|array"),
        (np.array([["2000-01-01"]] * 3, "M8[D]"), "datetime|numbers"),
    ):
        with pytest.raises(InputError, match=message):
            PCA().fit(X)


def test_y_is_ignored_and_constant_data_is_fine() -> None:
    X = spectrum()
    y = np.arange(80)
    np.testing.assert_array_equal(PCA(2).fit(X, y).fit_transform(X, y), PCA(2).fit(X).transform(X))
    assert np.isfinite(PCA(2).fit(X, y).score(X, y))
    model = PCA(2).fit(np.ones((5, 3)))
    assert model.singular_values_.tolist() == [0, 0]
    assert model.explained_variance_ratio_.tolist() == [0, 0]
    np.testing.assert_array_equal(model.inverse_transform(model.transform(np.ones((5, 3)))), 1)
    for method in (model.score_samples, PCA().fit(np.ones((5, 3))).score_samples, lambda _: model.get_precision()):
        with pytest.raises(InputError, match="noise variance is zero"):
            method(np.ones((5, 3)))
