"""Published answers: the golden files that `eofs` ships for its own field (read here, never copied)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipeline import PCA, open_matrix

DATA = files("eofs") / "tests" / "data"
GOLDEN = pytest.mark.skipif(not Path(str(DATA)).is_dir(), reason="this eofs ships no golden files")


def golden(name: str) -> np.ndarray:
    return np.load(str(DATA / f"{name}.npy"))


def field() -> xr.DataArray:
    coords = {name: golden(name) for name in ("time", "latitude", "longitude")}
    return xr.DataArray(golden("sst"), coords, ("time", "latitude", "longitude"), name="sst")


@GOLDEN
@pytest.mark.parametrize("solver", ["gram", "dual_gram", "krylov", "randomized"])
@pytest.mark.parametrize("weighting", ["equal", "latitude", "area"])
def test_eofs_fractions_and_pcs_agree(weighting: str, solver: str) -> None:
    sst = field()
    weights: object = None if weighting == "equal" else golden(f"weights.{weighting}")
    if weights is not None:
        weights = np.broadcast_to(np.nan_to_num(weights), sst.shape[1:]).reshape(-1)
    values, eofs, pcs = golden(f"eigenvalues.{weighting}"), golden(f"eofs.{weighting}"), golden(f"pcs.{weighting}")
    model = PCA(len(values), solver=solver).fit(open_matrix(sst, weights=weights))

    np.testing.assert_allclose(model.explained_variance_, values, rtol=1e-5)
    np.testing.assert_allclose(model.explained_variance_ratio_, golden(f"variance.{weighting}") / 100, rtol=1e-5)
    ours = model.subspace_.to_dataset()["components"]
    assert ours.dims == ("mode", "latitude", "longitude")
    assert np.array_equal(np.isnan(ours[0]), np.isnan(eofs[0]))  # land
    signs = np.sign(np.nansum(ours.values * eofs, axis=(1, 2)))
    np.testing.assert_allclose(ours.values * signs[:, None, None], eofs, atol=1e-5)
    np.testing.assert_allclose(model.transform(sst).values * signs, pcs, atol=2e-4 * np.abs(pcs).max())


@GOLDEN
def test_coslat_is_the_latitude_weighting_of_eofs() -> None:
    X = open_matrix(field(), weights="coslat")
    assert X.weights is not None
    expected = np.broadcast_to(golden("weights.latitude"), field().shape[1:]).reshape(-1)
    known = np.isfinite(expected)
    np.testing.assert_allclose(X.weights[known], expected[known], rtol=1e-6)


def test_the_winter_pressure_field_by_lapack() -> None:
    where = str(files("eofs") / "examples" / "example_data" / "hgt_djf.nc")
    z = xr.open_dataset(where)["z"]
    model = PCA(5).fit(open_matrix(z, weights="coslat"))
    lat = np.sqrt(np.clip(np.cos(np.deg2rad(z["latitude"].values.astype(np.float64))), 0, None))
    table = (z.values * lat[:, None]).reshape(len(z), -1)
    _, s, vt = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(model.singular_values_, s[:5], rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(model.components_ * vt[:5], axis=1)), 1, rtol=1e-10)
