"""Updating is fitting on what there is now: rows added, taken away, forgotten, features added, weights changed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.jobs.update as updating
from pipeline import PCA, Subspace, TruncatedSVD
from pipeline.cli import main
from pipeline.errors import ConflictError, InputError
from pipeline.jobs.update import update_model
from pipeline.matrix import Matrix
from pipeline.store import history, load
from tests.problems import exact

RNG = np.random.default_rng(3)
N, D, R = 90, 12, 4
LOW = RNG.standard_normal((N, R)) @ RNG.standard_normal((R, D)) * 3 + 5  # of rank 4: everything is kept


def fit(x: np.ndarray, k: int = R, **options: Any) -> Subspace:
    kind = options.pop("kind", PCA)
    return kind(n_components=k, **options).fit(x).subspace_


def same(a: Subspace, b: Subspace, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(a.singular_values, b.singular_values, rtol=rtol)
    assert a.distance(b).max() < max(1e-7, 10 * rtol)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-9)
    assert a.n_samples == pytest.approx(b.n_samples)
    assert a.total_variance == pytest.approx(b.total_variance, rel=1e-9)


@pytest.mark.parametrize("kind", [PCA, TruncatedSVD])
def test_rows_come_and_go(kind: Any) -> None:
    k = R + (kind is TruncatedSVD)
    S, whole = fit(LOW[:50], k, kind=kind), fit(LOW, k, kind=kind)
    grown = S.update(LOW[50:])
    same(grown, whole)
    same(S.update(scipy.sparse.csr_array(LOW[50:])), whole)
    same(grown.downdate(LOW[50:]), S, 1e-6)
    same(grown.downdate(LOW[:20]), fit(LOW[20:], k, kind=kind), 1e-6)
    one_by_one = grown
    for row in LOW[80:]:
        one_by_one = one_by_one.downdate(row)
    same(one_by_one, fit(LOW[:80], k, kind=kind), 1e-5)


def test_what_cannot_be_taken_away() -> None:
    S = fit(LOW)
    with pytest.raises(InputError, match="at least one must stay"):
        S.downdate(LOW)
    with pytest.raises(InputError, match="cannot have been among the samples"):
        S.downdate(1e3 * RNG.standard_normal((3, D)))
    for weights in ([1.0], [-1.0, 1.0], [np.nan, 1.0]):
        with pytest.raises(InputError, match="sample_weights"):
            S.update(LOW[:2], sample_weights=np.array(weights))
    for forget in (0, 1.5, -1, "x"):
        with pytest.raises(InputError, match="forget"):
            S.update(LOW[:2], forget=forget)
    with pytest.raises(InputError, match="align"):
        S.update(LOW[:2], align="sideways")


def test_weights_of_samples_change() -> None:
    w = RNG.uniform(0.5, 2, N)
    from pipeline import open_matrix

    S = fit(open_matrix(LOW, sample_weights=w))
    same(
        fit(LOW[:40]).update(LOW[40:], sample_weights=w[40:]),
        fit(open_matrix(LOW, sample_weights=np.r_[np.ones(40), w[40:]])),
    )
    doubled = S.update(LOW[:10], sample_weights=w[:10])
    same(doubled, fit(open_matrix(LOW, sample_weights=np.r_[2 * w[:10], w[10:]])))
    same(doubled.downdate(LOW[:10], sample_weights=2 * w[:10]), fit(open_matrix(LOW[10:], sample_weights=w[10:])), 1e-6)


def test_old_samples_are_forgotten_exponentially() -> None:
    from pipeline import open_matrix

    S = fit(LOW[:30])
    for start in (30, 50, 70):
        S = S.update(LOW[start : start + 20], forget=0.5)
    w = np.r_[np.full(30, 0.125), np.full(20, 0.25), np.full(20, 0.5), np.ones(20)]
    same(S, fit(open_matrix(LOW, sample_weights=w)))


@pytest.mark.parametrize("kind", [PCA, TruncatedSVD])
def test_features_come(kind: Any) -> None:
    k = R + (kind is TruncatedSVD)
    S = fit(LOW[:, :8], k, kind=kind)
    same(S.extend(LOW[:, 8:], S.project(LOW[:, :8])), fit(LOW, k, kind=kind))
    with pytest.raises(InputError, match="90 samples"):
        S.extend(LOW[:5, 8:], S.project(LOW[:5, :8]))


def test_weights_of_features_change() -> None:
    from pipeline import open_matrix

    a, b = RNG.uniform(0.5, 2, D), RNG.uniform(0, 2, D)
    S = fit(open_matrix(LOW, weights=a))
    same(S.reweigh(b), fit(open_matrix(LOW, weights=b)))
    same(fit(LOW, R + 1, kind=TruncatedSVD).reweigh(b), fit(open_matrix(LOW, weights=b), R + 1, kind=TruncatedSVD))
    with pytest.raises(InputError, match="left no trace"):
        S.reweigh(np.zeros(D)).reweigh(a)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 5), act=st.sampled_from(["update", "downdate", "reweigh", "extend"]))
def test_no_certificate_is_below_the_truth(seed: int, k: int, act: str) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((70, 10)) * np.geomspace(10, rng.choice([1e-4, 0.01, 0.3]), 10) + 2
    if act == "update":
        found, truth = fit(x[:40], k).update(x[40:]), exact(x)
    elif act == "downdate":
        found, truth = fit(x, k).downdate(x[:20]), exact(x[20:])
    elif act == "reweigh":
        w = rng.uniform(0.5, 1.5, 10)
        found, truth = fit(x, k).reweigh(w), exact(x, weights=w)
    else:
        S = fit(x[:, :7], k)
        found, truth = S.extend(x[:, 7:], S.project(x[:, :7])), exact(x)
    for j in range(1, found.k + 1):
        assert truth.angle(found.components[:j]) <= np.sin(found.angle_bounds[j - 1]) + 1e-7


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 4), step=st.integers(1, 20))
def test_the_certificate_of_a_long_chain_is_honest_and_says_something(seed: int, k: int, step: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((120, 10)) * np.r_[np.geomspace(40, 10, k), np.full(10 - k, 0.3)] + 2
    found = fit(x[:40], k)
    for start in range(40, 120, step):
        found = found.update(x[start : start + step])
    truth = exact(x)
    for j in range(1, k + 1):
        assert truth.angle(found.components[:j]) <= np.sin(found.angle_bounds[j - 1]) + 1e-9
    assert np.sin(found.angle_bound) < 0.2


def test_aligned_versions_mean_the_same_and_go_on_exactly() -> None:
    S = fit(LOW[:40])
    turned = S.update(LOW[40:70], align="procrustes")
    plain = S.update(LOW[40:70])
    drift = np.abs(turned.project(LOW[:40]) - S.project(LOW[:40])).sum()
    assert drift <= np.abs(plain.project(LOW[:40]) - S.project(LOW[:40])).sum()
    np.testing.assert_allclose(np.linalg.norm(turned.project(LOW[:70]), axis=0), turned.singular_values, rtol=1e-9)
    same(turned.principal, plain)
    same(turned.update(LOW[70:]), fit(LOW))
    again = turned.update(LOW[70:], align="procrustes")
    same(again.principal, fit(LOW))
    assert again.align(S).distance(again).max() < 1e-7


def test_a_turned_model_is_stored_as_it_is(tmp_path: Path) -> None:
    S = fit(LOW[:40])
    turned = S.update(LOW[40:], align="procrustes")
    turned.save(tmp_path / "m.zarr")
    assert load(tmp_path / "m.zarr") == turned
    same(load(tmp_path / "m.zarr").principal, fit(LOW))


# A store that grows --------------------------------------------------------------------------------------------------

SHAPE = (40, D)


@pytest.fixture
def grown(tmp_path: Path) -> Any:
    """A source that grows by ten rows whenever it is told to, and the model that follows it."""

    class Grown:
        path, model = str(tmp_path / "x.zarr"), str(tmp_path / "m.zarr")
        rows = 40

        def __init__(self) -> None:
            zarr.create_array(self.path, shape=(40, D), chunks=(10, D), dtype="f8")[...] = LOW[:40]

        def grow(self, by: int = 10) -> None:
            array = zarr.open_array(self.path, mode="r+")
            array.resize((self.rows + by, D))
            array[self.rows :] = LOW[self.rows : self.rows + by]
            self.rows += by

        def run(self, *words: str, code: int = 0) -> str:
            result = CliRunner().invoke(main, ["--quiet", *words])
            assert result.exit_code == code, result.output
            return result.output

    return Grown()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, int]]:
    """Which rows are read, and how often."""
    seen: Counter[tuple[int, int]] = Counter()
    real = Matrix.read_range

    def counted(matrix: Matrix, start: int, stop: int, out: Any = None) -> np.ndarray:
        shift = getattr(matrix.source, "start", 0)
        seen[start + shift, stop + shift] += 1
        return real(matrix, start, stop, out)

    monkeypatch.setattr(Matrix, "read_range", counted)
    return seen


def test_a_growing_store_is_followed(grown: Any, reads: Counter[tuple[int, int]]) -> None:
    grown.run("fit", grown.path, "-n", str(R), "--out", grown.model)
    for step in (10, 15, 25):
        grown.grow(step)
        reads.clear()
        grown.run("update", grown.model, grown.path)
        assert sum(b - a for a, b in reads) == step
        assert set(reads.values()) == {1}
        reads.clear()
        grown.run("update", grown.model, grown.path)
        assert not reads
    assert len(history(grown.model).versions) == 4
    same(load(grown.model), fit(LOW))
    told = json.loads(grown.run("log", grown.model, "--json"))
    assert [(v["kind"], v["parent"]) for v in told] == [("update", 3), ("update", 2), ("update", 1), ("fit", None)]
    assert len({v["content"] for v in told}) == 4


def test_the_same_batch_twice_is_one_version(grown: Any, tmp_path: Path) -> None:
    grown.run("fit", grown.path, "-n", str(R), "--out", grown.model)
    for name in ("a.zarr", "b.zarr"):
        zarr.create_array(tmp_path / name, shape=(50, D), chunks=(7, 5), dtype="f8")[...] = LOW[40:]
        grown.run("update", grown.model, str(tmp_path / name))
        grown.run("update", grown.model, str(tmp_path / name))
    assert len(history(grown.model).versions) == 2
    same(load(grown.model), fit(LOW))
    grown.run("update", grown.model, str(tmp_path / "b.zarr"), "--remove")
    same(load(grown.model), fit(LOW[:40]), 1e-6)
    grown.run("update", grown.model, str(tmp_path / "b.zarr"), "--remove", code=2)
    removal = json.loads(grown.run("log", grown.model, "--json"))
    assert [v["content"] for v in removal[:2]] == [removal[1]["content"]] * 2
    assert removal[0]["provenance"]["change"]["rows"] == -50
    grown.run("update", grown.model, str(tmp_path / "b.zarr"))
    assert load(grown.model).n_samples == N
    grown.run("update", grown.model, grown.path)
    assert len(history(grown.model).versions) == 4


def test_a_copy_that_has_grown_is_known_by_its_content(grown: Any, tmp_path: Path) -> None:
    grown.run("fit", grown.path, "-n", str(R), "--out", grown.model)
    zarr.create_array(tmp_path / "copy.zarr", shape=LOW.shape, chunks=(9, 9), dtype="f8")[...] = LOW
    grown.run("update", grown.model, str(tmp_path / "copy.zarr"))
    same(load(grown.model), fit(LOW))
    grown.run("update", grown.model, str(tmp_path / "copy.zarr"))
    assert load(grown.model).n_samples == N


def test_rows_that_changed_are_not_followed(grown: Any) -> None:
    grown.run("fit", grown.path, "-n", str(R), "--out", grown.model)
    grown.grow()
    for _ in range(2):
        grown.grow()
        array = zarr.open_array(grown.path, mode="r+")
        array[5], array[45] = LOW[5], LOW[45]  # written again, and the same: known by what they hold
        grown.run("update", grown.model, grown.path)
    assert load(grown.model).n_samples == 70
    grown.grow()
    array = zarr.open_array(grown.path, mode="r+")
    array[45] = 0.0
    assert "no longer those" in grown.run("update", grown.model, grown.path, code=2)
    array.resize((20, D))
    assert "cannot vanish" in grown.run("update", grown.model, grown.path, code=2)
    assert len(history(grown.model).versions) == 3


def test_rolled_back_rows_are_new_again(grown: Any) -> None:
    grown.run("fit", grown.path, "-n", str(R), "--out", grown.model)
    grown.grow(50)
    grown.run("update", grown.model, grown.path)
    grown.run("rollback", grown.model, "1")
    grown.run("update", grown.model, grown.path, "--align", "procrustes", "--forget", "0.9")
    S = load(grown.model)
    assert S.n_samples == pytest.approx(0.9 * 40 + 50)
    assert S.turn is not None
    assert [v.number for v in history(grown.model).versions] == [1, 2, 3]


def test_an_update_that_comes_late_is_refused(grown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    grown.run("fit", grown.path, "-n", str(R), "--out", grown.model)
    grown.grow(50)
    real, asleep = updating._summary, [True]

    def slow(*given: Any) -> Any:
        if asleep:
            asleep.clear()
            update_model(grown.model, grown.path)  # the run that took its place
        return real(*given)

    monkeypatch.setattr(updating, "_summary", slow)
    with pytest.raises(ConflictError):
        update_model(grown.model, grown.path)
    assert load(grown.model).n_samples == N
    assert not update_model(grown.model, grown.path).rows


def test_what_does_not_fit_the_model(grown: Any, tmp_path: Path) -> None:
    grown.run("fit", grown.path, "-n", str(R), "--out", grown.model)
    zarr.create_array(tmp_path / "narrow.zarr", data=LOW[:, :5])
    assert "features" in grown.run("update", grown.model, str(tmp_path / "narrow.zarr"), code=2)
    bad = LOW.copy()
    bad[3, 2] = np.nan
    zarr.create_array(tmp_path / "bad.zarr", data=bad)
    assert "row 3" in grown.run("update", grown.model, str(tmp_path / "bad.zarr"), code=2)
    assert "does not exist" in grown.run("update", grown.model, str(tmp_path / "nothing.zarr"), code=2)
    assert "does not exist" in grown.run("update", str(tmp_path / "no model"), grown.path, code=2)
    again = ("update", grown.model, str(tmp_path / "bad.zarr"))
    assert "forget=0.0" in grown.run(*again, "--forget", "0", code=2)
    assert "not both" in grown.run(*again, "--forget", "0.5", "--remove", code=2)
    grown.run("fit", grown.path, "-n", "2", "--robust", "spherical", "--out", str(tmp_path / "r.zarr"))
    assert "robust fit" in grown.run("update", str(tmp_path / "r.zarr"), str(tmp_path / "narrow.zarr"), code=2)
    assert "exists already" in grown.run(*again, "--out", str(tmp_path / "narrow.zarr"), code=2)
    assert len(history(grown.model).versions) == 1


def test_partial_fit_counts_every_batch() -> None:
    pca = PCA(R)
    for start in range(0, N, 30):
        pca.partial_fit(LOW[start : start + 30])
    same(pca.subspace_, fit(LOW))
