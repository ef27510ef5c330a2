"""The store as a machine: whatever is done to it in whatever order, and killed on the way, nothing is lost or mixed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import pipeline.store.head
from pipeline import PCA
from pipeline.errors import ConflictError, StoreError
from pipeline.store import expire, history, load, rollback, save, tag
from pipeline.store.head import Version
from pipeline.subspace import Subspace
from tests.test_store import Faulty

CALLS = ("replace", "rename", "link", "unlink", "open", "mkdir", "fsync")


class Killed(BaseException):
    """The process is gone: no handler of errors runs in it."""


class StoreMachine(RuleBasedStateMachine):
    """A model on a local disk, and what it ought to be."""

    @initialize()
    def begin(self) -> None:
        self.folder, self.rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
        self.model = self.folder / "m.zarr"
        self.patches = [
            mock.patch.object(pipeline.store.head, "GRACE", 0.0),
            mock.patch.object(os, "fsync", return_value=None),
        ]
        for patch in self.patches:
            patch.start()
        self.versions: dict[int, Subspace] = {}
        self.tags: dict[str, int] = {}
        self.head, self.ids = 0, dict[int, str]()
        value = self.fitted()
        self.published(save(value, self.model), value)

    def fitted(self) -> Subspace:
        return PCA(1, solver="gram").fit(self.rng.standard_normal((4, 2))).subspace_

    def teardown(self) -> None:
        for patch in getattr(self, "patches", ()):
            patch.stop()
        shutil.rmtree(getattr(self, "folder", "/nonexistent"), ignore_errors=True)

    def published(self, version: Version, value: Subspace) -> None:
        assert version.number not in self.ids
        self.versions[version.number], self.ids[version.number] = value, version.id
        self.head = version.number

    @rule()
    def fit(self) -> None:
        value = self.fitted()
        self.published(save(value, self.model, overwrite=True), value)

    @rule(forget=st.sampled_from([1.0, 0.5]))
    def update(self, forget: float) -> None:
        value = load(self.model).update(self.rng.standard_normal((3, 2)), forget=forget)
        version = save(value, self.model, overwrite=True, parent=self.ids[self.head], kind="update")
        assert version.parent == self.ids[self.head]
        self.published(version, value)

    @rule()
    def two_writers(self) -> None:
        parent, value = self.ids[self.head], self.fitted()
        self.published(save(value, self.model, overwrite=True, parent=parent), value)
        with pytest.raises(ConflictError):
            save(self.fitted(), self.model, overwrite=True, parent=parent)

    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        assert rollback(self.model, number).number == number
        self.head = number

    @rule(data=st.data(), name=st.sampled_from(["good", "best"]))
    def name_one(self, data: st.DataObject, name: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        tag(self.model, name, number)
        self.tags[name] = number

    @rule(keep=st.integers(1, 3))
    def let_go(self, keep: int) -> None:
        stay = {*sorted(self.versions)[-keep:], self.head, *self.tags.values()}
        gone = {v.number for v in expire(self.model, keep, grace=0.0)}
        assert gone == set(self.versions) - stay
        self.versions = {number: value for number, value in self.versions.items() if number in stay}

    @precondition(lambda self: len(self.ids) < 12)
    @rule(call=st.sampled_from(CALLS), step=st.integers(1, 25), dead=st.booleans())
    def killed(self, call: str, step: int, dead: bool) -> None:
        """An operation of the disk fails, or the process ends there."""
        before, old = history(self.model), self.head

        class Ending(Faulty):
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                try:
                    return super().__call__(*args, **kwargs)
                except OSError as error:
                    if dead and error.errno == errno.EIO and "injected" in str(error):
                        raise Killed from None
                    raise

        value = self.fitted()
        with mock.patch.object(os, call, Ending(getattr(os, call), step)), suppress(StoreError, Killed):
            save(value, self.model, overwrite=True)
        now = history(self.model)
        assert {v.id for v in before.versions} <= {v.id for v in now.versions}
        if now.head == self.ids[old]:
            assert len(now.versions) == len(before.versions)
        else:
            self.published(now.versions[-1], value)

    @invariant()
    def nothing_is_lost_or_mixed(self) -> None:
        if not hasattr(self, "versions"):
            return
        told = history(self.model)
        assert {v.number: v.id for v in told.versions} == {n: self.ids[n] for n in self.versions}
        assert told.head == self.ids[self.head]
        assert {name: self.ids[n] for name, n in self.tags.items()} == dict(told.tags)
        for number, value in self.versions.items():
            assert load(self.model, number) == value
        assert load(self.model) == self.versions[self.head]
        head = xr.open_zarr(self.model)
        np.testing.assert_array_equal(head["components"].values, self.versions[self.head].components)
        assert head.attrs["n_samples"] == self.versions[self.head].n_samples


StoreMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("CHAOS_EXAMPLES", "3")),
    stateful_step_count=10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestStore: Callable[..., Any] = StoreMachine.TestCase
