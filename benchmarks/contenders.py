"""Us and the peers: functions from a stored matrix to eigenvalues of the scatter and components, one a process.

A process first imports what its contender needs, and the seconds after that are told apart.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CONTENDERS", "HEADLINE", "suits"]

Answer = tuple[np.ndarray, np.ndarray]


def ours(path: str, k: int, kind: str, limit: str) -> Answer:
    """This project, as it chooses."""
    from pipeline import PCA, open_matrix

    scale = "genotype" if "genotypes" in kind else None
    with _cluster(limit):
        model = PCA(n_components=k, scale=scale).fit(path)
        X = open_matrix(path)
        width = getattr(model.prepare(X).solver, "width", None)
    walks = model.subspace_.provenance["walks"]
    told = {"solver": model.plan_.solver, "passes": model.subspace_.passes, "promised": model.plan_.peak_memory}
    told |= {"stored": X.bytes_a_pass} | ({"width": width(X)} if width else {})
    told["walked"] = model.subspace_.passes + sum(w["blocks"] for w in walks if not w["pass"]) / model.plan_.n_blocks
    print(json.dumps({**told, "bytes": sum(w["bytes"] for w in walks)}), flush=True)
    return model.singular_values_**2, model.components_


def dask_ml_full(path: str, k: int, kind: str, limit: str) -> Answer:
    """dask-ml's exact PCA."""
    return _dask_ml(path, k, kind, limit, "PCA", svd_solver="full")


def dask_ml_randomized(path: str, k: int, kind: str, limit: str) -> Answer:
    """dask-ml's randomized PCA with its defaults."""
    return _dask_ml(path, k, kind, limit, "PCA", svd_solver="randomized", random_state=0)


def dask_ml_truncated(path: str, k: int, kind: str, limit: str) -> Answer:
    """dask-ml's TruncatedSVD of the centred matrix, with its defaults."""
    return _dask_ml(path, k, kind, limit, "TruncatedSVD")


def dask_ml_incremental(path: str, k: int, kind: str, limit: str) -> Answer:
    """dask-ml's IncrementalPCA."""
    return _dask_ml(path, k, kind, limit, "IncrementalPCA")


def _dask_ml(path: str, k: int, kind: str, limit: str, name: str, **options: Any) -> Answer:
    from dask_ml import decomposition

    with _cluster(limit):
        x = _standardised(path, kind).rechunk({1: -1})
        if name == "TruncatedSVD":
            x = x - x.mean(axis=0)
        model = getattr(decomposition, name)(n_components=k, **options).fit(x)
    return model.singular_values_**2, model.components_


def _svd_compressed(iterations: int, iterator: str) -> Callable[[str, int, str, str], Answer]:
    def run(path: str, k: int, kind: str, limit: str) -> Answer:
        import dask
        import dask.array as da

        with _cluster(limit):
            x = _standardised(path, kind)
            x = x - x.mean(axis=0)
            _, s, v = da.linalg.svd_compressed(x, k, n_power_iter=iterations, iterator=iterator, seed=0)
            s, v = dask.compute(s, v)
        return s**2, v

    return run


def xeofs_eof(path: str, k: int, kind: str, limit: str) -> Answer:
    """xeofs' EOF analysis on Dask."""
    import xarray as xr
    from xeofs.single import EOF

    with _cluster(limit):
        x = _standardised(path, kind)
        x = xr.DataArray(x, {"time": np.arange(x.shape[0]), "x": np.arange(x.shape[1])}, ("time", "x"))
        model = EOF(n_modes=k).fit(x, dim="time")
        values, components = model.singular_values().values, model.components().transpose("mode", "x").values
    return values**2, components


def sklearn_covariance(path: str, k: int, kind: str, limit: str) -> Answer:
    """scikit-learn's PCA by the covariance matrix, in memory."""
    return _sklearn(path, k, kind, "covariance_eigh")


def sklearn_randomized(path: str, k: int, kind: str, limit: str) -> Answer:
    """scikit-learn's randomized PCA, in memory."""
    return _sklearn(path, k, kind, "randomized")


def sklearn_arpack(path: str, k: int, kind: str, limit: str) -> Answer:
    """scikit-learn's PCA by ARPACK, in memory; sparse matrices stay sparse."""
    return _sklearn(path, k, kind, "arpack")


def _sklearn(path: str, k: int, kind: str, solver: str) -> Answer:
    from sklearn.decomposition import PCA

    model = PCA(n_components=k, svd_solver=solver, random_state=0).fit(_in_memory(path, kind))
    return model.singular_values_**2, model.components_


def sklearn_incremental(path: str, k: int, kind: str, limit: str) -> Answer:
    """scikit-learn's IncrementalPCA, chunk by chunk."""
    import zarr
    from sklearn.decomposition import IncrementalPCA

    z, model = zarr.open_array(path, mode="r"), IncrementalPCA(n_components=k)
    step = max(z.chunks[0], 2 * k)
    for start in range(0, z.shape[0] - step + 1, step):
        stop = z.shape[0] if start + 2 * step > z.shape[0] else start + step
        model.partial_fit(z[start:stop])
    return model.singular_values_**2, model.components_


def plink2(path: str, k: int, kind: str, limit: str) -> Answer:
    """PLINK 2's randomized PCA, from its own format, which the clock does not see it get.

    Its variant weights are the components up to their length, and its eigenvalues those of the scatter over d.
    """
    from benchmarks.shapes import Genotypes

    d, bed = Genotypes.sizes(Path(path))[1], Genotypes.bed(Path(path))
    with tempfile.TemporaryDirectory() as place:
        out = f"{place}/pca"
        task = ["plink2", "--bfile", str(bed), "--pca", "approx", "allele-wts", str(k), "--out", out, "--threads", "2"]
        subprocess.run([*task, "--seed", "0"], check=True, stdout=subprocess.DEVNULL)
        values = np.loadtxt(f"{out}.eigenval") * d
        with open(f"{out}.eigenvec.allele") as table:
            first = table.readline().split().index("PC1")
            weights = np.loadtxt(table, usecols=range(first, first + k))
    weights = weights[:: len(weights) // d]  # of one allele of each variant
    return values, (weights / np.linalg.norm(weights, axis=0)).T


def _in_memory(path: str, kind: str) -> Any:
    import zarr

    if kind.startswith("sparse"):
        from benchmarks.shapes import Sparse

        return Sparse.matrix(Path(path))
    x = zarr.open_array(path, mode="r")[:]
    if "genotypes" not in kind:
        return x
    x = x.astype("f4")
    p = x.mean(axis=0) / 2
    return x / np.sqrt(np.where((p > 0) & (p < 1), 2 * p * (1 - p), 1))


def _standardised(path: str, kind: str) -> Any:
    """The matrix as a Dask array; genotypes divided by sqrt(2 p (1 - p)), as peers have no name for it."""
    import dask.array as da

    x = da.from_zarr(path)
    if "genotypes" not in kind:
        return x
    x = x.astype("f4")
    p = x.mean(axis=0) / 2
    return x / da.sqrt(da.where((p > 0) & (p < 1), 2 * p * (1 - p), 1))


def _cluster(limit: str) -> AbstractContextManager[Any]:
    """Two worker processes of so much memory each, or the threads of this process."""
    if not limit:
        return nullcontext()
    from distributed import Client

    return Client(n_workers=2, threads_per_worker=1, memory_limit=limit, dashboard_address=None)


CONTENDERS: dict[str, Callable[[str, int, str, str], Answer]] = {
    "ours": ours,
    "dask-ml PCA full": dask_ml_full,
    "dask-ml PCA randomized": dask_ml_randomized,
    "dask-ml TruncatedSVD": dask_ml_truncated,
    "dask-ml IncrementalPCA": dask_ml_incremental,
    "svd_compressed QR 2": _svd_compressed(2, "QR"),
    "svd_compressed QR 4": _svd_compressed(4, "QR"),
    "svd_compressed power 2": _svd_compressed(2, "power"),
    "svd_compressed power 4": _svd_compressed(4, "power"),
    "xeofs EOF": xeofs_eof,
    "scikit-learn covariance": sklearn_covariance,
    "scikit-learn randomized": sklearn_randomized,
    "scikit-learn ARPACK": sklearn_arpack,
    "scikit-learn IncrementalPCA": sklearn_incremental,
    "PLINK2 approx": plink2,
}
HEADLINE = (
    "dask-ml PCA full",
    "svd_compressed QR 2",
    "scikit-learn covariance",
    "scikit-learn randomized",
    "scikit-learn ARPACK",
    "PLINK2 approx",
)
"""The peers that come nearest on some shape."""
_IMPORTS = {
    "ours": ("pipeline.estimators.pca",),
    "dask-ml": ("dask_ml.decomposition", "distributed"),
    "svd_compressed": ("dask.array", "distributed"),
    "xeofs": ("xeofs.single", "distributed"),
    "scikit-learn": ("sklearn.decomposition", "zarr"),
    "PLINK2": ("benchmarks.shapes",),
}
_SPARSE = {"ours", "scikit-learn covariance", "scikit-learn ARPACK"}
_BOUNDED = {"ours", "dask-ml PCA full", "dask-ml PCA randomized", "svd_compressed QR 2"}
_DENSE_SCATTER = 20_000  # features from which on it leaves no memory to anybody else


def suits(name: str, kind: str, limit: str | None, d: int) -> bool:
    """Whether a contender can be asked at all: most know no sparse matrices, and few a bound on memory."""
    if name == "scikit-learn covariance" and d > _DENSE_SCATTER:
        return False
    if name == "PLINK2 approx":
        return "genotypes" in kind and shutil.which("plink2") is not None
    if kind.startswith("sparse"):
        return name in _SPARSE
    if limit:
        return name in _BOUNDED
    return name != "scikit-learn ARPACK"


def main(name: str, path: str, k: str, kind: str, limit: str, out: str) -> None:
    """Run one contender in this process and save its answer with the seconds that it took."""
    for prefix, modules in _IMPORTS.items():
        if name.startswith(prefix):
            for module in (*modules, *(["distributed"] if limit else [])):
                import_module(module)
    started = time.perf_counter()
    values, components = CONTENDERS[name](path, int(k), kind, limit)
    seconds = time.perf_counter() - started
    np.savez(Path(out), values=values, components=np.asarray(components), seconds=seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
