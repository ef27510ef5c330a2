"""What passes buy: Nystrom extraction, shifts, an earlier answer to begin with; and how the cheapest way is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from pipeline import PCA, Subspace, TruncatedSVD, load, open_matrix, plan, speed
from pipeline.cli import main
from pipeline.driver import solve
from pipeline.errors import ConvergenceError, InputError, PlanError, StoreError
from pipeline.jobs.run import run_job
from pipeline.jobs.spec import parse_job
from pipeline.kernels.linalg import orthonormal
from pipeline.kernels.rank import Rank
from pipeline.progress import Progress, listening
from pipeline.solvers import Settings, iteration, krylov
from pipeline.solvers.basis import Basis
from pipeline.solvers.iteration import Iteration
from pipeline.solvers.krylov import Krylov
from pipeline.solvers.randomized import Randomized
from tests.problems import SOLVERS, Problem, exact, fitted
from tests.test_reading import stored
from tests.test_solvers import check_certificate, random_case, spectra

pytestmark = pytest.mark.usefixtures("as_of_large_data")


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


def test_where_wide_blocks_do_not_fit_slender_ones_do(large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Krylov, "sample", lambda self, X: None)
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


class TestSample:
    """The first block from a few stretches of rows."""

    @pytest.fixture(autouse=True)
    def _small(self, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """Samples of matrices as small as these."""
        monkeypatch.setattr(krylov, "_TIMES", (2, 100))
        monkeypatch.setattr(krylov, "_GOOD", 2)

    def solved(self, x: np.ndarray, k: int = 40, sampled: bool = True, **how: Any) -> Subspace:
        with pytest.MonkeyPatch.context() as patch:
            if not sampled:
                patch.setattr(Krylov, "sample", lambda self, X: None)
            given = {name: how.pop(name) for name in ("weights", "sample_weights") if name in how}
            return PCA(k, solver="krylov", **how).fit(open_matrix(x, **given).cut_at(60)).subspace_

    def test_it_saves_two_passes(self) -> None:
        x = noisy(2400)
        truth, block = exact(x), 60
        sampled, random = self.solved(x), self.solved(x, sampled=False)
        assert (sampled.passes, random.passes) == (2, 4)
        assert worst(sampled, truth) < 5e-3
        check_certificate(sampled, truth)
        walks = sampled.provenance["walks"]
        assert [walk["pass"] for walk in walks] == [0, 1, 2]
        assert walks[0]["bytes"] == krylov._WALKS * 5 * block * 600 * 8
        ready = plan(open_matrix(x).cut_at(block), PCA(40, solver="krylov"))
        assert ready.bytes_read == sum(walk["bytes"] for walk in walks)
        assert ready.sample_bytes == walks[0]["bytes"]
        assert "2, after 6.87 MiB of a sample" in str(ready)

    @pytest.mark.parametrize("k", [10, 40])
    def test_the_plan_is_of_blocks_as_low_as_memory_asks_for(self, k: int) -> None:
        """There are too few of them for a sample at first."""
        array = zarr.create_array(MemoryStore(), shape=(12_000, 600), chunks=(600, 600), dtype="f8")
        array[:] = noisy(12_000)
        with pytest.raises(PlanError) as refused:
            plan(array, PCA(k, solver="krylov", memory_limit=1))
        wide = plan(array, PCA(k, solver="krylov"))
        model = PCA(k, solver="krylov", memory_limit=refused.value.needed).fit(array)
        ready, walks = model.plan_, model.subspace_.provenance["walks"]
        assert wide.n_blocks < 28 < ready.n_blocks
        assert wide.sample_bytes == 0 < ready.sample_bytes == walks[0]["bytes"]
        assert (ready.passes, ready.bytes_read) == (model.subspace_.passes, sum(walk["bytes"] for walk in walks))

    def test_a_start_that_is_no_good_costs_a_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = noisy(2400, 1200) + 0.01 * np.random.default_rng(1).standard_normal((2400, 1200))
        assert self.solved(x).passes == 3
        rng = np.random.default_rng(2)
        monkeypatch.setattr(
            krylov, "leading", lambda known, images, l, roundoff: orthonormal(rng.standard_normal((len(images[0]), l)))
        )
        found = self.solved(x)
        assert found.passes == 4
        assert worst(found, exact(x)) < 1e-2

    def test_few_components_need_no_wide_blocks(self) -> None:
        x = noisy(2400)
        truth = exact(x)
        sampled, random = self.solved(x, 10), self.solved(x, 10, sampled=False)
        assert (sampled.passes, random.passes) == (2, 3)
        assert Krylov(Settings(Rank(10))).width(open_matrix(x).cut_at(60)) == 42
        assert worst(sampled, truth) < 1e-6
        assert sampled.angle_bound < 0.02
        check_certificate(sampled, truth)

    def test_where_it_shows_too_little_to_certify_a_pass_more_does(self) -> None:
        x = noisy(2400)
        assert self.solved(x, 10).passes == 2
        x[[777, 2222], 5] += 200.0  # two rows that are in no stretch, and the first component
        told: list[Progress] = []
        with listening(told.append):
            found = self.solved(x, 10)
        assert found.passes == 3
        assert (told[-1].pass_number, told[-1].passes) == (3, 3)
        assert found.angle_bound < 0.1
        check_certificate(found, exact(x))

    @pytest.mark.parametrize("size", [2.0, 8.0, 50.0])
    def test_what_it_does_not_show_is_found_and_certified(self, size: float) -> None:
        x = noisy(2400)
        x[[777, 2222], 5] += size
        found, truth = self.solved(x, 10), exact(x)
        assert found.passes == 2
        assert worst(found, truth) < 1e-6
        assert truth.angle(found.components) <= np.sin(found.angle_bound) < 0.02

    def test_rows_of_which_it_shows_nothing_are_found(self) -> None:
        """Groups that lie one after the other, on features of their own, most of them between the stretches."""
        rng = np.random.default_rng(1)
        x = 0.05 * rng.standard_normal((2400, 600))
        for group in range(40):
            rows, features = slice(60 * group, 60 * group + 60), slice(15 * group, 15 * group + 15)
            x[rows, features] += (1.1 + 2.0**-group) * rng.standard_normal((60, 1))
        truth = exact(x)
        found = self.solved(x, tol=1e-3)
        assert truth.angle(found.components) <= np.sin(found.angle_bound) <= 1e-3
        assert worst(self.solved(x), truth) < 0.05

    @pytest.mark.parametrize(
        "how",
        [
            {"scale": "std"},
            {"center": False},
            {"weights": np.linspace(0, 2, 300)},
            {"sample_weights": np.arange(2400) % 4},
            {"scale": "std", "weights": np.linspace(1, 2, 300), "sample_weights": np.arange(2400) % 3},
        ],
        ids=str,
    )
    def test_settings_are_those_of_the_fit(self, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        x = noisy(2400, 300) * np.linspace(1, 3, 300) + 2
        truth = exact(x, **how)
        found = self.solved(x, 8, tol=1e-4, **how)
        assert truth.angle(found.components) <= np.sin(found.angle_bound) <= 1e-4
        assert found.provenance["walks"][0]["pass"] == 0
        monkeypatch.setattr(Krylov, "may_be_wide", lambda self, X: False)
        assert found.passes <= self.solved(x, 8, sampled=False, tol=1e-4, **how).passes

    @pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.complex128, np.int16])
    def test_any_numbers(self, dtype: Any) -> None:
        x = noisy(2400, 300)
        x = ((x + 1j * noisy(2400, 300)[::-1] if np.dtype(dtype).kind == "c" else x) * 1000).astype(dtype)
        found, other = self.solved(x), self.solved(x, sampled=False)
        assert (found.passes, other.passes) == (2, 4)
        np.testing.assert_allclose(found.singular_values, other.singular_values, rtol=1e-3)

    def test_features_and_entries_without_values(self) -> None:
        x = noisy(2400, 300)
        x[:, 7] = np.nan
        truth = exact(np.delete(x, 7, axis=1))
        found = self.solved(x, 8, tol=1e-4)
        assert truth.angle(np.delete(found.components, 7, axis=1)) <= np.sin(found.angle_bound) <= 1e-4
        filled = self.solved(np.where(np.arange(2400)[:, None] % 7 == 3, np.nan, x), missing="mean")
        assert filled.n_samples == 2400
        assert [walk["pass"] for walk in filled.provenance["walks"]] == [1, 0, 2, 3]
        x[301, 9] = np.inf  # in the first stretch
        with pytest.raises(InputError, match="row 301, feature 9"):
            self.solved(x)

    @pytest.mark.parametrize("last", [2, krylov._WALKS, krylov._WALKS + 1])
    def test_a_checkpoint_goes_on_in_it_and_after_it(
        self, last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = noisy(2400, 300)
        whole = self.solved(x, checkpoint=str(tmp_path / "whole"))
        step, steps = Krylov.step, []

        def dies(self: Krylov, *args: Any) -> Any:
            steps.append(1)
            if len(steps) == last:
                raise KeyboardInterrupt
            return step(self, *args)

        monkeypatch.setattr(Krylov, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            self.solved(x, checkpoint=str(tmp_path / "broken"))
        again = self.solved(x, checkpoint=str(tmp_path / "broken"))
        assert len(steps) == krylov._WALKS + 2 + 1
        np.testing.assert_array_equal(again.components, whole.components)
        walks = again.provenance["walks"]
        assert [walk["pass"] for walk in walks] == [0, 1, 2]
        assert walks[0]["bytes"] == krylov._WALKS * 5 * 60 * 300 * 8

    @settings(max_examples=40, deadline=None)
    @given(
        spectrum=spectra,
        n=st.integers(400, 700),
        d=st.integers(30, 70),
        seed=st.integers(0, 10**6),
        tol=st.sampled_from([None, 0.1]),
        dtype=st.sampled_from([np.float64, np.float32]),
    )
    def test_no_bound_is_below_the_truth(self, spectrum, n, d, seed: int, tol, dtype) -> None:
        x = random_case(spectrum, n, d, seed, dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Krylov, "width", lambda self, X: 6)
            patch.setattr(Krylov, "may_be_wide", lambda self, X: False)
            patch.setattr(krylov, "_MORE", 0)
            X = open_matrix(x).cut_at(13)
            solver = Krylov(Settings(Rank(4), tol=tol))
            assert solver.sample(X) is not None
            try:
                found = solve(X, solver)
            except ConvergenceError as error:
                found = error.subspace
            check_certificate(found, exact(x))


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

    @pytest.mark.parametrize("tol", [1e-1, 1e-2])
    def test_so_does_one_with_rows_that_came_later(self, tol: float) -> None:
        whole = random_case(lambda r: 1 / np.arange(1, r + 1.0), 1520, 400, 3, np.float32)
        first = PCA(8, solver="krylov").fit(whole[:-20])
        cold, warm = (PCA(8, solver="krylov", tol=tol).fit(whole, start=start) for start in (None, first))
        assert warm.subspace_.passes <= 2 < cold.subspace_.passes
        assert exact(whole).angle(warm.components_) <= np.sin(warm.subspace_.angle_bound) <= tol

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
    assert plan(X, PCA(50, solver="krylov")).passes == 2  # and a sample
    assert plan(X.cut_to(X.nbytes // 20), PCA(50, solver="krylov")).passes == 4  # of so few blocks none is taken
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
