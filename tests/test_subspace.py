"""The algebra of subspaces: merging is fitting on both, updating is fitting on all, and no bound is below the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import PCA, Subspace, TruncatedSVD
from pipeline.errors import InputError
from tests.problems import exact

RNG = np.random.default_rng(5)
X = RNG.standard_normal((80, 12)) * np.geomspace(6, 0.5, 12) + 4


def fit(x: np.ndarray, k: int | None = None, **options: object) -> Subspace:
    return PCA(k, **options).fit(x).subspace_


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(2, 78), kind=st.sampled_from([PCA, TruncatedSVD]))
def test_merging_full_subspaces_is_fitting_on_both(cut: int, kind) -> None:
    whole = kind(n_components=None).fit(X).subspace_
    a, b = (kind(n_components=None).fit(x).subspace_ for x in (X[:cut], X[cut:]))
    for merged in (a.merge(b), b.merge(a)):
        np.testing.assert_allclose(merged.singular_values, whole.singular_values, rtol=1e-10)
        np.testing.assert_allclose(np.abs(np.sum(merged.components * whole.components, axis=1)), 1, rtol=1e-8)
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        assert merged.n_samples == 80
        assert merged.total_variance == pytest.approx(whole.total_variance)
        np.testing.assert_allclose(merged.explained_variance_ratio, whole.explained_variance_ratio, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(5, 75), k=st.integers(1, 5), seed=st.integers(0, 999))
def test_a_truncated_merge_is_certified_honestly(cut: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((80, 10)) * np.geomspace(10, rng.choice([0.001, 0.1, 1.0]), 10)
    merged, truth = fit(x[:cut], k).merge(fit(x[cut:], k)), exact(x)
    for j in range(1, merged.k + 1):
        assert truth.angle(merged.components[:j]) <= np.sin(merged.angle_bounds[j - 1]) + 1e-10


def test_updates_of_any_height_end_at_the_fit_on_all() -> None:
    found = fit(X[:20])
    for a, b in ((20, 21), (21, 50), (50, 80)):
        found = found.update(X[a:b])
    whole = fit(X)
    np.testing.assert_allclose(found.singular_values, whole.singular_values, rtol=1e-10)
    assert found.distance(whole).max() < 1e-6
    with pytest.raises(InputError, match="features"):
        found.update(X[:, :5])
    with pytest.raises(InputError, match="NaN"):
        found.update(np.full((1, 12), np.nan))


def test_distance_is_symmetric_and_sees_small_and_right_angles() -> None:
    a = fit(X, 3)
    assert a.distance(a).max() < 1e-12
    turned = fit(X @ np.linalg.qr(RNG.standard_normal((12, 12)))[0], 3)
    np.testing.assert_allclose(a.distance(turned), turned.distance(a), atol=1e-12)
    small = np.eye(12)
    small[:2, :2] = [[np.cos(1e-9), -np.sin(1e-9)], [np.sin(1e-9), np.cos(1e-9)]]
    e = fit(np.diag(np.arange(24.0, 12, -1)) * 1.0, 12)
    one = Subspace(np.eye(12)[:1], *([np.ones(1)] * 1), np.zeros(12), 5, 1.0, np.zeros(1), np.zeros(1))
    other = Subspace(small[:1], np.ones(1), np.zeros(12), 5, 1.0, np.zeros(1), np.zeros(1))
    np.testing.assert_allclose(one.distance(other), [1e-9], rtol=1e-6)
    assert e.k == 12
    with pytest.raises(InputError, match="features"):
        a.distance(fit(X[:, :5], 2))


def test_alignment_turns_components_and_keeps_the_span() -> None:
    a = fit(X, 3)
    turn = np.linalg.qr(RNG.standard_normal((3, 3)))[0]
    other = Subspace(turn @ a.components, a.singular_values, a.mean, 80, a.total_variance, np.zeros(3), np.zeros(3))
    aligned = a.align(other)
    np.testing.assert_allclose(aligned.components, other.components, atol=1e-12)
    assert aligned.distance(a).max() < 1e-7
    scores = aligned.project(X)
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0), aligned.singular_values, rtol=1e-10)


def test_projecting_and_reconstructing() -> None:
    full = fit(X)
    np.testing.assert_allclose(full.reconstruct(full.project(X)), X, atol=1e-10)
    some = full.truncate(4)
    scores = some.project(X)
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0), some.singular_values, rtol=1e-9)
    np.testing.assert_allclose(some.project(some.reconstruct(scores)), scores, atol=1e-9)
    assert some.project(X.astype(np.float32)).dtype == np.float32
    assert some.unexplained_variance == pytest.approx(np.var(X - some.reconstruct(scores), axis=0, ddof=1).sum())
    for k in (0, 5):
        with pytest.raises(InputError, match="keep"):
            some.truncate(k)


def test_what_differs_cannot_be_merged() -> None:
    a = fit(X, 3)
    for other in (fit(X, 3, scale="std"), fit(X, 3, center=False)):
        with pytest.raises(InputError, match="cannot merge"):
            a.merge(other)


def test_equality_is_bit_for_bit() -> None:
    a, b = fit(X, 3), fit(X.copy(), 3)
    assert a.truncate(3) == a
    assert a.components.tobytes() == b.components.tobytes()
    assert a != fit(X * (1 + 1e-15), 3)
    assert a != "a subspace"
