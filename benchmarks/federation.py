"""Federations measured: accuracy and bytes of every aggregation, liars, flags, privacy, and intrusion detection.

`python -m benchmarks.federation` prints Markdown; NSL_KDD=FOLDER names the folder of `normal.csv` and `attack.csv`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from pipeline import DP, PCA, AnomalyDetector, FederatedPCA, Flag, Subspace, aggregate
from pipeline.federation import AGGREGATIONS
from pipeline.kernels.linalg import principal_angles

__all__ = ["aggregations", "flags", "intrusions", "liars", "main", "privacy"]


def aggregations(sites: tuple[int, ...] = (10, 100), n: int = 20_000, d: int = 50, k: int = 5, seed: int = 0) -> str:
    """Sine to the pooled answer, and kilobytes a site, for every aggregation."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    rows = (rng.standard_normal((n, d)) * np.geomspace(5, 0.5, d)) @ turn + 10
    ordered = rows[np.argsort(rows @ turn.T[:, 0])]
    pooled = PCA(k).fit(rows).subspace_
    heads, columns = [], []
    for m in sites:
        shares = rng.pareto(0.8, m) + 0.05
        unequal = np.maximum((np.cumsum(shares) / shares.sum() * n).astype(int), np.arange(1, m + 1) * 2)[:-1]
        for order, data in (("iid", rows), ("sorted", ordered)):
            for sizes, parts in (("equal", np.array_split(data, m)), ("unequal", np.split(data, unequal))):
                heads.append(f"{m} {order} {sizes}")
                columns.append(parts)
    tries: dict[str, dict[str, Any]] = {
        **{name: {"aggregation": name} for name in AGGREGATIONS},
        **{f"power, {r} rounds": {"rounds": r} for r in (1, 3, 6)},
        "power": {},
        "fedpg, 60 rounds": {"aggregation": "fedpg", "rounds": 60, "options": {"steps": 10}},
        "fedpe, 60 rounds": {"aggregation": "fedpe", "rounds": 60, "options": {"steps": 10}},
    }
    lines = [f"| sin to pooled; kB a site | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, options in tries.items():
        cells = []
        for parts in columns:
            if len(parts) > 10 and name.startswith("fed"):
                cells.append("")
                continue
            found = FederatedPCA(k, **options).fit(parts)
            sine = np.sin(found.subspace_.distance(pooled)[0])
            cells.append(f"{sine:.1e}; {found.bytes_exchanged_ / len(parts) / 1e3:.3g}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def liars(sites: int = 20, d: int = 60, k: int = 3, repeats: int = 3) -> str:
    """Error over the honest error of each rule, by what liars say and how many they are."""
    kinds = [("random", 0.0), ("coordinated", 0.0), ("rotated", 0.2), ("rotated", 0.5)]
    heads = [
        f"{kind}{f' by {angle}' if angle else ''}, {share:.0%}" for kind, angle in kinds for share in (0.1, 0.2, 0.3)
    ]
    lines = [f"| error over honest error | honest | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    cells: dict[str, list[list[float]]] = {name: [] for name in AGGREGATIONS}
    for seed in range(repeats):
        for name, row in _lied_to(seed, sites, d, k, kinds).items():
            cells[name].append(row)
    for name, rows in cells.items():
        row = np.median(rows, axis=0)
        lines.append(f"| {name} | {row[0]:.3f} | {' | '.join(f'{v:.2f}' for v in row[1:])} |")
    return "\n".join(lines)


def _lied_to(seed: int, sites: int, d: int, k: int, kinds: list[tuple[str, float]]) -> dict[str, list[float]]:
    """For each rule its honest error, and its error over that for each kind and share of liars."""
    rng = np.random.default_rng(seed)
    basis, spread = np.linalg.qr(rng.standard_normal((d, d)))[0], np.ones(d)
    spread[:k] = [9, 6, 4][:k]
    truth = basis[:, :k].T
    honest = [PCA(k).fit(rng.standard_normal((200, d)) * np.sqrt(spread) @ basis.T).subspace_ for _ in range(sites)]
    wrong = np.linalg.qr(rng.standard_normal((d, k)))[0].T
    aside = np.linalg.qr((wrong - wrong @ truth.T @ truth).T)[0].T

    def says(kind: str, angle: float) -> np.ndarray:
        if kind == "random":
            return np.linalg.qr(rng.standard_normal((d, k)))[0].T
        return wrong if kind == "coordinated" else np.cos(angle) * truth + np.sin(angle) * aside

    def error(found: Subspace) -> float:
        return float(np.sin(principal_angles(found.components, truth)[0]))

    rows = {}
    for name in AGGREGATIONS:
        rows[name] = [error(aggregate(honest, name))]
        for kind, angle in kinds:
            for share in (0.1, 0.2, 0.3):
                told = list(honest)
                for j in range(round(share * sites)):
                    told[j] = replace(told[j], components=says(kind, angle))
                rows[name].append(error(aggregate(told, name)) / rows[name][0])
    return rows


def flags(outliers: tuple[int, ...] = (0, 5, 10, 19), trials: int = 5) -> str:
    """Chordal distance to the centre of flags of type (1, 3) in 10 dimensions, 100 of them, some of them outliers."""
    kind, names = (1, 3), ("flag median", "flag mean", "chordal mean", "Karcher mean", "l2 mean")
    lines = [f"| outliers of 100 | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for many in outliers:
        rows = []
        for seed in range(trials):
            rng = np.random.default_rng(seed)
            center, wrong = (Flag(kind, np.linalg.qr(rng.standard_normal((10, 3)))[0].T) for _ in range(2))
            told = []
            for j in range(100):
                start = wrong if j < many else center
                q, r = np.linalg.qr((start.components + 0.001 * rng.standard_normal((3, 10))).T)
                told.append(Flag(kind, (q * np.sign(np.diag(r))).T))
            both = [_parts(average, told) for average in (_chordal, _karcher)]
            u, _, vt = np.linalg.svd(sum(f.components for f in told), full_matrices=False)
            found = [Flag.median(told), Flag.mean(told), *both, Flag(kind, u @ vt)]
            rows.append([f.distance(center) for f in found])
        lines.append(f"| {many} | {' | '.join(f'{v:.2e}' for v in np.median(rows, axis=0))} |")
    return "\n".join(lines)


def _parts(average: Callable[[list[np.ndarray]], np.ndarray], told: list[Flag]) -> Flag:
    """A flag from averages of lines and of spaces, each by themselves, as a method for one Grassmannian must."""
    line = average([f.components[:1] for f in told])
    space = average([f.components for f in told])
    first = line @ space.T @ space
    first /= np.linalg.norm(first)
    rest = np.linalg.svd(space - (space @ first.T) @ first)[2][:2]
    return Flag((1, 3), np.concatenate([first, rest]))


def _chordal(bases: list[np.ndarray]) -> np.ndarray:
    return np.linalg.svd(np.concatenate(bases), full_matrices=False)[2][: len(bases[0])]


def _karcher(bases: list[np.ndarray]) -> np.ndarray:
    y = bases[-1]
    for _ in range(100):  # logarithms at y, their mean, the exponential of it
        step = np.zeros_like(y)
        for x in bases:
            inner = x @ y.T
            u, s, vt = np.linalg.svd(np.linalg.solve(inner, x - inner @ y), full_matrices=False)
            step += (u * np.arctan(s)) @ vt / len(bases)
        u, s, vt = np.linalg.svd(step, full_matrices=False)
        y = (u * np.cos(s)) @ u.T @ y + (u * np.sin(s)) @ vt
        y = np.linalg.qr(y.T)[0].T
        if s.max() < 1e-10:
            break
    return y


def privacy(epsilons: tuple[float, ...] = (0.1, 0.3, 1, 3, 10), repeats: int = 5) -> str:
    """Sine to the answer of all rows without privacy, by epsilon, for 10 sites of 4,000 rows and 20 features."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40_000, 20)) * np.geomspace(4, 0.5, 20)
    pooled, parts = PCA(3).fit(rows).subspace_, np.array_split(rows, 10)
    names = ("power", "merge", "projector_mean", "geometric_median")
    lines = [f"| epsilon (delta 1e-6) | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for epsilon in (*epsilons, None):
        cells = []
        for name in names:
            dp = None if epsilon is None else DP(epsilon, 1e-6, 12.0)
            fits = [FederatedPCA(3, name, privacy=dp).fit(parts) for _ in range(1 if dp is None else repeats)]
            cells.append(f"{np.median([np.sin(f.subspace_.distance(pooled)[0]) for f in fits]):.1e}")
        lines.append(f"| {epsilon or 'no privacy'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def intrusions(folder: Path, k: int = 10, sites: int = 20, limit: int | None = None, most_rounds: int = 100) -> str:
    """NSL-KDD: normal rows of 20 sites sorted by dst_bytes, each with its own mean and spread; the rest are scored."""
    normal, attack = (
        pd.read_csv(folder / f"{name}.csv", index_col=0).drop(columns="outcome") for name in ("normal", "attack")
    )
    if limit is not None:
        normal, attack = normal.iloc[:limit], attack.iloc[:limit]
    order = np.random.default_rng(0).permutation(len(normal))
    cut = int(0.7 * len(normal))
    train = normal.iloc[order[:cut]].sort_values("dst_bytes", kind="stable").to_numpy(float)
    fresh = normal.iloc[order[cut:]].to_numpy(float)
    test, truth = np.concatenate([fresh, attack.to_numpy(float)]), np.repeat([0, 1], [len(fresh), len(attack)])
    parts = np.array_split(train, sites)

    def scored(subspace: Subspace) -> tuple[np.ndarray, np.ndarray]:
        detector = AnomalyDetector(subspace, 0.95).fit(train)
        scores = detector.score(test)
        return scores, scores > detector.threshold_

    # What sites can reach: PCA of all rows, standardised together, or (as in the paper) site by site.
    together = PCA(k, scale="std").fit(train).subspace_
    own = np.concatenate([(p - p.mean(axis=0)) / np.where(p.std(axis=0) > 0, p.std(axis=0), 1) for p in parts])
    apart = replace(PCA(k).fit(own).subspace_, mean=together.mean, scale=together.scale)
    pooled = {"global": together, "site": apart}
    reference = {name: roc_auc_score(truth, scored(s)[0]) for name, s in pooled.items()}
    slow = {"participation": 0.1, "steps": 30}
    tries: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
        "power, global": ({"standardise": "global"}, (1, 2, 3, 5, 10, 20)),
        "merge, global": ({"aggregation": "merge", "standardise": "global"}, (1,)),
        "power": ({}, (1, 2, 3, 5, 10, 20)),
        "merge": ({"aggregation": "merge"}, (1,)),
        "projector_mean": ({"aggregation": "projector_mean"}, (1,)),
        "fedpg, 10 % a round": ({"aggregation": "fedpg", "options": slow}, (5, 20, 50, 100)),
        "fedpe, 10 % a round": ({"aggregation": "fedpe", "options": slow}, (5, 20, 50, 100)),
        "fedpg, all": ({"aggregation": "fedpg"}, (2, 5, 10, 20)),
        "fedpe, all": ({"aggregation": "fedpe"}, (2, 5, 10, 20)),
    }
    measures = (accuracy_score, precision_score, recall_score, f1_score)

    def cells(subspace: Subspace) -> str:
        scores, alarms = scored(subspace)
        values = [m(truth, alarms) for m in measures]
        return " | ".join(f"{v:.4f}" for v in (*values, roc_auc_score(truth, scores)))

    lines = [
        f"k = {k}, {sites} sites; {len(train)} normal rows to train on, {len(fresh)} normal and {len(attack)} attacks "
        f"to score; threshold: 0.95 quantile of the training scores; each site standardises its own rows, except where "
        f"'global' is said; quality: AUROC of the pooled answer of the same kind less 0.002.",
        "",
        "| | accuracy | precision | recall | F1 | AUROC | rounds | kB | to quality: rounds, s |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| pooled, {name} (rows leave the sites) | {cells(s)} | | {train.nbytes / 1e3:.0f} | |"
            for name, s in pooled.items()
        ),
    ]
    for name, (options, rounds) in tries.items():
        reached = ""
        for many in (r for r in rounds if r <= most_rounds):
            asked = {} if len(rounds) == 1 else {"rounds": many}
            started = time.perf_counter()
            found = FederatedPCA(k, scale="std", **{"standardise": "site"} | asked | options).fit(parts)
            took = time.perf_counter() - started
            goal = reference[options.get("standardise", "site")] - 0.002
            if not reached and roc_auc_score(truth, scored(found.subspace_)[0]) >= goal:
                reached = f"{many}, {took:.2f}"
        lines.append(
            f"| {name} | {cells(found.subspace_)} | {found.n_rounds_} | {found.bytes_exchanged_ / 1e3:.0f} "
            f"| {reached or 'not reached'} |"
        )
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "aggregations": aggregations,
    "liars": liars,
    "flags": flags,
    "privacy": privacy,
}


@click.command(help=__doc__)
@click.option("--only", multiple=True, type=click.Choice([*PARTS, "intrusions"]), help="Parts; default all.")
def main(only: tuple[str, ...]) -> None:
    for name, part in PARTS.items():
        if not only or name in only:
            print(f"## {name}\n\n{part()}\n", flush=True)
    folder = os.environ.get("NSL_KDD")
    if not only or "intrusions" in only:
        if folder is None:
            print("## intrusions\n\nskipped: NSL_KDD names no folder\n")
            return
        for k in (10, 30):
            print(f"## intrusions, k = {k}\n\n{intrusions(Path(folder), k)}\n", flush=True)


if __name__ == "__main__":
    main()
