"""Us and the peers: functions from a Zarr path to eigenvalues of the scatter and components, one a process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["CONTENDERS"]

Answer = tuple[np.ndarray, np.ndarray]


def ours(path: str, k: int) -> Answer:
    """This project, as it chooses."""
    from pipeline import PCA

    model = PCA(n_components=k).fit(path)
    print(json.dumps({"passes": model.subspace_.passes, "solver": model.plan_.solver}), file=sys.stderr)
    return model.singular_values_**2, model.components_


def dask_ml_full(path: str, k: int) -> Answer:
    """dask-ml's exact PCA."""
    import dask.array as da
    from dask_ml.decomposition import PCA

    x = da.from_zarr(path).rechunk({1: -1})
    model = PCA(n_components=k, svd_solver="full").fit(x)
    return model.singular_values_**2, model.components_


def dask_ml_randomized(path: str, k: int) -> Answer:
    """dask-ml's randomized PCA with its defaults."""
    import dask.array as da
    from dask_ml.decomposition import PCA

    x = da.from_zarr(path).rechunk({1: -1})
    model = PCA(n_components=k, svd_solver="randomized", random_state=0).fit(x)
    return model.singular_values_**2, model.components_


def svd_compressed(path: str, k: int) -> Answer:
    """dask.array.linalg.svd_compressed with two QR iterations."""
    import dask
    import dask.array as da

    x = da.from_zarr(path)
    _, s, v = da.linalg.svd_compressed(x - x.mean(axis=0), k, n_power_iter=2, iterator="QR", seed=0)
    s, v = dask.compute(s, v)
    return s**2, v


def svd_compressed_power(path: str, k: int) -> Answer:
    """dask.array.linalg.svd_compressed with four power iterations."""
    import dask
    import dask.array as da

    x = da.from_zarr(path)
    _, s, v = da.linalg.svd_compressed(x - x.mean(axis=0), k, n_power_iter=4, iterator="power", seed=0)
    s, v = dask.compute(s, v)
    return s**2, v


def sklearn_covariance(path: str, k: int) -> Answer:
    """scikit-learn's PCA by the covariance matrix, in memory."""
    return _sklearn(path, k, "covariance_eigh")


def sklearn_randomized(path: str, k: int) -> Answer:
    """scikit-learn's randomized PCA, in memory."""
    return _sklearn(path, k, "randomized")


def sklearn_incremental(path: str, k: int) -> Answer:
    """scikit-learn's IncrementalPCA, chunk by chunk."""
    import zarr
    from sklearn.decomposition import IncrementalPCA

    z, model = zarr.open_array(path, mode="r"), IncrementalPCA(n_components=k)
    step = max(z.chunks[0], 2 * k)
    for start in range(0, z.shape[0] - step + 1, step):
        stop = z.shape[0] if start + 2 * step > z.shape[0] else start + step
        model.partial_fit(z[start:stop])
    return model.singular_values_**2, model.components_


def _sklearn(path: str, k: int, solver: str) -> Answer:
    import zarr
    from sklearn.decomposition import PCA

    x = zarr.open_array(path, mode="r")[:]
    model = PCA(n_components=k, svd_solver=solver, random_state=0).fit(x)
    return model.singular_values_**2, model.components_


CONTENDERS: dict[str, Callable[[str, int], Answer]] = {
    "ours": ours,
    "dask-ml full": dask_ml_full,
    "dask-ml randomized": dask_ml_randomized,
    "svd_compressed QR 2": svd_compressed,
    "svd_compressed power 4": svd_compressed_power,
    "scikit-learn covariance": sklearn_covariance,
    "scikit-learn randomized": sklearn_randomized,
    "scikit-learn incremental": sklearn_incremental,
}


def main(name: str, path: str, k: str, out: str) -> None:
    """Run one contender in this process and save its answer with the seconds that it took."""
    started = time.perf_counter()
    values, components = CONTENDERS[name](path, int(k))
    seconds = time.perf_counter() - started
    np.savez(Path(out), values=values, components=np.asarray(components), seconds=seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
