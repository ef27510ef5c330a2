"""What passes buy: Nystrom extraction, shifts, an earlier answer to begin with; and how the cheapest way is chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import PCA, TruncatedSVD, load, open_matrix, plan, speed
from pipeline.cli import main
from pipeline.errors import InputError, PlanError, StoreError
from pipeline.jobs.run import run_job
from pipeline.jobs.spec import parse_job
from pipeline.kernels.linalg import orthonormal
from pipeline.solvers import iteration
from pipeline.solvers.basis import Basis
from pipeline.solvers.iteration import Iteration
from pipeline.solvers.krylov import Krylov
from pipeline.solvers.randomized import Randomized
from tests.problems import SOLVERS, Problem, exact, fitted
from tests.test_reading import stored
from tests.test_solvers import check_certificate, random_case, spectra


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices treated as those whose passes are dear."""
    monkeypatch.setattr(iteration, "_DEAR", 0)


def worst(found, truth) -> float:
    """Worst relative error of the eigenvalues."""
    return float(np.max(np.abs(1 - found.singular_values**2 / truth.values[: found.k] ** 2)))


@settings(max_examples=60, deadline=None)
@given(
    spectrum=spectra,
    n=st.integers(20, 90),
    d=st.integers(20, 70),
    seed=st.integers(0, 10**6),
    passes=st.integers(2, 4),
    dtype=st.sampled_from([np.float64, np.float32]),
)
def test_no_bound_of_a_nystrom_answer_is_below_the_truth(spectrum, n, d, seed: int, passes: int, dtype) -> None:
    x = random_case(spectrum, n, d, seed, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iteration, "_DEAR", 0)
        patch.setattr(Krylov, "width", lambda self, X: 6)
        patch.setattr(Krylov, "passes", lambda self, X: passes)
        check_certificate(fitted(x, 4, "krylov", block=11), exact(x))


def noisy(n: int = 900, d: int = 600) -> np.ndarray:
    """Eigenvalues 1 / j^2 above white noise: the spectrum of the benchmark."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.standard_normal((d, 60)))[0]
    return (rng.standard_normal((n, 60)) / np.arange(1, 61)) @ basis.T + 0.01 * rng.standard_normal((n, d))


@pytest.mark.parametrize("passes", [3, 4])
def test_nystrom_is_better_than_ritz_from_the_same_products(large: None, passes: int, monkeypatch) -> None:
    x, k = noisy(), 20
    truth = exact(x)
    monkeypatch.setattr(Krylov, "passes", lambda self, X: passes)
    better = fitted(x, k, "krylov")
    monkeypatch.setattr(Krylov, "squared", lambda self, X: False)
    ritz = fitted(x, k, "krylov")
    assert better.passes == ritz.passes == passes
    assert worst(better, truth) < 0.7 * worst(ritz, truth)
    for found in (better, ritz):
        check_certificate(found, truth)


@pytest.mark.parametrize(("k", "passes"), [(20, 3), (40, 4)])
def test_an_error_of_a_thousandth_is_left(large: None, k: int, passes: int) -> None:
    x = noisy()
    found = fitted(x, k, "krylov")
    assert found.passes == passes
    assert worst(found, exact(x)) < 1e-3


@pytest.mark.parametrize("name", ["power 1/2", "power 1"])
def test_wide_blocks_reach_as_far_in_a_pass_less(large: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(name, 900, 600)
    wide = fitted(problem.X, 10, "krylov")
    monkeypatch.setattr(Krylov, "may_be_wide", lambda self, X: False)
    slender = fitted(problem.X, 10, "krylov")
    assert wide.passes == slender.passes - 1
    assert worst(wide, problem.exact) < 3 * max(worst(slender, problem.exact), 1e-9)


def test_where_wide_blocks_do_not_fit_slender_ones_do(large: None) -> None:
    X = open_matrix(np.zeros((4000, 4000)))
    with pytest.raises(PlanError) as refused:
        PCA(5, solver="krylov", memory_limit=1).prepare(X)
    least = PCA(5, solver="krylov", memory_limit=refused.value.needed).prepare(X).plan
    assert (PCA(5, solver="krylov").prepare(X).plan.passes, least.passes) == (3, 4)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(400, 250), (250, 400)])
def test_norms_of_score_columns_are_the_singular_values(solver: str, shape: tuple[int, int]) -> None:
    x = Problem("power 1/2", *shape).X
    model = PCA(6, solver=solver).fit(x)
    np.testing.assert_allclose(np.linalg.norm(model.transform(x), axis=0), model.singular_values_, rtol=1e-7)


def test_shifts_save_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more passes than without a shift, nor than with the update of dashSVD, which comes to the same shift."""
    x = Problem("power 1/2", 300, 150).X
    wanted = {tol: fitted(x, 5, "randomized", tol=tol).passes for tol in (1e-2, 1e-5)}
    shift = 0.0

    def dash(self, state, basis: Basis, ritz, most: int) -> Basis:
        nonlocal shift
        moved = ritz.images - shift * ritz.vectors
        least = float(np.linalg.svd(moved, compute_uv=False)[-1])
        shift = (shift + least) / 2 if state.passes > 1 and least > shift else shift
        return Basis.begun(orthonormal(moved))

    def plain(self, state, basis: Basis, ritz, most: int) -> Basis:
        return Basis.begun(orthonormal(ritz.images))

    for other in (dash, plain):
        monkeypatch.setattr(Randomized, "advance", other)
        for tol, passes in wanted.items():
            shift = 0.0
            assert passes <= fitted(x, 5, "randomized", tol=tol).passes


def test_vectors_that_have_settled_end_a_dear_iteration(large: None) -> None:
    problem = Problem("exponential", 200, 120)
    found = fitted(problem.X, 4, "randomized")
    assert found.passes < 10
    assert worst(found, problem.exact) < 1e-4


class TestStart:
    """An earlier answer to begin with."""

    rng = np.random.default_rng(8)
    old = Problem("step", 600, 200).X
    new = old + 0.01 * rng.standard_normal(old.shape)

    @pytest.mark.parametrize("solver", ["krylov", "randomized"])
    @pytest.mark.parametrize("scale", [None, "std"])
    @pytest.mark.parametrize("tol", [1e-2, 1e-3])
    def test_a_rerun_takes_two_passes(self, solver: str, scale: str | None, tol: float) -> None:
        first = PCA(5, solver=solver, scale=scale).fit(self.old)
        cold = PCA(5, solver=solver, scale=scale, tol=tol).fit(self.new)
        warm = PCA(5, solver=solver, scale=scale, tol=tol).fit(self.new, start=first)
        truth = exact(self.new, scale=scale)
        assert warm.subspace_.passes <= 2 <= cold.subspace_.passes
        assert truth.angle(warm.components_) <= np.sin(warm.subspace_.angle_bound) <= tol

    def test_reads_are_counted(self) -> None:
        store = stored((50, 60))
        array = zarr.open_array(store)
        first = PCA(4, solver="krylov").fit(array)
        store.reads.clear()
        again = PCA(4, solver="krylov").fit(array, start=first.subspace_)
        assert set(store.reads.values()) == {2} == {again.subspace_.passes} == {again.plan_.passes}

    @pytest.mark.parametrize("solver", [*SOLVERS, "single_pass", "auto"])
    @pytest.mark.parametrize("shape", [(300, 80), (80, 300)])
    def test_the_answer_is_that_without_a_start(self, solver: str, shape: tuple[int, int]) -> None:
        problem = Problem("exponential", *shape)
        x = problem.X.copy()
        x[:, 5] = np.nan
        start = PCA(7).fit(problem.X)  # of other features with values, and of another number of components
        found = PCA(4, solver=solver).fit(x, start=start).subspace_
        kept = np.delete(x, 5, axis=1)
        truth = exact(kept)
        assert truth.angle(np.delete(found.components, 5, axis=1)) < 1e-3
        np.testing.assert_allclose(found.singular_values, truth.values[:4], rtol=1e-4)

    @pytest.mark.parametrize("solver", ["krylov", "randomized"])
    def test_no_bound_is_below_the_truth(self, solver: str) -> None:
        for seed in range(12):
            rng = np.random.default_rng(seed)
            power = rng.uniform(0.3, 2)
            x = random_case(lambda r, p=power: np.arange(1, r + 1.0) ** -p, 90, 60, seed, np.float64)
            start = PCA(4).fit(x + 1e-2 * np.std(x) * rng.standard_normal(x.shape))
            for tol in (None, 0.3):
                found = PCA(4, solver=solver, tol=tol).fit(x, start=start).subspace_
                check_certificate(found, exact(x))

    def test_a_store_or_a_wrong_thing(self, tmp_path: Path) -> None:
        first = TruncatedSVD(3).fit(self.old)
        first.subspace_.save(tmp_path / "m.zarr")
        assert PCA(3).fit(self.new, start=tmp_path / "m.zarr").n_components_ == 3
        with pytest.raises((StoreError, InputError), match="nothing"):
            PCA(3).fit(self.new, start=str(tmp_path / "nothing.zarr"))
        with pytest.raises(InputError, match="start is a ndarray"):
            PCA(3).fit(self.new, start=np.eye(3))
        with pytest.raises(InputError, match="199 features"):
            PCA(3).fit(self.new[:, 1:], start=first)
        here, there = (xr.DataArray(self.old, {"x": np.arange(200) + shift}, ("t", "x")) for shift in (0, 1))
        with pytest.raises(InputError, match="other places"):
            PCA(3).fit(there, start=PCA(3).fit(here))


@pytest.mark.parametrize("solver", [*SOLVERS, "single_pass"])
@pytest.mark.parametrize(("n", "d"), [(400, 80), (100, 300)])
def test_auto_finds_what_lies_above_the_transition(solver: str, n: int, d: int) -> None:
    """Spikes of twice the strength of Baik, Ben Arous and Peche's transition are found, those of half are not."""
    for seed in range(1 if solver == "randomized" else 2):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((n, d))
        u, v = (np.linalg.qr(rng.standard_normal((m, 3)))[0] for m in (n, d))
        for strength, found in ((2.0, 3), (0.5, 1)):
            assert fitted(noise + strength * (n * d) ** 0.25 * u @ v.T, "auto", solver).k == found
    low = u @ np.diag([9.0, 5.0, 2.0]) @ v.T
    assert fitted(low, "auto", solver).k == 3  # no noise at all


def test_the_choice_says_what_it_rests_on(monkeypatch: pytest.MonkeyPatch) -> None:
    X = open_matrix(np.broadcast_to(np.float32(0), (60_000, 20_000)))
    why = plan(X, PCA(50)).why
    assert "GB/s (assumed)" in why
    assert "GFLOP/s (measured)" in why
    assert plan(X, PCA(50)).solver == "krylov"
    monkeypatch.setattr(speed, "reading", lambda X: (1e6, True))
    wide = open_matrix(np.broadcast_to(np.float32(0), (6_000, 20_000)))
    assert plan(wide, PCA(50)).solver == "dual_gram"  # exact in two passes, where reading is what costs
    monkeypatch.undo()
    big = np.random.default_rng(0).standard_normal((40_000, 10))
    PCA(2).fit(big)
    assert "(measured)" in speed.in_words(open_matrix(big)).split(" and ")[0]


def test_every_iteration_says_its_passes() -> None:
    X = open_matrix(np.broadcast_to(np.float32(0), (60_000, 20_000)))
    assert plan(X, PCA(50, solver="krylov")).passes == 4
    assert plan(X, PCA(50, solver="randomized")).passes == 10
    assert issubclass(Krylov, Iteration)


def test_the_command_and_a_job_begin_with_a_model(tmp_path: Path) -> None:
    old, new, data = tmp_path / "old.zarr", tmp_path / "new.zarr", tmp_path / "x.zarr"
    zarr.create_array(data, data=TestStart.new)
    PCA(5, solver="krylov").fit(TestStart.old).subspace_.save(old)
    options = ["fit", str(data), "-n", "5", "--solver", "krylov", "--tol", "0.01", "--out", str(new)]
    result = CliRunner().invoke(main, [*options, "--start", str(old)])
    assert result.exit_code == 0, result.stderr
    assert load(new).passes <= 2
    wrong = CliRunner().invoke(main, [*options, "--overwrite", "--start", str(tmp_path / "none.zarr")])
    assert wrong.exit_code == 2
    assert "none.zarr" in wrong.stderr
    job = {"source": {"path": str(data)}, "output": {"model": str(new), "overwrite": True}}
    job["model"] = {"n_components": 5, "solver": "randomized", "tol": 0.01, "start": str(old)}
    assert run_job(parse_job(job)).subspace.passes <= 2
