"""The state of a stream in a Zarr group: it is saved, moved to another machine and continued there."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import fields
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StoreError
from pipeline.folds.rowmaps import Cut, Pulled
from pipeline.kernels.factor import Factor
from pipeline.robust.passing import Reservoir, StreamState

__all__ = ["read_state", "write_state"]

_FORMAT = "robust stream 1"


def _numbers(state: StreamState) -> dict[str, Any]:
    plain = (int, float, bool)
    return {f.name: v for f in fields(state) if isinstance(v := getattr(state, f.name), plain)}


def _arrays(state: StreamState) -> dict[str, np.ndarray]:
    arrays = {"keys": state.sample.keys, "rows": state.sample.rows}
    if state.factor is not None:
        numbers = np.array([state.factor.n, state.factor.energy])
        arrays |= {"mean": state.factor.mean, "root": state.factor.root, "numbers": numbers}
    if state.pulled:
        arrays["pulled_center"] = state.pulled[0].center
    for i, cut in enumerate((*state.cuts, *(pulled.ball for pulled in state.pulled))):
        arrays |= {
            f"cut_{i}_mean": cut.mean,
            f"cut_{i}_lens": cut.lens,
            f"cut_{i}_center": np.append(cut.center, cut.threshold),
        }
    return arrays


def write_state(state: StreamState, store: str | PathLike[str]) -> None:
    """Write a state to a new Zarr group, whole or not at all.

    Raises StoreError where the path exists or cannot be written.
    """
    import zarr

    path = Path(fspath(store))
    if path.exists():
        raise StoreError(f"{path} exists: choose another path, so that no state is lost")
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.open_group(draft, mode="w")
        for name, values in _arrays(state).items():
            group.create_array(name, data=np.asarray(values))
        group.attrs.update({"format": _FORMAT, "cuts": len(state.cuts), **_numbers(state)})
        draft.rename(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror or error}): choose another path") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read_state(store: str | PathLike[str]) -> StreamState:
    """The state that `write_state` wrote; raises StoreError where there is none."""
    import zarr

    try:
        group = zarr.open_group(store, mode="r")
        attrs: dict[str, Any] = dict(group.attrs)
        arrays = {name: np.asarray(array[:]) for name, array in group.arrays()}
    except Exception as error:  # whatever the storage below raises, the way out is the same
        raise StoreError(f"{store} holds no state of a stream that can be read ({error})") from error
    if attrs.pop("format", None) != _FORMAT:
        raise StoreError(f"{store} holds no state of a stream: give what its save() wrote")
    try:
        cuts = []
        number: int = attrs.pop("cuts")
        pulled: tuple[Pulled, ...] = ()
        for i in range(number + ("pulled_center" in arrays)):
            last = arrays[f"cut_{i}_center"]
            cuts.append(Cut(arrays[f"cut_{i}_mean"], arrays[f"cut_{i}_lens"], last[:-1], float(last[-1])))
        if len(cuts) > number:
            pulled = (Pulled(cuts.pop(), arrays["pulled_center"]),)
        factor = None
        if "root" in arrays:
            factor = Factor(float(arrays["numbers"][0]), arrays["mean"], arrays["root"], float(arrays["numbers"][1]))
        sample = Reservoir(arrays["keys"], arrays["rows"])
        return StreamState(**attrs, sample=sample, factor=factor, cuts=tuple(cuts), pulled=pulled)
    except (KeyError, TypeError) as error:
        raise StoreError(f"{store}: a part of the state is missing ({error})") from error
