"""Aggregations of subspaces and flags: exact where they must be, honest elsewhere, and what liars can do to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA as Reference

from pipeline import PCA, Flag, Subspace, aggregate
from pipeline.errors import InputError
from pipeline.federation import AGGREGATIONS
from tests.problems import exact

MEANS = ("flag_mean", "merge", "procrustes", "projector_mean")
ROBUST = ("flag_median", "geometric_median", "trimmed")
D, K, SITES = 60, 3, 20
BASIS = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))[0]


def sine(a: Subspace, rows: np.ndarray) -> float:
    span = Subspace(rows, np.ones(len(rows)), np.zeros(len(rows.T)), 1, 1.0, np.zeros(len(rows)), np.zeros(len(rows)))
    return float(np.sin(a.distance(span).max()))


@cache
def iid_sites() -> tuple[np.ndarray, tuple[Subspace, ...]]:
    """All rows, and the subspaces of 20 sites of 200 rows each with variances 9, 6, 4, 1, …, 1."""
    rng, spread = np.random.default_rng(0), np.ones(D)
    spread[:K] = [9, 6, 4]
    parts = [(rng.standard_normal((200, D)) * np.sqrt(spread)) @ BASIS.T for _ in range(SITES)]
    return np.concatenate(parts), tuple(PCA(K).fit(p).subspace_ for p in parts)


@example(cuts=[1, 2], seed=0)
@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 99), min_size=1, max_size=6, unique=True), seed=st.integers(0, 99))
def test_merge_is_pca_of_all_rows_for_any_partition(cuts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((100, 7)) * np.geomspace(5, 0.2, 7) + rng.standard_normal(7) * 10
    x[:50] += 3
    edges = [0, *sorted(cuts), 100]
    none = PCA(7).fit(x).subspace_.truncate(1)
    parts = [none.of_rows(x[a:b]) for a, b in pairwise(edges)]
    found, truth = aggregate(parts, n_components=4), Reference(4).fit(x)
    assert sine(found, truth.components_) < 1e-9
    np.testing.assert_allclose(found.mean, truth.mean_, rtol=1e-12)
    np.testing.assert_allclose(found.explained_variance, truth.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(found.explained_variance_ratio, truth.explained_variance_ratio_, rtol=1e-10)
    assert found.n_samples == 100
    assert found.angle_bound < 1e-8
    if len(parts) > 2:  # associative where nothing is cut
        pair = aggregate(parts[:2], n_components=min(7, edges[2] + 1))  # as many as it has room for
        left = aggregate([pair, *parts[2:]], n_components=4)
        assert left.distance(found).max() < 1e-8


@settings(max_examples=25, deadline=None)
@given(m=st.integers(2, 5), k=st.integers(1, 4), seed=st.integers(0, 999), method=st.sampled_from(sorted(AGGREGATIONS)))
def test_no_bound_is_below_the_truth(m: int, k: int, seed: int, method: str) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((90, 8)) * np.geomspace(10, rng.choice([1e-4, 0.01, 1.0]), 8) + rng.standard_normal(8)
    parts = [PCA(min(6, k + 2)).fit(p).subspace_ for p in np.array_split(x, m)]
    found, truth = aggregate(parts, method, k), exact(x)
    for j in range(1, k + 1):
        assert truth.angle(found.components[:j]) <= np.sin(found.angle_bounds[j - 1]) + 1e-10
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(k), atol=1e-12)


@pytest.mark.parametrize("method", sorted(AGGREGATIONS))
def test_one_and_equal_members_are_what_they_are(method: str) -> None:
    one = iid_sites()[1][0]
    for many in ([one], [one] * 4):
        found = aggregate(many, method)
        assert found.distance(one).max() < 1e-7
        np.testing.assert_allclose(found.explained_variance_ratio, one.explained_variance_ratio, rtol=0.01)


@pytest.mark.parametrize("method", sorted(AGGREGATIONS))
def test_sites_alike_come_near_to_pooling(method: str) -> None:
    rows, sites = iid_sites()
    found, single = aggregate(sites, method), sine(sites[0], BASIS[:, :K].T)
    pooled = sine(PCA(K).fit(rows).subspace_, BASIS[:, :K].T)
    assert sine(found, BASIS[:, :K].T) < 1.5 * pooled < single
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((K, K)))[0]
    # Only spans count: a basis that is turned in its own span changes nothing but 'merge', which takes variances too.
    if method != "merge":
        turned = aggregate([replace(s, components=turn @ s.components) for s in sites], method)
        assert turned.distance(found).max() < 1e-5


def test_members_count_by_their_samples() -> None:
    a, b = (Subspace(np.eye(4)[[i]], np.ones(1), np.zeros(4), n, 1.0, *[np.zeros(1)] * 2) for i, n in ((0, 9), (1, 1)))
    for method in set(AGGREGATIONS) - {"merge"}:
        assert aggregate([a, b], method).components[0, 0] ** 2 > 0.89
    assert aggregate([replace(a, n_samples=1), replace(b, n_samples=9)], "projector_mean").components[0, 1] > 0.99


def liars(kind: str, share: float, angle: float) -> list[Subspace]:
    rng, sites = np.random.default_rng(1), list(iid_sites()[1])
    truth, wrong = BASIS[:, :K].T, np.linalg.qr(rng.standard_normal((D, K)))[0].T
    aside = wrong - wrong @ truth.T @ truth
    aside = np.linalg.qr(aside.T)[0].T
    says: dict[str, Callable[[], np.ndarray]] = {
        "random": lambda: np.linalg.qr(rng.standard_normal((D, K)))[0].T,
        "coordinated": lambda: wrong,
        "rotated": lambda: np.cos(angle) * truth + np.sin(angle) * aside,
    }
    for j in range(round(share * SITES)):
        sites[j] = replace(sites[j], components=says[kind]())
    return sites


LIES = [("random", 0.0), ("coordinated", 0.0), ("rotated", 0.2), ("rotated", 0.5), ("rotated", 1.0)]


@pytest.mark.parametrize(("kind", "angle"), LIES)
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_liars_do_not_move_robust_averages(kind: str, angle: float, share: float) -> None:
    truth, told = BASIS[:, :K].T, liars(kind, share, angle)
    for method, factor in (("trimmed", 2), ("flag_median", 3), ("geometric_median", 3)):
        honest = sine(aggregate(iid_sites()[1], method), truth)
        found = aggregate(told, method)
        assert sine(found, truth) < factor * honest
        assert found.angle_bound == np.pi / 2


@pytest.mark.parametrize(("d", "k", "angle"), [(40, 5, 0.05), (20, 1, 0.1)])
def test_medians_come_to_rest_near_liars_who_agree(d: int, k: int, angle: float) -> None:
    """Six of twenty say the same, nearer to the truth than one honest site: plain steps become ever shorter."""
    rng, spread = np.random.default_rng(2 if k == 5 else 5), np.ones(d)
    spread[:k] = np.linspace(12, 3, k) if k > 1 else 3
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    sites = [PCA(k).fit(rng.standard_normal((100 * k, d)) * np.sqrt(spread) @ basis.T).subspace_ for _ in range(20)]
    truth, aside = basis[:, :k].T, basis[:, k : 2 * k].T
    lie = np.cos(angle) * truth + np.sin(angle) * aside
    told = [replace(s, components=lie) if j < 6 else s for j, s in enumerate(sites)]
    for method in ROBUST:
        found = aggregate(told, method)
        assert sine(found, truth) < 2 * sine(aggregate(sites, method), truth)
        assert int(found.provenance["steps"]) < 300  # type: ignore[call-overload]


@pytest.mark.parametrize("method", MEANS)
def test_liars_move_means(method: str) -> None:
    truth = BASIS[:, :K].T
    assert sine(aggregate(liars("coordinated", 0.3, 0), method), truth) > 3 * sine(
        aggregate(iid_sites()[1], method), truth
    )


def test_a_liar_has_no_say_in_means_and_variances() -> None:
    sites = liars("coordinated", 0.2, 0)
    sites[:4] = [
        replace(s, mean=s.mean + 1e6, total_variance=1e9, singular_values=s.singular_values * 1e3) for s in sites[:4]
    ]
    for method in ROBUST:
        found = aggregate(sites, method)
        assert np.abs(found.mean).max() < 1
        assert found.explained_variance[0] < 20


def flag(rng: np.random.Generator, d: int = 10, kind: tuple[int, ...] = (1, 3)) -> Flag:
    return Flag(kind, np.linalg.qr(rng.standard_normal((d, kind[-1])))[0].T)


def near(center: Flag, noise: float, rng: np.random.Generator) -> Flag:
    rows = center.components + noise * rng.standard_normal(center.components.shape)
    q, r = np.linalg.qr(rows.T)
    return Flag(center.type, (q * np.sign(np.diag(r))).T)


def test_chordal_distance_of_flags() -> None:
    rng = np.random.default_rng(0)
    a, b = flag(rng, kind=(1, 3, 5)), flag(rng, kind=(1, 3, 5))
    by_hand = sum(len(x) - np.trace(x @ y.T @ y @ x.T) for x, y in zip(a.blocks, b.blocks, strict=True))
    assert a.distance(b) == pytest.approx(np.sqrt(by_hand))
    assert a.distance(b) == pytest.approx(b.distance(a))
    assert a.distance(a) < 1e-12
    turned = [np.linalg.qr(rng.standard_normal((len(x), len(x))))[0] @ x for x in a.blocks]
    assert Flag(a.type, np.concatenate(turned)).distance(a) < 1e-12
    s = iid_sites()[1][0]
    assert s.flag((1, 3)).blocks[1].shape == (2, D)
    assert s.flag((3,)).distance(iid_sites()[1][1].flag((3,))) == pytest.approx(
        np.linalg.norm(np.sin(s.distance(iid_sites()[1][1])))
    )
    for wrong in ((), (0, 1), (2, 1), (1, 4), "ab", (1, 1), (True,)):
        with pytest.raises(InputError, match="flag type"):
            s.flag(wrong)


def test_flag_averages() -> None:
    rng = np.random.default_rng(0)
    center = flag(rng)
    some = [near(center, 0.05, rng) for _ in range(30)]
    mean, median = Flag.mean(some), Flag.median(some)
    assert max(mean.distance(center), median.distance(center)) < 2 * 0.05 * np.sqrt(17 / 30)  # noise over the tangent
    cost = sum(f.distance(mean) ** 2 for f in some)
    total = sum(f.distance(median) for f in some)
    for _ in range(50):  # nothing near is better
        other = near(mean, 0.01, rng)
        assert sum(f.distance(other) ** 2 for f in some) > cost
        other = near(median, 0.01, rng)
        assert sum(f.distance(other) for f in some) > total
    for average in (Flag.mean, Flag.median):
        assert average([center]).distance(center) < 1e-9
        assert average([center] * 5).distance(center) < 1e-6
        assert average([center, some[0]], weights=[1, 0]).distance(center) < 1e-6
        turned = [
            Flag(f.type, np.concatenate([np.linalg.qr(rng.standard_normal((len(x), len(x))))[0] @ x for x in f.blocks]))
            for f in some
        ]
        assert average(turned).distance(average(some)) < 1e-5
    lines = [Flag((3,), f.components) for f in some]
    projectors = sum(f.components.T @ f.components for f in lines)
    top = np.linalg.eigh(projectors)[1][:, -3:].T
    assert Flag.mean(lines).distance(Flag((3,), top)) < 1e-9


@pytest.mark.parametrize("outliers", [5, 10, 19])
def test_flag_medians_withstand_outliers_better_than_means(outliers: int) -> None:
    """The synthetic experiment of Mankovich and Birdal (2023): Fl(1, 3; 10), 100 flags, up to 19 of them outliers."""
    rng = np.random.default_rng(outliers)
    center, wrong = flag(rng), flag(rng)
    told = [near(wrong if j < outliers else center, 0.001, rng) for j in range(100)]
    median, mean = Flag.median(told).distance(center), Flag.mean(told).distance(center)
    middle = np.linalg.svd(sum(f.components for f in told), full_matrices=False)
    euclid = Flag((1, 3), middle[0] @ middle[2]).distance(center)
    assert median < mean < euclid
    assert median < 0.01


def test_wrong_input_is_told() -> None:
    one, two = iid_sites()[1][:2]
    cases: list[tuple[object, dict[str, object], str]] = [
        ([], {}, "no subspaces"),
        ([one, "x"], {}, "subspace 1"),
        ([one, PCA(2).fit(np.random.default_rng(0).normal(size=(9, 5))).subspace_], {}, "features"),
        ([one, two], {"method": "mode"}, "'merge'"),
        ([one, two], {"n_components": 0}, "n_components"),
        ([one, two], {"n_components": 8}, "more than"),
        ([one, two], {"method": "procrustes", "n_components": 4}, "more than"),
        ([one, two], {"method": "trimmed", "trim": 0.6}, "trim"),
        ([one, two], {"method": "flag_mean", "flag_type": (2, 2)}, "flag type"),
        ([one, two], {"method": "merge", "wish": 1}, "'merge' has no option 'wish': it has none"),
        ([one, two], {"method": "trimmed", "trim": "half"}, "trim='half'"),
        ([one, two], {"method": "procrustes", "refinements": -1}, "refinements"),
        ([one, replace(two, components=two.components * np.nan)], {}, "NaN"),
        ([one, replace(two, n_samples=0)], {}, "0 samples"),
        ([one, replace(two, scale=np.ones(D))], {}, "scale"),
    ]
    for subspaces, options, message in cases:
        with pytest.raises(InputError, match=message):
            aggregate(subspaces, **options)  # type: ignore[arg-type]


def test_single_precision_stays_and_is_in_the_bound() -> None:
    x = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32) * np.float32([9, 5, 3, 1, 1, 1])
    parts = [PCA(6).fit(p).subspace_ for p in np.array_split(x, 3)]
    found = aggregate(parts, n_components=2)
    assert found.components.dtype == np.float32
    assert exact(x).angle(found.components) <= np.sin(found.angle_bound) < 1e-4
