"""Narrow blocks: three terms say what C does to the basis, and their certificates hold."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import PCA, open_matrix
from pipeline.kernels.rank import Rank
from pipeline.plans import prepare
from pipeline.solvers import Settings
from pipeline.solvers.lanczos import Lanczos, LanczosState
from pipeline.walk import walk
from tests.problems import exact
from tests.test_solvers import check_certificate, random_case, spectra


def solver_of(x: sp.csr_array, k: int) -> Lanczos:
    found = prepare(open_matrix(x), Settings(Rank(k)), "krylov", None).solver
    assert isinstance(found, Lanczos)
    return found


@settings(max_examples=60, deadline=None)
@given(
    spectrum=spectra,
    n=st.integers(20, 90),
    d=st.integers(20, 70),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(["f4", "f8"]),
)
def test_certificates_hold(spectrum: str, n: int, d: int, seed: int, dtype: str) -> None:
    x = random_case(spectrum, n, d, seed, dtype)
    solver_of(sp.csr_array(x), 3)
    check_certificate(PCA(3, solver="krylov").fit(sp.csr_array(x)).subspace_, exact(x))


@pytest.mark.parametrize("rank", [5, 60])
def test_three_terms_are_what_c_does_to_the_basis(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lanczos, "settled", lambda self, X, state: False)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, rank)) @ rng.standard_normal((rank, 80))
    c = 200 * np.cov(x.T, bias=True)
    X = open_matrix(sp.csr_array(x))
    solver = solver_of(sp.csr_array(x), 4)
    state = solver.init(X)
    for passes in range(1, 6):
        summary, _ = walk(X, solver.fold(X, state))
        state = solver.step(X, state, summary)
        assert isinstance(state, LanczosState)
        basis = np.hstack([*state.known, state.basis.block])
        assert basis.shape == (80, 8 * (passes + 1))
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
        image = c @ np.hstack(state.known)
        error = np.linalg.norm(basis @ state.recurrence - image, 2)
        assert error < 1e-12 * np.linalg.norm(c, 2)


def test_products_in_single_precision_err_by_no_more_than_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lanczos, "settled", lambda self, X, state: False)
    rng = np.random.default_rng(0)
    x = sp.csr_array((rng.random((400, 90)) < 0.3) * rng.gamma(2.0, 3.0, (400, 90)) * np.linspace(1, 4, 90), dtype="f4")
    c = 400 * np.cov(x.toarray().T.astype("f8"), bias=True)
    X, solver = open_matrix(x), solver_of(x, 4)
    state = solver.init(X)
    for passes in range(1, 7):
        assert state.dtype == ("f8" if passes == 1 else "f4")  # four values are known then
        summary, _ = walk(X, solver.fold(X, state))
        state = solver.step(X, state, summary)
        assert isinstance(state, LanczosState)
        error = np.linalg.norm(
            np.hstack([*state.known, state.basis.block]) @ state.recurrence - c @ np.hstack(state.known), 2
        )
        assert error < state.rounding + 1e-12 * np.linalg.norm(c, 2)
    assert state.rounding < 1e-5 * np.linalg.norm(c, 2)


def test_faint_eigenvalues_are_found_in_double_precision() -> None:
    rng = np.random.default_rng(2)
    left, right = (np.linalg.qr(rng.standard_normal((m, 120)))[0] for m in (600, 120))
    x = (left * np.geomspace(1, 1e-8, 120) @ right.T).astype("f4")
    wide = x.astype("f8")
    values = np.linalg.svd(wide - wide.mean(axis=0), compute_uv=False) ** 2
    found = PCA(30, solver="krylov").fit(sp.csr_array(x))
    np.testing.assert_allclose(found.singular_values_**2, values[:30], rtol=1e-9)


def test_of_little_rank_all_is_found() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, 3)) @ rng.standard_normal((3, 120))
    found = PCA(6, solver="krylov").fit(sp.csr_array(x))
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)[:6]
    np.testing.assert_allclose(found.singular_values_, values, atol=1e-6 * values[0])
    np.testing.assert_allclose(found.components_ @ found.components_.T, np.eye(6), atol=1e-10)
