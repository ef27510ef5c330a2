"""One reading: of stores, counted, and of streams; its error estimate, its bounds, and what it is better than."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import zarr

from pipeline import PCA, TruncatedSVD, open_matrix
from pipeline.errors import ConvergenceError, InputError, StoreError
from pipeline.kernels.signs import signs
from pipeline.solvers import single_pass
from tests.problems import Problem, exact, fitted
from tests.test_reading import stored
from tests.test_solvers import check_certificate, random_case

pytestmark = pytest.mark.usefixtures("as_of_large_data")

RNG = np.random.default_rng(11)
X = Problem("power 1", 400, 150).X
WIDE = Problem("power 1", 150, 400).X


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sketches narrower than the small matrices of tests."""
    monkeypatch.setattr(single_pass, "_ALL", 0)
    monkeypatch.setattr(single_pass, "_SOON", 0)
    monkeypatch.setattr(single_pass, "_LEAST", 24)


@pytest.mark.parametrize("shape", [(400, 150), (150, 400)])
@pytest.mark.parametrize("name", ["rank 3", "exponential", "power 2"])
def test_what_decays_fast_is_found_in_one_pass(sketched: None, name: str, shape: tuple[int, int]) -> None:
    problem = Problem(name, *shape)
    found, k = fitted(problem.X, 3, "single_pass", block=17), 3
    assert found.passes == 1
    check_certificate(found, problem.exact)
    assert problem.exact.angle(found.components) < 3e-2
    np.testing.assert_allclose(found.singular_values, problem.exact.values[:k], rtol=1e-3)
    if name == "rank 3":
        np.testing.assert_allclose(found.singular_values, problem.exact.values[:k], rtol=1e-9)
        assert found.angle_bound < 1e-4


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_no_bound_is_below_the_truth(sketched: None, dtype) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        power, n, d = rng.uniform(0.2, 3), *rng.integers(30, 90, 2)
        x = random_case(lambda r, p=power: np.arange(1, r + 1.0) ** -p, n, d, seed, dtype)
        check_certificate(fitted(x, 3, "single_pass", block=11), exact(x))


@pytest.mark.parametrize("x", [X, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("center", [True, False])
def test_the_error_estimate_is_unbiased(sketched: None, x: np.ndarray, center: bool) -> None:
    """The mean over seeds of the squared estimate is the squared error, in weighted units."""
    weights, counts = RNG.uniform(0.5, 2, x.shape[1]), RNG.integers(1, 4, len(x)).astype(float)
    given = {"center": center, "weights": weights, "sample_weights": counts}
    mean = np.average(x, axis=0, weights=counts) if center else 0.0
    z = (x - mean) * weights * np.sqrt(counts)[:, None]
    ratios = []
    for seed in range(60):
        found = fitted(x, 4, "single_pass", block=29, seed=seed, **given)
        v = found.components
        estimate, norm = found.provenance["error_estimate"], found.provenance["norm_estimate"]
        ratios.append([(estimate / np.linalg.norm(z - z @ v.T @ v)) ** 2, (norm / np.linalg.norm(z)) ** 2])
    np.testing.assert_allclose(np.mean(ratios, axis=0), 1, atol=0.1)


@pytest.mark.parametrize("x", [X, WIDE], ids=["tall", "wide"])
def test_it_is_never_worse_than_three_sketches_of_the_same_size(sketched: None, x: np.ndarray) -> None:
    z, k = x - x.mean(axis=0), 5
    for seed in range(5):
        found = fitted(x, k, "single_pass", seed=seed)
        v = found.components
        ours = np.linalg.norm(z - z @ v.T @ v)
        assert ours <= np.linalg.norm(z - three_sketches(z, k, 24, seed))


def three_sketches(a: np.ndarray, k: int, l: int, seed: int) -> np.ndarray:
    """Rank k approximation from a range, a co-range and a core sketch (Tropp, Yurtsever, Udell and Cevher 2019)."""
    (n, d), rng, s = a.shape, np.random.default_rng(seed), 2 * l + 1
    y, x = a @ rng.standard_normal((d, l)), rng.standard_normal((l, n)) @ a
    phi, psi = rng.standard_normal((s, n)), rng.standard_normal((s, d))
    q, p = np.linalg.qr(y)[0], np.linalg.qr(x.T)[0]
    core = np.linalg.pinv(phi @ q) @ (phi @ a @ psi.T) @ np.linalg.pinv(psi @ p).T
    u, values, vt = np.linalg.svd(core)
    return q @ (u[:, :k] * values[:k]) @ vt[:k] @ p.T


@pytest.mark.parametrize(("chunks", "shape"), [((50, 60), (300, 60)), ((7, 20), (300, 60)), ((20, 40), (60, 300))])
def test_a_store_is_read_once(sketched: None, chunks: tuple[int, int], shape: tuple[int, int]) -> None:
    store = stored(chunks, shape)
    model = PCA(4, solver="single_pass").fit(zarr.open_array(store))
    assert set(store.reads.values()) == {1}
    assert model.plan_.passes == model.subspace_.passes == 1


@pytest.mark.parametrize("x", [X, WIDE], ids=["tall", "wide"])
def test_the_answer_does_not_depend_on_the_blocks(sketched: None, x: np.ndarray) -> None:
    one, other = (fitted(x, 4, "single_pass", block=block) for block in (13, 400))
    np.testing.assert_allclose(one.components, other.components, atol=1e-9)
    assert one.provenance["error_estimate"] == pytest.approx(other.provenance["error_estimate"], rel=1e-9)


def test_signs_belong_to_positions() -> None:
    whole = signs(5, 0, 1000, 16)
    assert np.array_equal(whole[:, 321:654], signs(5, 321, 654, 16))
    assert set(np.unique(whole)) == {-1.0, 1.0}
    assert abs(whole.mean()) < 0.03
    assert np.linalg.norm(whole @ whole.T / 1000 - np.eye(16), 2) < 0.4


@pytest.mark.parametrize("x", [X, WIDE], ids=["tall", "wide"])
def test_features_without_values_are_left_out(sketched: None, x: np.ndarray) -> None:
    holes = x.copy()
    holes[:, 3:9] = np.nan
    found = fitted(holes, 3, "single_pass", block=31)
    assert np.isnan(found.components[:, 3:9]).all()
    without = fitted(np.delete(x, range(3, 9), axis=1), 3, "gram")
    np.testing.assert_allclose(found.singular_values, without.singular_values, rtol=5e-2)
    assert found.total_variance == pytest.approx(without.total_variance)


def heights(x: np.ndarray, height: int):
    return (x[i : i + height] for i in range(0, len(x), height))


@pytest.mark.parametrize("solver", ["auto", "gram", "single_pass"])
def test_a_stream_gives_what_a_matrix_gives(solver: str) -> None:
    stored = PCA(4, solver=solver).fit(X)
    for height in (1, 37, 400):
        model = PCA(4, solver=solver).fit(heights(X, height))
        np.testing.assert_allclose(model.components_, stored.components_, atol=1e-9)
        np.testing.assert_allclose(model.singular_values_, stored.singular_values_, rtol=1e-9)
        assert (model.n_samples_, model.subspace_.passes, model.n_features_in_) == (400, 1, 150)
        check_certificate(model.subspace_, Problem("power 1", 400, 150).exact)
    scaled = PCA(4, scale="std").fit(heights(X, 50))
    np.testing.assert_allclose(scaled.singular_values_, PCA(4, scale="std").fit(X).singular_values_, rtol=1e-9)
    np.testing.assert_allclose(
        TruncatedSVD(2).fit(heights(X, 50)).singular_values_, TruncatedSVD(2).fit(X).singular_values_, rtol=1e-9
    )


def test_a_stream_may_hold_what_a_matrix_may() -> None:
    blocks = [scipy.sparse.csr_matrix(X[:100]), X[100:300].tolist(), X[300:]]
    np.testing.assert_allclose(PCA(3).fit(iter(blocks)).components_, PCA(3).fit(X).components_, atol=1e-8)
    assert PCA(3).fit(heights(X.astype(np.float32), 60)).components_.dtype == np.float32
    assert PCA(3, tol=1e-5).fit(heights(X.astype(np.float32), 60)).subspace_.passes == 1
    kept = X.copy()
    PCA(3).fit(heights(kept, 60))
    assert np.array_equal(kept, X)


def broken():
    yield X[:9]
    raise OSError("line dropped")


@pytest.mark.parametrize(
    ("model", "stream", "error", "words"),
    [
        (PCA(3), lambda: iter([]), InputError, "read only once"),
        (PCA(3, solver="krylov"), lambda: heights(X, 9), InputError, "reads its data several times"),
        (PCA(3, solver="dual_gram"), lambda: heights(X, 9), InputError, "reads its data several times"),
        (PCA(3, missing="mean"), lambda: heights(X, 9), InputError, "fill it before"),
        (PCA(151), lambda: heights(X, 9), InputError, "n_components=151 is more"),
        (PCA(60), lambda: iter([X[:50]]), InputError, "n_components=60 is more"),
        (PCA(1), lambda: iter([X[:1]]), InputError, "at least two samples"),
        (PCA(3), lambda: iter([X[:9], X[:9, :4]]), InputError, "row 9"),
        (PCA(3), lambda: iter([X[:9], np.where(np.arange(150) == 7, np.inf, X[9:20])]), InputError, "row 9, feature 7"),
        (PCA(3), lambda: iter([{"a": 1}]), InputError, "block 0"),
        (PCA(3), broken, StoreError, "after row 9.*line dropped"),
        (PCA(3, scale="std", solver="single_pass"), lambda: heights(X, 9), InputError, "solver='gram'"),
    ],
)
def test_a_stream_that_cannot_serve_says_why(model, stream, error, words: str) -> None:
    with pytest.raises(error, match=words):
        model.fit(stream())


def test_a_stream_is_read_once_and_only_by_fit() -> None:
    stream = heights(X, 50)
    model = PCA(3).fit(stream)
    with pytest.raises(InputError, match="read only once"):
        PCA(3).fit(stream)
    with pytest.raises(InputError, match="read only once"):
        open_matrix(heights(X, 50))
    with pytest.raises(InputError, match="only by fit"):
        model.transform(heights(X, 50))


def test_a_tol_that_one_pass_does_not_meet_is_not_claimed(sketched: None) -> None:
    with pytest.raises(ConvergenceError, match="after 1 pass the sine"):
        fitted(Problem("power 1/2", 200, 120).X, 4, "single_pass", tol=1e-3)
    with pytest.raises(InputError, match="more than the 48 columns"):
        fitted(Problem("power 1/2", 200, 120).X, 0.99, "single_pass")


def test_fit_transform_of_a_stream_fits_all_of_it_before_it_says_that_there_are_no_scores() -> None:
    x = np.random.default_rng(0).standard_normal((60, 5))
    model = PCA(2, solver="gram")
    with pytest.raises(InputError, match="only by fit, and once"):
        model.fit_transform(iter(np.array_split(x, 4)))
    assert model.n_samples_ == 60
