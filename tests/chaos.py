"""Faults by the hundred, with the figures that docs/reliability.md tells: `make chaos`, a few minutes.

Each part is a row of the table there: it breaks something on purpose, over and over, and counts what came of it. What
must not happen ends the run with an AssertionError.
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import numpy as np
import psutil
import pytest
import xarray as xr
import zarr
from threadpoolctl import threadpool_limits

import pipeline.store.head
from pipeline import PCA, open_matrix
from pipeline.errors import ConflictError, PlanError, StoreError
from pipeline.jobs.update import update_model
from pipeline.matrix import Matrix
from pipeline.store import expire, history, load, rollback, save, tag
from tests.problems import SPECTRA, Problem, fitted
from tests.servers import KEYS, moto, object_store
from tests.test_checkpoint import BLOCK, SLOW, scheduler_killed
from tests.test_checkpoint import X as Y
from tests.test_cluster import SHAPE, killed_on_the_way
from tests.test_edges import INPUTS, SOLVERS, outcome
from tests.test_history import (
    flapping_at_each_write,
    many_commits,
    test_a_power_cut_loses_no_version_that_was_acknowledged,
)
from tests.test_store import Faulty, check_whole, of_version, subspace, write_on

# Operations of the file system, and of how many of them one is tried: those that decide all, the others some.
CALLS = {"replace": 1, "rename": 1, "link": 2, "open": 17, "mkdir": 7, "unlink": 3, "rmdir": 5, "fsync": 17}
KILLS = 12
SPAWN = multiprocessing.get_context("forkserver")


class Killed(BaseException):
    """The process is gone: no handler of errors runs in it."""


def every_operation(folder: Path) -> str:
    """A fault, or the end of the process, at every operation of the file system while a version is published."""
    values = [subspace(v, k=1, d=1) for v in (1.0, 2.0, 3.0)]
    outcomes: Counter[str] = Counter()
    acts: dict[str, Callable[[Path], Any]] = {
        "publish": lambda model: save(values[2], model, overwrite=True),
        "roll back": lambda model: rollback(model, 1),
        "tag": lambda model: tag(model, "good", 1),
        "expire": lambda model: expire(model, 1, grace=0.0),
    }
    for value in values[:2]:
        save(value, folder / "before.zarr", overwrite=True)
    for (act, do), (call, by), dead in itertools.product(acts.items(), CALLS.items(), (False, True)):
        for step in itertools.count(1, by):
            place = folder / "at"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(folder / "before.zarr", place / "m.zarr")
            model = place / "m.zarr"
            faulty = _Ending(getattr(os, call), step, dead)
            with mock.patch.object(os, call, faulty), suppress(StoreError, Killed):
                do(model)
            found = load(model)
            assert found in values
            assert act in ("publish", "roll back") or found == values[1]
            assert xr.open_zarr(model).attrs["n_samples"] == found.n_samples
            for version in history(model).versions:
                assert load(model, version.number) in values
            tag(model, "swept")  # the next writer tidies up
            assert load(model) == found
            assert [p.name for p in place.iterdir()] == ["m.zarr"]
            outcomes["old" if found == values[1] else "new"] += 1
            if faulty.calls < step:
                break
    told = f"{outcomes['old']} old, {outcomes['new']} new, 0 mixed, 0 litter"
    return f"{sum(outcomes.values())} faults and deaths: {told}"


class _Ending(Faulty):
    def __init__(self, real: Callable[..., Any], n: int, dead: bool) -> None:
        super().__init__(real, n)
        self.dead = dead

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.n:
            raise Killed if self.dead else OSError(5, "injected")
        return self.real(*args, **kwargs)


def real_kills(folder: Path) -> str:
    """SIGKILL of a process that publishes without end."""
    model, chance, last, whole = folder / "m.zarr", random.Random(0), 0, 0.0
    for _ in range(KILLS):
        begun = SPAWN.Value("i", last, lock=False)
        writer = SPAWN.Process(target=write_on, args=(model, begun, 1, 0.0))
        writer.start()
        while begun.value == last:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.3))
        writer.kill()
        writer.join()
        before, last = last, begun.value
        if model.exists():
            version = check_whole(xr.open_zarr(model).load())
            acknowledged = last - 1 if last - 1 > before else whole  # the first of each writer may have died
            assert acknowledged <= version <= last
            whole = version
            assert load(model) == of_version(int(version))
            told = history(model).versions
            assert [v.number for v in told] == list(range(1, len(told) + 1))
    return f"{KILLS} kills while {last} versions were begun: 0 mixed, 0 lost"


def eight_processes(folder: Path) -> str:
    """Eight processes publish to one model."""
    model = folder / "m.zarr"
    save(of_version(1), model)
    done = many_commits(model, 8, 5)
    versions = history(model).versions
    assert {v.id for v in versions[1:]} == set(done)
    assert [v.parent for v in versions[1:]] == [v.id for v in versions[:-1]]
    return f"40 commits: {len(done)} in the history, {40 - len(done)} told of a conflict, 0 lost, 0 doubled"


def every_key(folder: Path) -> str:
    """Each file of a stored model removed, cut, a bit of it flipped."""
    model, outcomes = folder / "m.zarr", Counter[str]()
    S = subspace(2.0, k=2, d=4)
    save(subspace(1.0, k=2, d=4), model)
    save(S, model, overwrite=True)
    for path in sorted(p for p in model.rglob("*") if p.is_file()):
        whole, key = path.read_bytes(), path.relative_to(model).as_posix()
        for how in ("removed", "cut", *(f"bit {i}" for i in random.Random(key).sample(range(8 * len(whole)), 6))):
            path.unlink()
            if how == "cut":
                path.write_bytes(whole[: len(whole) // 2])
            elif how != "removed":
                i = int(how.split()[1])
                path.write_bytes(whole[: i // 8] + bytes([whole[i // 8] ^ 1 << i % 8]) + whole[i // 8 + 1 :])
            for version, right in ((None, S), (1, subspace(1.0, k=2, d=4))):
                try:
                    assert load(model, version) == right
                    outcomes["same bits"] += 1
                except StoreError as error:
                    words = str(error)
                    outcomes["named"] += key.removeprefix(history_path(key)) in words or "zarr.json" in words
            path.unlink(missing_ok=True)
            path.write_bytes(whole)
    loads = 2 * 8 * sum(p.is_file() for p in model.rglob("*"))
    assert sum(outcomes.values()) == loads
    return f"{loads} loads: {outcomes['same bits']} same bits, {outcomes['named']} named, 0 silent"


def history_path(key: str) -> str:
    """The folder of a version that a key lies in."""
    return "/".join(key.split("/")[:2]) + "/" if key.startswith("versions/") else ""


def power_cut(folder: Path) -> str:
    """What is synced is all that stays."""
    with pytest.MonkeyPatch.context() as patch:
        test_a_power_cut_loses_no_version_that_was_acknowledged(folder, patch)
    return "6 cuts, after each commit, rollback and tag: no acknowledged version lost"


def clients_killed(folder: Path) -> str:
    """A fit in a process of its own, killed over and over, and begun again each time."""
    x = np.random.default_rng(0).standard_normal((800, 24)) * np.geomspace(10, 0.5, 24) + 3
    source, model, log = folder / "x.zarr", folder / "m.zarr", folder / "log"
    zarr.create_array(source, shape=x.shape, chunks=(20, 24), dtype="f8")[...] = x
    (folder / "fit.py").write_text(SLOW)
    chance, kills = random.Random(3), 0
    while not model.exists():
        before = log.stat().st_size if log.exists() else 0
        fit = subprocess.Popen([sys.executable, folder / "fit.py", source, folder / "c", model, log, "krylov"])
        while (not log.exists() or log.stat().st_size <= before) and fit.poll() is None:
            time.sleep(0.005)
        with suppress(subprocess.TimeoutExpired):
            fit.wait(timeout=chance.uniform(0.1, 0.6) if kills < 8 else 120)
        if fit.poll() is None:
            fit.kill()
            fit.wait()
            kills += 1
    found, whole = load(model), PCA(4, solver="krylov").fit(open_matrix(str(source)).cut_at(20)).subspace_
    angle = found.distance(whole).max()
    assert angle < 1e-10
    extra = len(log.read_text().split()) - whole.passes * 40
    assert extra <= kills * (4 + 2)
    again = f"{extra / kills:.1f} of 40 blocks read again a kill"
    return f"{kills} kills: angle to the undisturbed answer {angle:.0e}, {again}"


def workers_killed(folder: Path) -> str:
    """A worker of two is killed early, in the middle and late in a fit of five passes of 30 blocks."""
    x = np.random.default_rng(0).standard_normal(SHAPE) * np.geomspace(10, 0.1, SHAPE[1]) + 5
    source = str(folder / "x.zarr")
    zarr.create_array(source, shape=SHAPE, chunks=(100, 30), dtype="f8")[...] = x
    cases = [killed_on_the_way(source, folder / f"log {after}", after) for after in (3, 25, 50, 77, 140)]
    assert all(angle < 1e-10 and extra <= theirs for angle, extra, theirs in cases)
    angle = max(angle for angle, _, _ in cases)
    again = ", ".join(f"{extra} of {theirs}" for _, extra, theirs in cases)
    return f"{len(cases)} kills: angle {angle:.0e}; blocks read again of the worker's in that pass: {again}"


def schedulers_killed(folder: Path) -> str:
    """The whole cluster goes, and the fit goes on elsewhere."""
    source = folder / "x.zarr"
    zarr.create_array(source, shape=Y.shape, chunks=(BLOCK, Y.shape[1]), dtype="f8")[...] = Y
    cases = []
    for after in (7, 33, 52):  # of 60
        (folder / str(after)).mkdir()
        cases.append(scheduler_killed(source, folder / str(after), after))
    assert all(angle < 1e-10 and extra <= 0.1 * len(Y) / BLOCK + 2 for angle, extra in cases)
    angle, again = max(angle for angle, _ in cases), ", ".join(str(extra) for _, extra in cases)
    return f"{len(cases)} kills: angle {angle:.0e}, {again} of {len(Y) // BLOCK} blocks read again"


def memory(folder: Path) -> str:
    """What a process grows by while it fits, beside what was planned; too small a limit is refused before reading."""
    told = []
    for name, (solver, n, d, dtype) in FITS.items():
        with SPAWN.Pool(1) as pool:
            planned, measured = pool.apply(grown_by, (str(folder / f"{name}.zarr"), solver, n, d, dtype))
        assert measured <= planned <= 2 * measured, (name, planned, measured)
        told.append(f"{name} {measured / 1e6:.0f} of {planned / 1e6:.0f}")
    with pytest.raises(PlanError), mock.patch.object(Matrix, "read_range", side_effect=AssertionError):
        PCA(10, memory_limit="1MB").fit(str(folder / f"{name}.zarr"))
    return f"MB grown by, of those planned: {', '.join(told)}; 1 MB is refused, nothing is read"


FITS = {
    "tall": ("gram", 60_000, 1000, "f8"),
    "tall, iterated": ("krylov", 60_000, 1000, "f4"),
    "tall, all kept": ("randomized", 60_000, 1000, "f4"),
    "wide": ("dual_gram", 400, 200_000, "f4"),
    "square": ("krylov", 5_000, 20_000, "f4"),
}


def grown_by(source: str, solver: str, n: int, d: int, dtype: str) -> tuple[int, int]:
    """Bytes of memory planned and measured of a fit by one thread in this process."""
    rng = np.random.default_rng(0)
    array = zarr.create_array(source, shape=(n, d), chunks=(min(n, 10**6 // min(d, 10**4)), min(d, 10**4)), dtype=dtype)
    lens = rng.standard_normal((12, d), dtype="f4")
    for start in range(0, n, array.chunks[0]):
        rows = min(array.chunks[0], n - start)
        part = rng.standard_normal((rows, d), dtype="f4")
        array[start : start + rows] = part + (10 * rng.standard_normal((rows, 12), dtype="f4")) @ lens
    with dask.config.set(num_workers=1), threadpool_limits(1):
        PCA(2, solver=solver).fit(rng.standard_normal((300, 20)))  # what is loaded on the first use
        gc.collect()
        model = PCA(10, solver=solver, memory_limit="1GB")
        before = psutil.Process().memory_info().rss
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        model.fit(source)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return model.plan_.peak_memory, 1024 * int(peak.split()[1]) - before


def flapping(folder: Path) -> str:
    """An object store that refuses each write once, and each from there on."""
    with object_store(moto, folder) as address, mock.patch.dict(os.environ, {**KEYS, "AWS_ENDPOINT_URL": address}):
        return flapping_at_each_write("s3://models/m.zarr", 10**9)


def inputs(folder: Path) -> str:
    """What people feed by accident, to each solver."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Counter(outcome(*INPUTS[name], solver) for name in INPUTS for solver in SOLVERS)
    told = f"{found['bounded']} within their bounds, {found['refused']} refused"
    return f"{len(INPUTS)} inputs x {len(SOLVERS)} solvers: {told}"


def spectra(folder: Path) -> str:
    """Random spectra: no stated bound is below what LAPACK finds."""
    chance, below, n = random.Random(0), 0, 500
    for seed in range(n):
        name, solver = chance.choice(sorted(SPECTRA)), chance.choice(["gram", "krylov", "randomized"])
        problem = Problem(name, 60, 20, seed=seed, dtype=chance.choice([np.float64, np.float32]))
        found = fitted(problem.X, chance.randint(1, 6), solver)
        for j in range(1, found.k + 1):
            below += problem.exact.angle(found.components[:j]) > np.sin(found.angle_bounds[j - 1]) + 1e-7
    assert below == 0
    return f"{n} spectra: {below} bounds below the truth"


def batches(folder: Path) -> str:
    """Batches that come twice, updates that are killed and run again, and two at once."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 9))
    model = folder / "m.zarr"
    PCA(4).fit(x[:100]).subspace_.save(model)
    conflicts = at_once = 0
    for start in range(100, 300, 20):
        batch = folder / f"batch {start}.zarr"
        zarr.create_array(batch, data=x[start : start + 20])
        with mock.patch.object(os, "replace", side_effect=Killed), suppress(Killed):
            update_model(str(model), str(batch))
        head = history(model).head
        with ThreadPoolExecutor(2) as two:
            ends = [two.submit(update_model, str(model), str(batch)) for _ in range(2)]
        at_once += sum(isinstance(end.exception(), ConflictError) for end in ends)
        assert all(end.exception() is None or isinstance(end.exception(), ConflictError) for end in ends)
        try:
            save(load(model), model, overwrite=True, parent=head)
        except ConflictError:
            conflicts += 1
        assert not update_model(str(model), str(batch)).rows
    assert len(history(model).versions) == 11
    assert load(model).n_samples == 300
    assert conflicts == 10
    told = f"10 versions, 300 of 300 samples, {at_once} told of a conflict, {conflicts} late commits refused"
    return f"10 batches, each killed once, then by two at once, then again: {told}"


PARTS: dict[str, Callable[[Path], str]] = {
    "1 every operation": every_operation,
    "1 real kills": real_kills,
    "2 power cut": power_cut,
    "3 eight processes": eight_processes,
    "6 every key": every_key,
    "8 workers killed": workers_killed,
    "9 clients killed": clients_killed,
    "9 schedulers killed": schedulers_killed,
    "10 memory": memory,
    "11 flapping": flapping,
    "12 inputs": inputs,
    "13 random spectra": spectra,
    "14, 15 batches": batches,
}


def main() -> None:
    SPAWN.set_forkserver_preload(["hypothesis.extra.numpy", "pipeline.store", "pytest", "xarray", "zarr"])
    wanted, figures = sys.argv[1:], {}
    for name, part in PARTS.items():
        if wanted and not any(word in name for word in wanted):
            continue
        folder, started = Path(tempfile.mkdtemp(prefix="chaos-")), time.monotonic()
        try:
            with (
                mock.patch.object(pipeline.store.head, "GRACE", 0.0),
                mock.patch.object(os, "fsync", return_value=None) if name[:2] == "1 " else nullcontext(),
            ):
                figures[name] = part(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"| {name} | {figures[name]} | {time.monotonic() - started:.0f} s |", flush=True)
    Path("out").mkdir(exist_ok=True)
    Path("out/chaos.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
