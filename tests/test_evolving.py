"""An evolving decomposition is that of the matrix that was kept and the change, whatever the rule that finds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.classical import Brand, Triplet, ZhaSimon
from pipeline.errors import InputError
from pipeline.evolving import EvolvingSVD

K = 6


def sparse(n: int, d: int, seed: int, density: float = 0.1) -> sp.csr_array:
    return sp.csr_array(sp.random_array((n, d), density=density, rng=np.random.default_rng(seed), format="csr"))


def low_rank(n: int, d: int, rank: int, seed: int = 0) -> sp.csr_array:
    rng = np.random.default_rng(seed)
    return sp.csr_array(sparse(n, rank, seed, 0.4) @ sparse(rank, d, seed + 1, 0.3) * rng.uniform(1, 2))


def product(svd: EvolvingSVD) -> np.ndarray:
    return (svd.left * svd.singular_values) @ svd.components


def triplet(svd: EvolvingSVD) -> Triplet:
    return svd.left, svd.singular_values.copy(), svd.components.T


def best(matrix: np.ndarray, k: int = K) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :k] * s[:k]) @ vt[:k]


def rows(svd: EvolvingSVD, seed: int) -> np.ndarray:
    new = sparse(4, svd.shape[1], seed)
    old = product(svd)
    svd.add_rows(new)
    return np.vstack([old, new.toarray()])


def columns(svd: EvolvingSVD, seed: int) -> np.ndarray:
    new = sparse(svd.shape[0], 3, seed)
    old = product(svd)
    svd.add_columns(new)
    return np.hstack([old, new.toarray()])


def entries(svd: EvolvingSVD, seed: int) -> np.ndarray:
    left, right = sparse(svd.shape[0], 2, seed, 0.05), sparse(svd.shape[1], 2, seed + 1, 0.2)
    old = product(svd)
    svd.change(left, right)
    return old + (left @ right.T).toarray()


ACTS: dict[str, Callable[[EvolvingSVD, int], np.ndarray]] = {"rows": rows, "columns": columns, "entries": entries}


@pytest.mark.parametrize("act", ACTS)
def test_an_update_is_the_truncated_svd_of_what_was_kept_and_the_change(act: str) -> None:
    svd = EvolvingSVD(sparse(50, 40, 0), K)
    truth = ACTS[act](svd, 7)
    np.testing.assert_allclose(product(svd), best(truth), atol=1e-11)
    assert svd.obliqueness < 1e-12


@settings(max_examples=25, deadline=None)
@given(acts=st.lists(st.tuples(st.sampled_from(sorted(ACTS)), st.integers(0, 99)), min_size=1, max_size=12))
def test_any_chain_of_updates_stays_exact_and_orthonormal(acts: list[tuple[str, int]]) -> None:
    svd = EvolvingSVD(sparse(40, 30, 3), K)
    for act, seed in acts:
        truth = ACTS[act](svd, seed)
        assert np.abs(product(svd) - best(truth)).max() < 1e-9
        assert svd.obliqueness < 1e-9
        assert (np.diff(svd.singular_values) <= 1e-12).all()


CLASSICAL: dict[str, Callable[[Any], None]] = {
    "rows": lambda one: one.add_rows(sparse(8, 40, 2)),
    "columns": lambda one: one.add_columns(sparse(60, 5, 3)),
    "entries": lambda one: one.change(sparse(60, 3, 5), sparse(40, 3, 6)),
}


@pytest.mark.parametrize("act", CLASSICAL)
def test_the_classical_rules_agree(act: str) -> None:
    svd = EvolvingSVD(sparse(60, 40, 1), K)
    classical = ZhaSimon(*triplet(svd))
    for one in (svd, classical):
        CLASSICAL[act](one)
    u, s, v = classical.triplet()
    np.testing.assert_allclose(s, svd.singular_values, rtol=1e-12)
    np.testing.assert_allclose((u * s) @ v.T, product(svd), atol=1e-12)


def test_brand_one_after_the_other() -> None:
    """Of a rank that is kept, one step after the other finds what all at once do, also after factors are formed."""
    A = low_rank(90, 50, K - 3)
    brand = Brand(*triplet(EvolvingSVD(A[:60, :40], K)))
    brand.add_rows(A[60:, :40])
    brand.add_columns(A[:, 40:])
    brand.change(low_rank(90, 3, 1), low_rank(50, 3, 1, 4))
    truth = A + low_rank(90, 3, 1) @ low_rank(50, 3, 1, 4).T
    u, s, v = brand.triplet()
    assert np.abs((u * s) @ v.T - truth.toarray()).max() < 1e-9


def test_exact_where_the_rank_allows() -> None:
    A = low_rank(80, 50, K - 2)
    svd = EvolvingSVD(A[:60], K)
    svd.add_rows(A[60:])  # all of these rows lie in the span that is there: nothing is left of them outside
    assert np.abs(product(svd) - A.toarray()).max() < 1e-10
    assert svd.obliqueness < 1e-10
    svd.change(-A[:, [3]], sp.csr_array(np.eye(50)[:, [3]]))
    assert np.abs(product(svd)[:, 3]).max() < 1e-9


@pytest.mark.parametrize("apart", [0.0, 1e-14, 1e-10, 1e-7, 1e-4])
@pytest.mark.parametrize("act", ["rows", "columns", "change"])
def test_what_lies_nearly_inside_costs_no_digits(act: str, apart: float) -> None:
    rng = np.random.default_rng(0)
    svd = EvolvingSVD(sparse(60, 40, 0), K)
    old, left = product(svd), svd.left @ rng.standard_normal((K, 4)) + apart * rng.standard_normal((60, 4))
    right = svd.components.T @ rng.standard_normal((K, 4)) + apart * rng.standard_normal((40, 4))
    if act == "rows":
        svd.add_rows(right.T)
        truth = np.vstack([old, right.T])
    elif act == "columns":
        svd.add_columns(left)
        truth = np.hstack([old, left])
    else:
        svd.change(left, right)
        truth = old + left @ right.T
    assert np.abs(product(svd) - best(truth)).max() < 1e-12
    assert svd.obliqueness < 1e-13


def test_rows_that_repeat_each_other_or_are_of_other_sizes() -> None:
    new = sparse(3, 40, 9).toarray()
    for rows in (np.vstack([new, new, new * (1 + 1e-9)]), new * [[1e-9], [1.0], [1e9]], new * 1e-200, new * 1e150):
        svd = EvolvingSVD(sparse(60, 40, 0), K)
        truth = np.vstack([product(svd), rows])
        svd.add_rows(rows)
        assert np.abs(product(svd) - best(truth)).max() < 1e-13 * np.abs(truth).max()
        assert svd.obliqueness < 1e-13


@pytest.mark.parametrize("start", [sp.csr_array((20, 10)), np.outer(np.arange(20) == 3, np.arange(10)).astype(float)])
def test_a_start_of_less_rank_than_components(start: Any) -> None:
    svd = EvolvingSVD(start, 4)
    new = sparse(2, 10, 1, 0.4)
    svd.add_rows(new)
    truth = np.vstack([sp.csr_array(start).toarray(), new.toarray()])
    np.testing.assert_allclose(product(svd), truth, atol=1e-13)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "int8", "float16", "bool", "longdouble"])
def test_entries_come_in_any_form(form: str) -> None:
    new = (sparse(4, 40, 5).toarray() > 0) * 2.0
    given = sp.csr_array(new).asformat(form) if len(form) == 3 else new.astype(form)
    svd = EvolvingSVD(sparse(60, 40, 0), K)
    old = product(svd)
    svd.add_rows(given)
    truth = np.vstack([old, np.asarray(new.astype(form) if form == "bool" else new, float)])
    np.testing.assert_allclose(product(svd), best(truth), atol=1e-12)


def test_rounding_is_watched() -> None:
    """Once as many rows were touched as there are, factors that have become oblique are made orthonormal."""
    svd = EvolvingSVD(sparse(60, 40, 0), K)
    svd._right.room[:40] += 1e-6 * np.random.default_rng(0).standard_normal((40, K))
    assert svd.obliqueness > 1e-7
    for i in range(30):
        svd.add_rows(sparse(4, 40, i))
    assert svd.obliqueness < 1e-9


def test_an_update_and_its_inverse() -> None:
    svd = EvolvingSVD(low_rank(60, 40, K - 3), K)
    before = product(svd)
    left, right = sparse(60, 2, 1), sparse(40, 2, 2)
    svd.change(left, right)
    svd.change(-left, right)
    np.testing.assert_allclose(product(svd), before, atol=1e-10)


def test_values_never_exceed_those_of_the_whole_matrix_and_never_fall_when_rows_come() -> None:
    A = sparse(120, 50, 4)
    svd = EvolvingSVD(A[:60], K)
    for start in range(60, 120, 10):
        before = svd.singular_values
        svd.add_rows(A[start : start + 10])
        whole = np.linalg.svd(A[: start + 10].toarray(), compute_uv=False)[:K]
        assert (svd.singular_values <= whole + 1e-12).all()
        assert (svd.singular_values >= before - 1e-12).all()


def test_a_hundred_updates_stay_near_to_a_fit_of_all() -> None:
    rng = np.random.default_rng(0)
    A = sp.csr_array(low_rank(600, 80, 4, 9) * 3 + sparse(600, 80, 8, 0.05))
    svd = EvolvingSVD(A[:100], 12)
    for start in range(100, 600, 5):
        svd.add_rows(A[start : start + 5])
    values = np.linalg.svd(A.toarray(), compute_uv=False)
    np.testing.assert_allclose(svd.singular_values[:4], values[:4], rtol=1e-3)
    assert svd.obliqueness < 1e-8
    at = rng.integers(0, 600, 5)
    np.testing.assert_allclose(svd.rows(at), svd.left[at], atol=1e-13)
    svd.orthonormalise()
    assert svd.obliqueness < 1e-13


def test_an_old_part_that_vanishes_does_not_break_the_turn() -> None:
    svd = EvolvingSVD(sparse(50, 40, 0), K)
    for size in (1e3, 1e6, 1e9):  # each drowns all before: Ku, Kv become singular
        svd.add_rows(sparse(10, 40, int(size)) * size)
        assert svd.obliqueness < 1e-8


def test_fewer_directions_than_there_are() -> None:
    A = sparse(60, 40, 1)
    svd, whole = EvolvingSVD(A[:40], K, most=3), EvolvingSVD(A[:40], K)
    for one in (svd, whole):
        one.add_rows(A[40:])
    assert (svd.singular_values <= whole.singular_values + 1e-12).all()
    assert svd.singular_values[0] > 0.9 * whole.singular_values[0]


def test_wrong_shapes_and_entries_are_refused() -> None:
    svd = EvolvingSVD(sparse(30, 20, 0), K)
    wrong: list[Callable[[], Any]] = [
        lambda: svd.add_rows(sparse(2, 19, 0)),
        lambda: svd.add_columns(sparse(29, 2, 0)),
        lambda: svd.change(sparse(30, 2, 0), sparse(20, 3, 0)),
        lambda: svd.add_rows(sp.csr_array(np.full((1, 20), np.nan))),
        lambda: svd.change(sparse(30, 1, 0), np.full((20, 1), np.inf)),
        lambda: svd.add_rows(np.ones(20)),
        lambda: svd.add_rows(np.ones((1, 20), complex)),
        lambda: EvolvingSVD(sparse(30, 20, 0), 20),
        lambda: EvolvingSVD(sparse(30, 20, 0), 2.5),  # type: ignore[arg-type]
        lambda: EvolvingSVD(sparse(30, 20, 0), 2, most=-1),
        lambda: EvolvingSVD(np.full((30, 20), np.nan), 2),
    ]
    for act in wrong:
        with pytest.raises(InputError):
            act()
    assert svd.shape == (30, 20)
    assert svd.obliqueness < 1e-13
    svd.add_rows(sp.csr_array((0, 20)))
    svd.add_columns(sp.csr_array((30, 0)))
    svd.change(sp.csr_array((30, 0)), sp.csr_array((20, 0)))
    svd.change(sp.csr_array((30, 2)), np.ones((20, 2)))
    svd.add_rows(sp.csr_array((2, 20)))
    assert svd.shape == (32, 20)
