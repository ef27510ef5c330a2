"""Every solver against LAPACK, and no stated bound below the truth: problems of known spectra times solvers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConvergenceError
from tests.problems import SOLVERS, SPECTRA, Problem, exact, fitted

pytestmark = pytest.mark.usefixtures("as_of_large_data")

SHAPES = [(120, 30), (30, 120), (60, 60)]


def check_certificate(found, truth) -> None:
    """No bound is below the truth: angles of all leading parts, and residuals."""
    for j in range(1, found.k + 1):
        # Angles of the truth itself are known to some 1e-12 only, divided by the gap.
        slack = 1e-14 / max(truth.gap(j), 1e-14)
        assert truth.angle(found.components[:j]) <= np.sin(found.angle_bounds[j - 1]) + slack
    residual = truth.residual(found)
    known = found.singular_values > 1e-6 * max(found.singular_values[0], 1e-300)
    assert np.all(residual[known] <= found.residual[known] + 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("dtype", "angle", "value"), [(np.float64, 1e-6, 1e-6), (np.float32, 1e-3, 1e-4)])
def test_agrees_with_lapack(name: str, solver: str, shape: tuple[int, int], dtype, angle: float, value: float) -> None:
    problem = Problem(name, *shape, dtype=dtype)
    truth, k = problem.exact, 5
    found = fitted(problem.X, k, solver, block=17)
    check_certificate(found, truth)
    # What this precision cannot tell from noise is left out; iterations are given a gap that they can use.
    need = 1e-3 if solver in ("krylov", "randomized") else 1e-5
    clear = solver != "randomized" or truth.values[k] < 0.7 * truth.values[k - 1]
    if clear and truth.gap(k) > (need if dtype is np.float64 else 1e-2):
        assert truth.angle(found.components) < angle
    scale = truth.values[0] if truth.values[0] > 0 else 1.0
    loud = truth.values[:k] > (1e-4 if dtype is np.float64 else 1e-2) * scale
    if truth.gap(k) > need:
        np.testing.assert_allclose(found.singular_values[loud], truth.values[:k][loud], rtol=value)
    np.testing.assert_allclose(
        found.components @ found.components.T, np.eye(k), atol=1e-9 if dtype is np.float64 else 1e-5
    )
    assert found.total_variance * (shape[0] - 1) == pytest.approx(truth.energy, rel=1e-4, abs=1e-4)


spectra = st.one_of(
    st.floats(0.2, 3.0).map(lambda p: lambda r: np.arange(1, r + 1.0) ** -p),
    st.floats(0.3, 0.95).map(lambda q: lambda r: q ** np.arange(r)),
    st.tuples(st.integers(1, 8), st.floats(1e-7, 0.99)).map(
        lambda c: lambda r: np.where(np.arange(r) < c[0], 1.0, c[1])
    ),
    st.tuples(st.integers(1, 4), st.floats(0.3, 0.9)).map(lambda c: lambda r: c[1] ** (np.arange(r) // c[0])),
    st.lists(st.floats(0.0, 1.0), min_size=3, max_size=60).map(
        lambda v: lambda r: np.sort(np.resize(np.array([*v, 0.5]), r))[::-1]
    ),
)


def random_case(spectrum, n: int, d: int, seed: int, dtype) -> np.ndarray:
    rng = np.random.default_rng(seed)
    r = min(n - 1, d)
    left = rng.standard_normal((n, r))
    u, v = np.linalg.qr(left - left.mean(axis=0))[0], np.linalg.qr(rng.standard_normal((d, r)))[0]
    return ((u * spectrum(r)) @ v.T * rng.choice([1e-3, 1.0, 1e4]) + rng.normal()).astype(dtype)


def check_bounds(spectrum, n: int, d: int, seed: int, solver: str, dtype) -> None:
    x = random_case(spectrum, n, d, seed, dtype)
    check_certificate(fitted(x, min(4, n - 1, d), solver, block=11), exact(x))


@settings(max_examples=60, deadline=None)
@given(
    spectrum=spectra,
    n=st.integers(3, 70),
    d=st.integers(2, 70),
    seed=st.integers(0, 10**6),
    solver=st.sampled_from(SOLVERS),
    dtype=st.sampled_from([np.float64, np.float32]),
)
def test_no_bound_is_below_the_truth(spectrum, n: int, d: int, seed: int, solver: str, dtype) -> None:
    check_bounds(spectrum, n, d, seed, solver, dtype)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(
    spectrum=spectra,
    n=st.integers(3, 80),
    d=st.integers(2, 80),
    seed=st.integers(0, 10**6),
    solver=st.sampled_from(SOLVERS),
)
def test_no_bound_is_below_the_truth_in_500_spectra(spectrum, n: int, d: int, seed: int, solver: str) -> None:
    check_bounds(spectrum, n, d, seed, solver, np.float64)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("name", ["power 1", "exponential", "step", "flat tail"])
def test_tol_is_met_by_the_certificate_and_by_the_truth(name: str, tol: float, solver: str) -> None:
    problem = Problem(name, 200, 60)
    k = 4 if name == "flat tail" else 5
    found = fitted(problem.X, k, solver, tol=tol)
    assert problem.exact.angle(found.components) <= np.sin(found.angle_bound) <= tol
    assert found.provenance["reason"] == "converged"
    assert found.passes == len(found.provenance["walks"])


@pytest.mark.parametrize("solver", ["krylov", "randomized"])
def test_a_smaller_tol_takes_more_passes(solver: str) -> None:
    X = Problem("power 1/2", 300, 150).X
    passes = [fitted(X, 5, solver, tol=tol).passes for tol in (1e-1, 1e-4, 1e-8)]
    assert passes[0] < passes[1] < passes[2]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("name", "dtype", "tol"), [("pairs", np.float64, 1e-3), ("flat", np.float64, 0.5), ("step", np.float32, 1e-9)]
)
def test_a_tol_that_cannot_be_met_ends_with_the_best_there_is(name: str, dtype, tol: float, solver: str) -> None:
    problem = Problem(name, 200, 60, dtype=dtype)
    with pytest.raises(ConvergenceError, match=r"was not met: after \d+ pass(es)?") as caught:
        fitted(problem.X, 5, solver, tol=tol)
    best = caught.value.subspace
    assert best is not None
    assert best.k == 5
    assert best.passes <= 60
    check_certificate(best, problem.exact)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_that_stands_in_the_way_of_tol_is_left_for_float64(solver: str) -> None:
    problem = Problem("power 2", 200, 40, dtype=np.float32)
    found = fitted(problem.X, 5, solver, tol=1e-6)
    assert found.components.dtype == np.float32
    assert problem.exact.angle(found.components) <= 1e-6


@pytest.mark.parametrize("solver", ["auto", "krylov"])
def test_a_fraction_that_ends_in_the_noise_is_no_more_than_it_takes(solver: str) -> None:
    """Values in the noise come late, and as long as they rise there are too many of them."""
    rng = np.random.default_rng(1)
    lead = np.linalg.qr(rng.standard_normal((1200, 60)))[0]
    x = (rng.standard_normal((1500, 60)) / np.arange(1, 61)) @ lead.T + 0.01 * rng.standard_normal((1500, 1200))
    values = exact(x).values
    share = np.cumsum(values**2) / np.sum(values**2)
    for fraction in (0.95, 0.98):
        k = int(np.searchsorted(share, fraction, side="right")) + 1
        assert fitted(x, fraction, solver).k == k


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999])
def test_a_fraction_takes_the_first_k_above_it(share: float, solver: str) -> None:
    problem = Problem("power 1", 90, 80)
    found, s = fitted(problem.X, share, solver), problem.exact.values**2
    assert found.k == int(np.searchsorted(np.cumsum(s) / s.sum(), share, side="right")) + 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_auto_finds_the_spikes_and_nothing_in_noise(solver: str) -> None:
    rng = np.random.default_rng(4)
    noise = rng.standard_normal((400, 80))
    spikes = (rng.standard_normal((400, 3)) * [9, 6, 4]) @ np.linalg.qr(rng.standard_normal((80, 3)))[0].T
    assert fitted(noise + spikes, "auto", solver).k == 3
    assert fitted(noise, "auto", solver).k == 1  # at least one is kept


@pytest.mark.parametrize(("solver", "n", "seed"), [("gram", 68, 68), ("dual_gram", 67, 66)])
def test_close_eigenvalues_are_all_found(solver: str, n: int, seed: int) -> None:
    """LAPACK's subset of eigenvalues once held fewer than were asked for."""
    check_bounds(lambda r: np.where(np.arange(r) < 1, 1.0, 0.5), n, seed, seed, solver, np.float64)


def test_seeds_repeat_and_differ() -> None:
    X = Problem("power 1/2", 200, 120).X
    one, same, other = (fitted(X, 3, "randomized", seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.components, same.components)
    assert not np.array_equal(one.components, other.components)


def test_a_random_walk_has_its_law_of_shares() -> None:
    """Shares of the variance of a long random walk are 6 / (pi k)^2 (Antognini and Sohl-Dickstein 2018)."""
    x = np.cumsum(np.random.default_rng(0).standard_normal((100, 20_000)), axis=0)
    found = fitted(x, 4, "dual_gram")
    np.testing.assert_allclose(found.explained_variance_ratio, 6 / (np.pi * np.arange(1, 5)) ** 2, rtol=0.03)
