"""What single precision costs: nothing where entries are few, and no more than certificates say where they are many."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import PCA, errors
from pipeline.kernels.blocks import adjoint_product, column_sums
from tests.problems import SOLVERS, exact, fitted
from tests.test_solvers import check_certificate

ALL = (*SOLVERS, "single_pass")


def decaying(n: int, d: int, offset: float) -> np.ndarray:
    """Float32 entries whose tenth singular value is a hundredth of the first, about an offset."""
    rng = np.random.default_rng(n)
    left, right = (np.linalg.qr(rng.standard_normal((m, 40)))[0] for m in (n, d))
    x = (left * (0.6 ** np.arange(40) * np.sqrt(n * d))) @ right.T + 0.01 * rng.standard_normal((n, d))
    return (x + offset * rng.standard_normal(d)).astype(np.float32)


@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize("shape", [(901, 150), (150, 901)])
@pytest.mark.parametrize(("offset", "center"), [(0, True), (50, True), (50, False)])
def test_norms_of_scores_are_singular_values(solver: str, shape: tuple[int, int], offset: float, center: bool) -> None:
    x = decaying(*shape, offset)
    model = PCA(10, solver=solver, center=center).fit(x)
    scores = model.transform(x)
    assert scores.dtype == model.components_.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(scores.astype(np.float64), axis=0), model.singular_values_, rtol=1e-7)
    np.testing.assert_allclose(model.singular_values_, exact(x, center=center).values[:10], rtol=1e-8)


def test_long_sums_lose_no_digits() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((100_001, 3)) * 0.01 + np.linspace(0, 1, 100_001)[:, None] * rng.standard_normal(3) * 10
    x = x.astype(np.float16).astype(np.float32)
    assert np.array_equal(column_sums(x), x.sum(axis=0, dtype=np.float64))
    w = rng.integers(0, 3, len(x)).astype(np.float64)
    np.testing.assert_allclose(column_sums(x, w), w @ x.astype(np.float64), rtol=1e-9)
    # Terms that are all alike are rounded to the same side.
    x, thin = np.full((5001, 4), 1 / 3, np.float32), np.full((5001, 2), 1 / 7)
    truth = x.T.astype(np.float64) @ thin.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(adjoint_product(x, thin), truth, rtol=32 * np.finfo(np.float32).eps)
    assert adjoint_product(x, thin).dtype == np.float64


@pytest.mark.usefixtures("as_of_large_data")
@pytest.mark.parametrize("solver", ALL)
def test_errors_in_one_direction_are_certified_too(solver: str) -> None:
    """Along a single random vector less than a third of them is seen in one case of four."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        loud = 10.0 ** rng.uniform(-3, 0, (2000, 1))
        x = np.linspace(0, 1, 2000)[:, None] * rng.standard_normal(3) * 3 + 0.02 * rng.standard_normal((2000, 3)) * loud
        x = x.astype(np.float32)
        truth = exact(x, center=False)
        for random in range(6):
            check_certificate(fitted(x, 1, solver, center=False, seed=random), truth)


@pytest.mark.usefixtures("as_of_large_data")
@pytest.mark.parametrize("solver", ["gram", "krylov"])
def test_a_tol_is_met_where_rows_drift(solver: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((20_000, 7)) * 0.01 + np.linspace(0, 1, 20_000)[:, None] * rng.standard_normal(7) * 10
    x = x.astype(np.float16).astype(np.float32)
    values, vectors = np.linalg.eigh(np.cov(x.T.astype(np.float64)))
    found = fitted(x, 1, solver, tol=1e-6)
    np.testing.assert_allclose(found.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-6)
    v = found.components[0].astype(np.float64)
    assert np.linalg.norm(v - vectors[:, -1] * (vectors[:, -1] @ v)) <= np.sin(found.angle_bound) <= 1e-6
    assert values[-1] > 100 * values[-2]


@pytest.mark.parametrize("solver", ALL)
def test_what_centring_took_from_a_wide_matrix_has_no_certificate(solver: str) -> None:
    x = np.random.default_rng(0).standard_normal((29, 203))
    found = fitted(x, 29, solver)  # of rank 28: of 175 directions with nothing in them, the last is any
    assert found.singular_values[-1] < 1e-6
    assert found.angle_bounds[-1] == pytest.approx(np.pi / 2)
    if solver != "single_pass":
        assert found.angle_bounds[-2] < 1e-6


@pytest.mark.parametrize("k", [1, 2, 29])
@pytest.mark.parametrize("solver", ALL)
def test_nothing_at_all_has_components_without_a_certificate(solver: str, k: int) -> None:
    for shape in ((29, 203), (203, 29)):
        found = fitted(np.zeros(shape), k, solver)
        assert np.array_equal(found.singular_values, np.zeros(k))
        assert found.angle_bound == pytest.approx(np.pi / 2) or k == min(shape) == shape[1]


@pytest.mark.parametrize("size", [1e-155, 1e-165, 1e-300])
@pytest.mark.parametrize("solver", ALL)
def test_squares_that_underflow_are_refused(solver: str, size: float) -> None:
    with pytest.raises(errors.InputError, match="squares underflow: multiply the data"):
        PCA(2, solver=solver).fit(size * np.random.default_rng(0).standard_normal((100, 8)))


@pytest.mark.parametrize("solver", ["gram", "dual_gram"])
def test_what_rows_held_is_told_alike_in_either_precision(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of few entries follows its data until they are many, and so do those of earlier versions."""
    x, told = decaying(150, 90, 3), []
    for few in (0, x.size):
        monkeypatch.setattr("pipeline.kernels.blocks._FEW", few)
        told.append(PCA(2, solver=solver).fit(x).subspace_.provenance["seen"])
    assert told[0] == told[1]
    assert told[0] != PCA(2).fit(x.astype(np.float64)).subspace_.provenance["seen"]
