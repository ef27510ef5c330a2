"""Federations in one process: the answer of all rows together, what it costs, and what faulty sites can do."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pipeline import DP, PCA, FederatedPCA, Site, open_matrix
from pipeline.errors import FederationError, InputError
from pipeline.federation import AGGREGATIONS, METHODS
from pipeline.federation.record import Record, pack, unpack
from pipeline.kernels.linalg import principal_angles

D, K = 20, 3
RNG = np.random.default_rng(0)
X = RNG.standard_normal((1500, D)) * np.geomspace(5, 0.5, D) @ np.linalg.qr(RNG.standard_normal((D, D)))[0] + 30
SORTED = X[np.argsort(X[:, 0])]
SPLITS = {
    "alike": np.array_split(X, 10),
    "sorted": np.array_split(SORTED, 10),
    "unequal": np.split(SORTED, [5, 25, 100, 900]),
    "tiny": [SORTED[:1], SORTED[1:3], SORTED[3:]],
    "one": [X],
}


def sine(found: FederatedPCA, reference: PCA | FederatedPCA) -> float:
    return float(np.sin(found.subspace_.distance(reference.subspace_)[0]))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": "std"}])
def test_power_reaches_the_pooled_answer(split: str, options: dict[str, Any]) -> None:
    parts = SPLITS[split]
    found, pooled = FederatedPCA(K, **options).fit(parts), PCA(K, **options).fit(np.concatenate(parts))
    assert sine(found, pooled) < 1e-6
    assert sine(found, pooled) <= np.sin(found.subspace_.angle_bound) + 1e-12
    for name in ("singular_values_", "explained_variance_", "explained_variance_ratio_", "mean_"):
        np.testing.assert_allclose(getattr(found, name), getattr(pooled, name), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.abs(found.transform(X[:5])), np.abs(pooled.transform(X[:5])), rtol=1e-5, atol=1e-6)
    assert found.n_samples_ == sum(map(len, parts))
    assert found.excluded_ == {}


def test_a_hundred_sites_and_site_local_standards() -> None:
    parts = np.array_split(SORTED, 100)
    assert sine(FederatedPCA(K).fit(parts), PCA(K).fit(SORTED)) < 1e-6
    own = [(p - p.mean(axis=0)) / p.std(axis=0) for p in SPLITS["sorted"]]
    found = FederatedPCA(K, scale="std", standardise="site").fit(SPLITS["sorted"])
    pooled = PCA(K).fit(np.concatenate(own))
    assert sine(found, pooled) < 1e-6
    np.testing.assert_allclose(found.explained_variance_ratio_, pooled.explained_variance_ratio_, rtol=1e-6)
    np.testing.assert_allclose(found.subspace_.scale, X.std(axis=0), rtol=1e-9)
    merged = FederatedPCA(D, "merge", scale="std", standardise="site").fit(SPLITS["sorted"])
    assert float(np.sin(principal_angles(merged.components_[:K], pooled.components_)[0])) < 1e-7


@pytest.mark.parametrize("method", sorted(AGGREGATIONS))
def test_one_exchange(method: str) -> None:
    found = FederatedPCA(K, method).fit(SPLITS["alike"])
    assert sine(found, PCA(K).fit(X)) < 0.4
    assert found.n_rounds_ == 1
    exchanged = 8 * 10 * (K * D + D + 3 * K)
    assert exchanged <= found.bytes_exchanged_ < exchanged + 10 * 1500
    assert (
        found.subspace_.provenance["bytes_exchanged"]
        == found.bytes_exchanged_
        == sum(r["sent"] + r["received"] for r in found.rounds_)
    )


@pytest.mark.parametrize("split", ["alike", "sorted", "unequal", "tiny"])
def test_merge_is_exact_where_sites_send_all(split: str) -> None:
    for options in ({}, {"scale": "std"}, {"center": False}):
        found = FederatedPCA(D, "merge", **options).fit(SPLITS[split])
        pooled = PCA(D, **options).fit(np.concatenate(SPLITS[split]))
        np.testing.assert_allclose(found.singular_values_, pooled.singular_values_, rtol=1e-9)
        angle = principal_angles(found.components_[:K], pooled.components_[:K])[0]
        assert np.sin(angle) < 1e-8
        assert found.subspace_.angle_bounds[K - 1] < 1e-6


@pytest.mark.parametrize("method", ["fedpg", "fedpe"])
def test_consensus_tends_to_the_pooled_answer(method: str) -> None:
    parts = np.array_split(SORTED, 4)
    pooled = PCA(K).fit(SORTED)
    errors = [sine(FederatedPCA(K, method, rounds=r, options={"steps": 10}).fit(parts), pooled) for r in (10, 40, 120)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 1e-4
    some = FederatedPCA(K, method, rounds=150, options={"steps": 10, "participation": 0.4}).fit(parts)
    assert sine(some, pooled) < 0.05
    assert {r["sites"] for r in some.rounds_ if r["task"] == "consensus"} == {2}
    same = FederatedPCA(K, method, rounds=120, options={"steps": 10}).fit([X, X, X])
    assert sine(same, PCA(K).fit(X)) < 1e-6


def test_the_rounds_are_a_limit_and_each_is_one_exchange() -> None:
    pooled, errors = PCA(K).fit(SORTED), []
    for rounds in (1, 2, 4, 8):
        found = FederatedPCA(K, rounds=rounds).fit(SPLITS["sorted"])
        assert sum(r["task"] != "moments" for r in found.rounds_) == rounds
        assert all(r["received"] < 10 * (8 * (K * D + D + 3 * K) + 500) for r in found.rounds_)
        assert sine(found, pooled) <= np.sin(found.subspace_.angle_bound) + 1e-12
        errors.append(sine(found, pooled))
    assert errors[0] > errors[2] > errors[3]
    again = FederatedPCA(K, rounds=8).fit(SPLITS["sorted"])
    assert again.subspace_.components.tobytes() == found.subspace_.components.tobytes()


def test_a_start_saves_rounds() -> None:
    before = FederatedPCA(K).fit(np.array_split(X[:1400], 4)).subspace_
    cold, warm = (FederatedPCA(K, rounds=3).fit(SPLITS["sorted"], start=s) for s in (None, before))
    assert sine(warm, PCA(K).fit(SORTED)) < sine(cold, PCA(K).fit(SORTED))
    slow, fast = (FederatedPCA(K, "fedpg", rounds=5).fit(SPLITS["alike"], start=s) for s in (None, before))
    assert sine(fast, PCA(K).fit(X)) < sine(slow, PCA(K).fit(X))
    for aggregation, start in (("merge", before), ("power", before.truncate(1)), ("power", PCA(K).fit(X[:, :9]))):
        with pytest.raises(InputError, match="start"):
            FederatedPCA(K, aggregation).fit(SPLITS["alike"], start=start)
    with pytest.raises(InputError, match="stay there"):
        FederatedPCA(K).fit_transform(SPLITS["alike"])
    np.testing.assert_allclose(FederatedPCA(K).fit_transform(X).shape, (1500, K))


def test_labels_weights_and_single_precision() -> None:
    grid = xr.DataArray(X[:600].reshape(600, 4, 5), dims=("time", "lat", "lon"), coords={"lat": [0.0, 30, 60, 80]})
    parts = [open_matrix(grid.isel(time=slice(a, a + 200)), weights="coslat") for a in (0, 200, 400)]
    found = FederatedPCA(K).fit(parts)
    pooled = PCA(K).fit(open_matrix(grid, weights="coslat"))
    assert sine(found, pooled) < 1e-6
    assert found.subspace_.to_dataset()["components"].dims == ("mode", "lat", "lon")
    thin = FederatedPCA(K).fit([p.astype(np.float32) for p in SPLITS["alike"]])
    assert thin.components_.dtype == np.float32
    assert sine(thin, PCA(K).fit(X)) < 1e-5
    land = [np.where(np.arange(D) == 4, np.nan, p) for p in SPLITS["alike"]]
    found, pooled = FederatedPCA(K).fit(land), PCA(K).fit(np.concatenate(land))
    assert np.isnan(found.components_[:, 4]).all()
    assert sine(found, pooled) < 1e-6


def test_many_features_are_walked_in_every_round() -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((120, 4)) @ rng.standard_normal((4, 700)) * 3 + rng.standard_normal((120, 700)) + 5
    pooled = PCA(2).fit(wide)
    found = FederatedPCA(2).fit(np.array_split(wide, 3))
    assert sine(found, pooled) < 1e-6
    np.testing.assert_allclose(found.explained_variance_ratio_, pooled.explained_variance_ratio_, rtol=1e-8)


class Faulty(Site):
    """A site whose replies go through a function from some round on."""

    def __init__(self, source: Any, name: str, spoil: Callable[[Record], Any], since: int = 1) -> None:
        super().__init__(source, name)
        self.spoil, self.since = spoil, since

    def ask(self, request: Record, timeout: float) -> Any:
        wait = super().ask(request, timeout)
        return wait if request.round < self.since else lambda: self.spoil(wait())


def edit(**arrays: Callable[[np.ndarray], np.ndarray]) -> Callable[[Record], Record]:
    def spoil(reply: Record) -> Record:
        return replace(reply, arrays={n: arrays.get(n, lambda a: a)(np.array(a)) for n, a in reply.arrays.items()})

    return spoil


def vanish(reply: Record) -> Record:
    raise ConnectionError("gone")


def late(reply: Record) -> Record:
    raise TimeoutError


FAULTS: dict[str, tuple[Callable[[Record], Any], str]] = {
    "late": (late, "late"),
    "vanishes": (vanish, "gone"),
    "NaN": (edit(product=lambda a: a * np.nan, components=lambda a: a * np.nan), "NaN"),
    "infinite": (edit(product=lambda a: a + np.inf, components=lambda a: a + np.inf), "Inf"),
    "shape": (edit(product=lambda a: a[:, 1:], components=lambda a: a[:, 1:]), "wrong shape"),
    "dtype": (edit(product=lambda a: a.astype(complex), components=lambda a: a.astype(object)), "wrong dtype"),
    "stale": (lambda r: replace(r, round=r.round - 1), "stale round"),
    "another": (lambda r: replace(r, kind="rows"), "answered 'rows'"),
    "not orthonormal": (
        edit(components=lambda a: 2 * a, product=lambda a: np.roll(a, 1, axis=1)),
        "non-orthonormal|symm",
    ),
    "negative": (edit(product=lambda a: -a, singular_values=lambda a: -a), "not positive|negative"),
    "too strong": (edit(singular_values=lambda a: 1e3 * a, product=lambda a: a[::-1]), "more variance|symmetric"),
    "loud": (edit(product=lambda a: a * 1e200, mean=lambda a: a * 1e200), "overflow"),
    "many samples": (lambda r: replace(r, facts={**r.facts, "n": 1e200}), "number of samples"),
    "no samples": (lambda r: replace(r, facts={**r.facts, "n": 0}), "number of samples"),
    "rows": (lambda r: replace(r, arrays={**r.arrays, "rows": X}), "not asked for"),
    "nothing": (lambda r: None, "not a message"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("aggregation", "since"), [("projector_mean", 1), ("power", 2), ("power", 4)])
def test_a_faulty_site_is_left_out_with_the_reason(fault: str, aggregation: str, since: int) -> None:
    spoil, reason = FAULTS[fault]
    parts = np.array_split(SORTED, 4)
    sites = [*map(Site, parts[:3]), Faulty(parts[3], "bad", spoil, since)]
    found = FederatedPCA(K, aggregation, timeout=5).fit(sites)
    assert set(found.excluded_) == {"bad"}
    assert found.subspace_.provenance["excluded"] == found.excluded_
    assert re.search(reason, found.excluded_["bad"]), found.excluded_
    if aggregation == "power":  # the answer is that of the others
        assert sine(found, PCA(K).fit(np.concatenate(parts[:3]))) < 1e-6
        assert found.n_samples_ == sum(map(len, parts[:3]))


@pytest.mark.parametrize("method", ["fedpg", "fedpe"])
def test_consensus_goes_on_without_a_site(method: str) -> None:
    parts = np.array_split(X, 4)
    sites = [*map(Site, parts[:3]), Faulty(parts[3], "bad", edit(given=lambda a: a * np.nan), 4)]
    found = FederatedPCA(K, method, rounds=60, options={"steps": 10}).fit(sites)
    assert "NaN" in found.excluded_["bad"]
    assert sine(found, PCA(K).fit(np.concatenate(parts[:3]))) < 0.05
    np.testing.assert_allclose(found.mean_, np.concatenate(parts[:3]).mean(axis=0), rtol=1e-9)


def test_without_a_quorum_it_ends_with_all_reasons() -> None:
    parts = np.array_split(X, 4)
    sites = [Site(parts[0]), Site(parts[1]), Faulty(parts[2], "b", vanish), Faulty(parts[3], "c", late)]
    with pytest.raises(FederationError, match=r"2 of 4 sites are left and 3 are needed.*b: .*gone.*c: .*late"):
        FederatedPCA(K, timeout=1).fit(sites)
    assert FederatedPCA(K, quorum=2, timeout=1).fit(sites).sites_ == ["site 0", "site 1"]
    assert FederatedPCA(K, quorum=0.5, timeout=1).fit(sites).sites_ == ["site 0", "site 1"]


def test_sites_whose_data_do_not_fit_are_left_out() -> None:
    hole = SORTED[:300].copy()
    hole[7, 3] = np.nan
    sites = {
        "a": X[:500],
        "b": X[500:],
        "hole": hole,
        "narrow": X[:50, :5],
        "land": np.where(np.arange(D) == 1, np.nan, X),
    }
    for aggregation in ("power", "merge"):
        found = FederatedPCA(K, aggregation, quorum=2).fit(sites)
        assert set(found.excluded_) == {"hole", "narrow", "land"}
        assert "row 7, feature 3" in found.excluded_["hole"]
        assert found.n_samples_ == len(X)


def test_a_federation_that_was_broken_off_goes_on(tmp_path: Any) -> None:
    parts, store = np.array_split(SORTED, 4), str(tmp_path / "state.zarr")

    class Breaks(Site):
        def ask(self, request: Record, timeout: float) -> Any:
            if request.round == 5:
                raise KeyboardInterrupt
            return super().ask(request, timeout)

    sites = [Faulty(parts[0], "bad", vanish, 3), *(Breaks(p, f"s{i}") for i, p in enumerate(parts[1:]))]
    with pytest.raises(KeyboardInterrupt):
        FederatedPCA(K, checkpoint=store).fit(sites)
    asked = []

    class Notes(Site):
        def ask(self, request: Record, timeout: float) -> Any:
            asked.append((self.name, request.round))
            return super().ask(request, timeout)

    sites = [Notes(parts[0], "bad"), *(Notes(p, f"s{i}") for i, p in enumerate(parts[1:]))]
    found = FederatedPCA(K, checkpoint=store).fit(sites)
    assert min(asked)[1] == 5
    assert all(name != "bad" for name, _ in asked)
    assert found.excluded_.keys() == {"bad"}
    assert sine(found, PCA(K).fit(np.concatenate(parts[1:]))) < 1e-6
    with pytest.raises(InputError, match="other sites or settings"):
        FederatedPCA(K + 1, checkpoint=store).fit(sites)


def test_shared_and_personal_components() -> None:
    """Sites that share two directions, each with a stronger one of its own."""
    rng, d = np.random.default_rng(0), 12
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0].T
    parts = []
    for i in range(6):
        scores = rng.standard_normal((400, 3)) * [3, 2, 5]
        parts.append(scores @ axes[[0, 1, 2 + i]] + 0.1 * rng.standard_normal((400, d)))
    found = FederatedPCA(2, "projector_mean", n_personal=1).fit(parts)
    assert np.sin(principal_angles(found.components_, axes[:2])[0]) < 0.03
    for i, own in enumerate(found.personal_.values()):
        assert np.sin(principal_angles(own.components, axes[[2 + i]])[0]) < 0.03
        np.testing.assert_allclose(found.components_ @ own.components.T, 0, atol=1e-9)
        both = found.personalised(f"site {i}")
        error = parts[i] - both.reconstruct(both.project(parts[i]))
        assert np.square(error).mean() < 0.012
    with pytest.raises(InputError, match="n_personal"):
        FederatedPCA(2, "power", n_personal=1).fit(parts)


def test_wrong_parameters_are_told_before_any_site_is_asked() -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (X, {"n_components": 0}, "n_components"),
        (X, {"n_components": 0.5}, "n_components"),
        (X, {"n_components": D + 1}, "n_components"),
        ([], {}, "no sites"),
        ([Site(X, "a"), Site(X, "a")], {}, "two sites"),
        ([X], {"aggregation": "mode"}, "'power'"),
        ([X], {"rounds": 0}, "rounds"),
        ([X], {"scale": "genotype"}, "scale"),
        ([X], {"standardise": "none"}, "standardise"),
        ([X], {"quorum": 2}, "quorum"),
        ([X], {"timeout": -1}, "timeout"),
        ([X], {"privacy": 1.0}, "privacy"),
        ([X], {"privacy": DP(1, 1e-5, 1), "scale": "std"}, "privacy"),
        ([X], {"options": {"wish": 1}}, "'power' has no option 'wish': it has start"),
        ([X], {"options": {"start": "nowhere"}}, "start"),
        ([X], {"options": "trim"}, "options"),
        ([X], {"aggregation": "trimmed", "options": {"wish": 1}}, "it has trim"),
        ([X], {"aggregation": "trimmed", "options": {"trim": 0.7}}, "trim"),
        ([X], {"aggregation": "flag_mean", "options": {"flag_type": (1, 7)}}, "flag type"),
        ([X], {"aggregation": "fedpg", "options": {"variant": "fedpe"}}, "it has rho, steps, participation"),
        ([X], {"aggregation": "fedpg", "options": {"rho": "high"}}, "rho"),
        ([X], {"secure": True}, "two sites"),
        ([X, X], {"secure": True, "aggregation": "merge"}, "secure"),
        ([X], {"aggregation": "fedpg", "options": {"participation": 0}}, "participation"),
    ]
    for data, options, message in cases:
        with pytest.raises(InputError, match=message):
            FederatedPCA(**{"n_components": K, **options}).fit(data)
    with pytest.raises(InputError, match="trim"):  # before the site is asked, which would be left out as late
        FederatedPCA(K, "trimmed", options={"trim": 0.7}).fit([Faulty(X, "late", late)])
    for wrong in ({}, {"source": X, "exchange": object()}, {"source": X, "workers": "a", "resources": {"a": 1}}):
        with pytest.raises(InputError):
            Site(**wrong)
    assert set(METHODS) >= {*AGGREGATIONS, "power", "fedpg", "fedpe", "admm"}


def test_messages_are_bytes_that_cannot_run() -> None:
    record = Record("product", 7, {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], np.uint64)}, {"n": 1.5})
    data = pack(record)
    again = unpack(data)
    assert (again.kind, again.round, again.facts) == ("product", 7, {"n": 1.5})
    assert again.arrays["a"].tolist() == record.arrays["a"].tolist()
    assert len(data) == record.nbytes
    rng = np.random.default_rng(0)
    for wrong in (
        b"",
        b"x" * 99,
        pickle.dumps(record),
        data[:-1],
        data + b"0",
        data[:40],
        data.replace(b"<f8", b"|O8"),
    ):
        with pytest.raises(FederationError):
            unpack(wrong)
    for _ in range(300):  # whatever is wrong, it is one error of ours or a record
        spoiled = bytearray(data)
        spoiled[rng.integers(len(data))] = rng.integers(256)
        try:
            unpack(bytes(spoiled))
        except FederationError:
            continue
