"""The laws of folds: combining is associative and commutative, and cutting changes nothing."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fold import ready
from pipeline.folds import ColumnProduct, Defects, RowMeans, RowMoments, RowProduct, Standard

RNG = np.random.default_rng(2)
X = RNG.standard_normal((24, 6)) * [5, 4, 3, 2, 1, 1] + 100
LENS = RNG.standard_normal((6, 3))
WEIGHTS = RNG.uniform(0.5, 2, 24)
F8 = np.dtype("f8")

MOMENTS = RowMoments(F8, RNG.standard_normal((6, 2)), None, WEIGHTS)
PRODUCT = RowProduct(F8, LENS, True, RNG.standard_normal((3, 2)), WEIGHTS)
DUAL = ColumnProduct(F8, Standard(scale="std"), RNG.standard_normal((24, 2)))


def moments(summary) -> tuple[np.ndarray, ...]:
    central = summary.centred()
    return np.array([central.about.n, central.rows]), central.about.mean, central.scatter


def products(summary) -> tuple[np.ndarray, ...]:
    central = summary.centred(LENS)
    return np.array([central.about.n]), central.about.mean, central.squares, central.product


def found(summary) -> tuple[np.ndarray, ...]:
    return np.array([summary.rows]), summary.nan, summary.bad, summary.first


FOLDS = {
    "moments": (MOMENTS, X, moments),
    "products": (PRODUCT, X, products),
    "dual": (DUAL, X, lambda s: (s.product, np.array([s.squares, s.energy, s.present]))),
    "means": (RowMeans(F8, WEIGHTS), np.where(RNG.random(X.shape) < 0.2, np.nan, X), lambda s: (s.weight, s.mean)),
    "defects": (Defects(F8), np.where(RNG.random(X.shape) < 0.1, np.inf, X), found),
}


def summarised(fold, x: np.ndarray, start: int, stop: int, held=None, scratch=None):
    part = x[start:stop] if fold.side == 0 else x[:, start:stop]
    scratch = {} if scratch is None else scratch
    x = ready(fold, part.copy(), (start, stop), scratch.get("first"))
    scratch.setdefault("first", x)
    return fold.block(x, (start, stop), held, scratch)


def same(a, b) -> None:
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", FOLDS)
def test_any_partition_in_any_order_gives_the_same(name: str, data) -> None:
    fold, x, read = FOLDS[name]
    length = x.shape[fold.side]
    inner = data.draw(st.lists(st.integers(1, length - 1), max_size=6, unique=True))
    cuts = [0, *sorted(inner), length]
    parts = [summarised(fold, x, a, b) for a, b in pairwise(cuts)]
    order = data.draw(st.permutations(range(len(parts))))
    whole = read(summarised(fold, x, 0, length))
    same(read(reduce(fold.combine, parts)), whole)
    same(read(reduce(fold.combine, [parts[i] for i in order])), whole)
    same(read(reduce(lambda a, b: fold.combine(b, a), parts)), whole)


@pytest.mark.parametrize("name", FOLDS)
def test_a_task_that_adds_block_to_block_gives_the_same(name: str) -> None:
    fold, x, read = FOLDS[name]
    length, held, scratch = x.shape[fold.side], None, {}
    for start in range(0, length, 4):
        held = summarised(fold, x, start, min(start + 4, length), held, scratch)
    same(read(held), read(summarised(fold, x, 0, length)))


@pytest.mark.parametrize("name", FOLDS)
def test_combining_changes_neither_summary(name: str) -> None:
    fold, x, read = FOLDS[name]
    half = x.shape[fold.side] // 2
    a, b = summarised(fold, x, 0, half), summarised(fold, x, half, x.shape[fold.side])
    before = [np.copy(v) for s in (a, b) for v in read(s)]
    fold.combine(a, b)
    same([v for s in (a, b) for v in read(s)], before)


def test_the_moments_are_those_of_numpy() -> None:
    n, mean, scatter = moments(summarised(MOMENTS, X, 0, 24))
    np.testing.assert_allclose(n, [WEIGHTS.sum(), 24])
    np.testing.assert_allclose(mean, np.average(X, axis=0, weights=WEIGHTS))
    np.testing.assert_allclose(scatter, np.cov(X.T, aweights=WEIGHTS, ddof=0) * WEIGHTS.sum(), rtol=1e-9)
    np.testing.assert_allclose(products(summarised(PRODUCT, X, 0, 24))[3], (scatter @ LENS).T, rtol=1e-9)
