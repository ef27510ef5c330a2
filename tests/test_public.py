"""The public face: names, how fast they come, errors, and what notebooks show."""

from __future__ import annotations

import pickle
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import xarray as xr

import pipeline
from pipeline import PCA, TruncatedSVD, open_matrix
from pipeline.errors import (
    ConvergenceError,
    FederationError,
    InputError,
    NonfiniteError,
    PipelineError,
    PlanError,
    StoreError,
)

NAMES = {"Matrix", "PCA", "Subspace", "TruncatedSVD", "errors", "load", "open_matrix", "plan"}
LATER = {"RobustPCA", "FederatedPCA", "Site", "aggregate", "AnomalyDetector"}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_names() -> None:
    assert set(pipeline.__all__) >= NAMES
    assert set(dir(pipeline)) >= NAMES
    for name in pipeline.__all__:
        assert getattr(pipeline, name) is not None
    for name in LATER - set(pipeline.__all__):
        with pytest.raises(AttributeError, match=name):
            getattr(pipeline, name)
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__doc__, name


def test_importing_is_quick_and_light() -> None:
    code = """
import sys, time
start = time.perf_counter()
import pipeline
took = time.perf_counter() - start
heavy = {"dask", "xarray", "sklearn", "zarr", "pandas", "distributed", "matplotlib"} & set(sys.modules)
print(took, sorted(heavy))
"""
    runs = [python(code).split(maxsplit=1) for _ in range(2)]
    assert min(float(took) for took, _ in runs) < 1.0
    assert runs[0][1].strip() == "[]"


def test_who_has_no_cluster_does_not_wait_for_distributed() -> None:
    fit = "import sys, numpy as np, pipeline; pipeline.PCA(2).fit(np.eye(9, 4))"
    assert python(f"{fit}; print('distributed' in sys.modules)").strip() == "False"


def test_a_name_is_found_by_itself() -> None:
    python("import pipeline.errors; pipeline.errors.InputError")
    python("from pipeline import *; PCA, TruncatedSVD, open_matrix, plan, load, Subspace, Matrix, errors.InputError")


@pytest.mark.parametrize("kind", [InputError, PlanError, StoreError, ConvergenceError, FederationError, NonfiniteError])
def test_errors_have_one_base_and_travel(kind: type[Exception]) -> None:
    assert issubclass(kind, PipelineError)
    assert kind.__doc__
    error = kind("what, where and the way out")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))
    assert isinstance(error, ValueError) == (kind in (InputError, NonfiniteError))


def test_an_error_of_accuracy_brings_the_best_answer() -> None:
    X = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32)
    with pytest.raises(ConvergenceError) as caught:
        PCA(3, solver="randomized", tol=1e-12).fit(X)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.subspace == caught.value.subspace
    assert again.subspace.k == 3
    assert "1e-12" in str(again)


class Balance(HTMLParser):
    """Raises where tags are not closed in order; keeps the text."""

    EMPTY = frozenset({"br", "img", "input", "meta", "link", "hr", "line", "rect", "path", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> Balance:
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    return balance


HOSTILE = "<script>alert('x')</script>&\"<b"


@pytest.mark.parametrize("make", [PCA, TruncatedSVD])
def test_notebooks_show_tables(make: Any) -> None:
    X = xr.DataArray(np.random.default_rng(0).normal(size=(30, 20)), dims=(HOSTILE, "x" + HOSTILE), name=HOSTILE)
    matrix = open_matrix(X)
    model = make(n_components=14).fit(matrix)
    for thing in (matrix, matrix.T, model.subspace_, model):
        page = parsed(thing._repr_html_() if callable(thing._repr_html_) else thing._repr_html_)
        assert "alert" not in page.text or "<script>alert" in page.text  # as text, not as a tag
        assert "script" not in page.seen[1:] or thing is model  # scikit-learn's own page has one
    assert HOSTILE in parsed(matrix._repr_html_()).text
    assert "14 components" in parsed(model._repr_html_()).text
    assert "14 components" not in parsed(make(n_components=14)._repr_html_()).text
    bundle = model._repr_mimebundle_()
    assert "14 components" in parsed(bundle["text/html"]).text
    assert bundle["text/plain"] == repr(model)


def test_what_a_hostile_parameter_shows() -> None:
    page = parsed(PCA(n_components=2, solver=HOSTILE)._repr_html_())
    assert page.seen.count("script") == parsed(PCA()._repr_html_()).seen.count("script")


def test_a_constant_matrix_can_be_shown() -> None:
    model = PCA(2).fit(np.ones((4, 3)))
    parsed(model._repr_html_())
    assert "nan" not in parsed(model.subspace_._repr_html_()).text.lower()
