"""Small copies of the benchmark of federations: that its tables say what docs/federation.md says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.federation import aggregations, flags, intrusions, liars, privacy


def cells(table: str) -> dict[str, list[str]]:
    """Rows of a Markdown table by their first cell."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row[1:] for row in rows}


def test_aggregations() -> None:
    rows = cells(aggregations(sites=(4,), n=800, d=12, k=2))
    sines = {name: [float(c.split(";")[0]) for c in row if c] for name, row in rows.items()}
    assert max(sines["power"]) < 1e-6
    assert sines["power, 1 rounds"][2] > sines["power, 3 rounds"][2] > sines["power, 6 rounds"][2]
    assert all(len(row) == 4 for row in sines.values())


def test_liars_and_flags() -> None:
    rows = {name: [float(c) for c in row] for name, row in cells(liars(repeats=1)).items()}
    assert max(rows["trimmed"][1:]) < 2
    assert max(rows["flag_median"][1:] + rows["geometric_median"][1:]) < 3
    assert min(max(rows[name][1:]) for name in ("merge", "procrustes")) > 3
    found = {name: [float(c) for c in row] for name, row in cells(flags((10,), 1)).items()}
    median, mean, chordal, karcher, euclid = found["10"]
    assert median < mean < chordal < min(karcher, euclid)


def test_privacy() -> None:
    rows = {name: [float(c) for c in row] for name, row in cells(privacy((0.1, 10.0), 1)).items()}
    assert np.all(np.array(rows["0.1"]) > np.array(rows["10.0"]))
    assert rows["no privacy"][0] < 1e-6


@pytest.mark.skipif("NSL_KDD" not in os.environ, reason="NSL_KDD names no folder")
def test_intrusions() -> None:
    rows = cells(intrusions(Path(os.environ["NSL_KDD"]), k=10, sites=5, limit=600, most_rounds=5))
    assert all(float(row[4]) > 0.7 for row in rows.values())
