"""`pipeline serve`, asked over HTTP and in a real browser: every version, hostile and damaged stores, new versions."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from pipeline import PCA, RobustPCA
from pipeline.cli import main
from pipeline.drift import drift
from pipeline.errors import InputError
from pipeline.labels import Labels
from pipeline.report import write_report
from pipeline.store import load, rollback, save, tag
from pipeline.subspace import Subspace
from tests.test_report import GRID, HOSTILE, Tags, line, subspace

uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
from pipeline.report.app import LOCAL, Exhibit, application, is_local, listen  # noqa: E402


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.canvas.DPI", 40)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def small(seed: int = 0, labels: Labels | None = None, **other: Any) -> Subspace:
    """Another subspace of the same features for each seed."""
    found = subspace(labels, k=1, d=5, angle_bounds=np.zeros(1), **other)
    rng = np.random.default_rng(seed)
    near = found.basis + 0.02 * seed * rng.normal(size=found.basis.shape)
    near[:, ~found.present] = 0
    return replace(found, components=np.where(found.present, np.linalg.qr(near.T)[0].T, np.nan))


Get = Callable[..., tuple[int, str, Any]]


@contextmanager
def serving(model: Path | str, hosts: list[str] | None = None, **given: str) -> Iterator[Get]:
    """A server on a free port, and how to ask it: status, text and headers."""
    with listen("127.0.0.1", 0) as door:
        app = application(Exhibit(str(model), **given), LOCAL if hosts is None else hosts)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        base = f"http://127.0.0.1:{door.getsockname()[1]}"

        def get(path: str, method: str = "GET", **headers: str) -> tuple[int, str, Any]:
            request = urllib.request.Request(base + path, method=method, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, answer.read().decode("utf-8", "replace"), answer.headers
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode("utf-8", "replace"), error.headers

        try:
            yield get
        finally:
            server.should_exit = True
            thread.join()


def test_every_version_has_its_page_and_a_new_one_shows_on_reload(tmp_path: Path) -> None:
    model = tmp_path / "m.zarr"
    save(small(), model)
    with serving(model) as get:
        status, page, headers = get("/")
        assert status == 200
        assert "This is the only version so far" in page
        assert "Mode 1 along feature" in page
        assert "pipeline serve MODEL --source SOURCE" in page
        for name in ("Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy", "Cache-Control"):
            assert headers[name]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]

        save(small(1), model, overwrite=True, kind="update")
        tag(model, "good", 1)
        page = get("/")[1]
        assert ">2, the head, made" in page
        assert "largest principal angle of each version to its parent: version 2" in page
        assert "update after 1" in page
        assert ">1, tagged good, made" in get("/versions/good")[1]
        assert get("/versions/1")[1] == get("/versions/1")[1]
        rollback(model, 1)
        assert ">1, the head, tagged good, made" in get("/")[1]

        page = get("/compare?a=1&b=2")[1]
        assert page.count("<img") == 3
        angle = np.degrees(drift(load(model, 1), load(model, 2)).angles[0])
        assert f"{angle:.1f}°" in page
        assert get("/versions/1/figures/mode-1.png")[2]["Content-Type"] == "image/png"

        for path, words in {
            "/versions/9": "has no version &#39;9&#39;: it has 1, 2, good",
            "/versions/" + "9" * 5000: "has no version",
            "/compare?a=1&b=9": "has no version &#39;9&#39;",
            "/versions/1/figures/mode-9.png": "has no picture &#39;mode-9&#39;",
            "/nothing/here": "/nothing/here: not found",
            "/../../etc/passwd": "not found",
        }.items():
            status, page, headers = get(path)
            assert (status, words in page) == (404, True), path
            assert "Content-Security-Policy" in headers
        assert get("/compare?a=1")[0] == 400
        assert get("/", "POST")[0] == 405


def test_what_a_store_says_is_escaped_on_every_page(tmp_path: Path) -> None:
    labels = Labels(
        (HOSTILE.replace("/", "\\"), "lon"),
        (3, 4),
        {"lon": line("lon", 4, units=HOSTILE)},
        {"units": HOSTILE, "long_name": HOSTILE},
    )
    half = "\ud800"  # of a surrogate pair: no UTF-8
    said = {"source": {"name": HOSTILE}, "method": HOSTILE, "plan": half, HOSTILE: {HOSTILE: [HOSTILE]}}
    model = tmp_path / "<img src=x onerror=alert(1)>.zarr"
    for seed in (0, 1):
        save(small(seed, labels, provenance=said), model, overwrite=True, kind=HOSTILE)
    paths = ("/", "/versions/1", "/compare?a=1&b=2", "/versions/%3Cscript%3E", "/%3Cscript%3Ealert(1)", "/compare?a=<b")
    with serving(model) as get:
        for path in paths:
            page = get(path.replace("<", "%3C"))[1]
            tags = Tags(page)
            assert "&lt;" in page
            assert not [tag for tag, _ in tags if tag in ("script", "iframe", "object", "embed", "base")]
            assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
            assert all(str(image["src"]).startswith("data:image/png") for image in tags.images())


def test_a_damaged_store_gives_its_sentence(tmp_path: Path) -> None:
    model = tmp_path / "m.zarr"
    for seed in (0, 1, 2):
        save(small(seed), model, overwrite=True)
    chunk = next(p for p in (model / "versions").glob("2-*/components/**/*") if p.is_file() and p.suffix != ".json")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with serving(model) as get:
        status, page, _ = get("/")
        assert status == 200
        assert "is damaged: chunk components" in page  # in the table, beside the others
        assert get("/versions/2")[0] == get("/compare?a=1&b=2")[0] == 500
        shutil.rmtree(model / "components")
        status, page, _ = get("/")
        assert status == 500
        assert "components" in page
        assert "is missing" in page
        assert "Traceback" not in page
        assert 'href="./versions/1"' in page
        assert get("/versions/1")[0] == 200
        (model / "zarr.json").write_text("{")
        assert (get("/")[0], "is not JSON" in get("/versions/1")[1]) == (500, True)
        shutil.rmtree(model)
        assert "does not exist" in get("/")[1]


def test_what_cannot_be_drawn_or_compared_is_a_sentence(tmp_path: Path) -> None:
    model = tmp_path / "m.zarr"
    save(small(), model)
    save(small(labels=GRID), model, overwrite=True)
    save(small(provenance={"walks": "no table"}), model, overwrite=True)
    with serving(model) as get:
        assert get("/versions/2")[0] == 200
        status, page, _ = get("/compare?a=1&b=2")
        assert (status, "5 and 240 features" in page) == (400, True)
        status, page, _ = get("/")
        assert (status, "cannot be shown" in page) == (500, True)


def test_only_this_machine_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m.zarr"
    save(small(), model)
    for hosts, status in ((None, 400), (["*"], 200)):
        with serving(model, hosts) as get:
            assert get("/", Host="evil.example")[0] == status
            assert get("/", Host="localhost")[0] == 200
    assert [h for h in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "", "10.1.2.3", "host") if is_local(h)] == [
        "localhost",
        "127.0.0.1",
        "::1",
    ]
    bound = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: bound.append(sockets[0].getsockname()))
    run = CliRunner().invoke
    here = run(main, ["serve", str(model), "--port", "0"])
    assert (here.exit_code, here.stderr, bound[0][0]) == (0, "", "127.0.0.1")
    assert here.stdout == f"http://127.0.0.1:{bound[0][1]}/\n"
    anywhere = run(main, ["serve", str(model), "--port", "0", "--host", "0.0.0.0"])
    assert anywhere.exit_code == 0
    assert "no password" in anywhere.stderr


def test_wrong_commands_end_in_a_sentence(tmp_path: Path) -> None:
    model, other = tmp_path / "m.zarr", tmp_path / "x.zarr"
    save(small(), model)
    zarr.create_array(other, data=np.zeros((4, 3)))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, said in {
            (str(tmp_path / "no.zarr"),): "does not exist",
            (str(other),): "is not a model",
            (str(model), "--port", port): f"cannot listen on 127.0.0.1:{port} (Address already in use)",
            (str(model), "--host", "no.such.host.invalid"): "cannot listen on no.such.host.invalid",
            (str(model), "--host", "198.51.100.7"): "cannot listen on 198.51.100.7",
            (str(model), "--port", "70000"): "70000",
            (str(model), "--port", "0", "--scores", str(other)): "holds no scores",
            (str(model), "--port", "0", "--source", str(other)): "features",
            (str(model), "--scores", "a", "--source", "b"): "choose one",
        }.items():
            done = CliRunner().invoke(main, ["serve", *words])
            assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
            assert done.stderr.strip().count("\n") == 0
            assert done.stdout == ""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A matrix with five rows that are far off, and where it is stored."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2)) @ rng.normal(size=(2, 8)) + 0.1 * rng.normal(size=(100, 8))
    x[:5] += 20 * np.eye(8)[:5]
    place = tmp_path_factory.mktemp("rows") / "x.zarr"
    zarr.create_array(place, data=x)
    return place, x


@pytest.mark.parametrize("method", [PCA(2), RobustPCA(2, eps=0.1)], ids=["PCA", "RobustPCA"])
def test_scores_and_the_outlier_map(method: Any, rows: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    place, x = rows
    model, file = tmp_path / "m.zarr", tmp_path / "r.html"
    fitted = method.fit(x)
    save(fitted.subspace_, model)
    with serving(model) as get:
        page = get("/")[1]
        # A robust model keeps the distances of some rows of its fit.
        assert ("Outlier map" in page) == isinstance(method, RobustPCA)
        assert ("the promise of the method holds" in page) == isinstance(method, RobustPCA)
    with serving(model, source=str(place)) as get:
        page = get("/")[1]
        save(fitted.subspace_.truncate(1), model, overwrite=True)
        assert "Score of mode 1 along" in get("/")[1]
    assert "Score of mode 2 along" in page
    beyond = int(re.search(r"Dots: (\d+) of 100 rows", page)[1])  # type: ignore[index]
    if isinstance(method, RobustPCA):
        assert beyond == int((fitted.distances(x) > fitted.cutoffs_).any(axis=1).sum())
        assert 5 <= beyond <= 12
    done = CliRunner().invoke(main, ["report", str(model), "--out", str(file), "--source", str(place)])
    assert done.exit_code == 0, done.stderr
    written = file.read_text("utf-8")
    for words in ("Score of mode 1 along", "Dots: ", "Versions and drift", "Line: largest principal angle"):
        assert words in written
    assert "<form" not in written
    assert not [a["href"] for _, a in Tags(written) if a.get("href") not in (None, "data:,")]


def test_stored_scores_stay_with_their_version(rows: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    place, x = rows
    model, scores = tmp_path / "m.zarr", tmp_path / "s.zarr"
    fitted = PCA(2).fit(x)
    save(fitted.subspace_, model)
    fitted.transform(str(place), out=scores)
    with serving(model, scores=str(scores)) as get:
        assert "Score of mode 2" in get("/")[1]
        save(PCA(2).fit(x[10:]).subspace_, model, overwrite=True)
        assert "Score of mode 2" not in get("/")[1]
        assert "Score of mode 2" in get("/versions/1")[1]


def test_drift_of_complex_modes_is_free_of_phase() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)) + 1j * rng.normal(size=(60, 5)) * [5, 4, 3, 2, 1]
    found = PCA(3).fit(x).subspace_
    turned = replace(found, components=found.components * np.exp(1j * np.array([[0.3], [2.0], [-1.0]])))
    for moved in (drift(found, turned), drift(found, found)):
        assert moved.modes.max() < 1e-7
        assert moved.outside < 1e-12


def test_a_port_that_is_free_listens_and_a_taken_one_does_not() -> None:
    with listen("localhost", 0) as door, pytest.raises(InputError, match="--port"):
        listen("localhost", door.getsockname()[1])


def test_a_real_browser_shows_it(tmp_path: Path, browser: Any, picture: Callable[[str], None]) -> None:
    """The command as people run it, and the file: two widths, links and the form; nothing that a name says runs."""
    wait = pytest.importorskip("selenium.webdriver.support.wait")
    model, bite = tmp_path / "m.zarr", "<script>window.bitten=1</script><img src=x onerror='window.bitten=1'>"
    grid = replace(GRID, attrs={"units": "K", "long_name": bite})
    for seed in (0, 1):
        save(small(seed, grid, land=True, provenance={"source": bite}), model, overwrite=True)
    file = write_report(load(model), tmp_path / "r.html", scores=np.arange(50.0)[:, None], model=model)
    server = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "serve", str(model), "--port", "0"], stdout=subprocess.PIPE, text=True
    )

    def looked_at(images: int) -> None:
        deadline = time.monotonic() + 60
        while browser.execute_script("return document.readyState") != "complete" and time.monotonic() < deadline:
            time.sleep(0.05)
        widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
        assert (len(widths), min(widths) > 0) == (images, True), browser.current_url
        assert browser.execute_script("return [...document.images].every(i => i.alt.length > 20)")
        assert browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth") <= 0
        assert (
            browser.execute_script("return getComputedStyle(document.querySelector('.promise, dl')).margin") != "16px"
        )
        assert browser.execute_script("return window.bitten") is None
        assert browser.get_log("browser") == []

    try:
        browser.set_window_size(500, 900)
        browser.get(file.as_uri())
        looked_at(6)
        picture("report-narrow")
        assert server.stdout is not None
        browser.get(server.stdout.readline().strip())
        looked_at(5)
        picture("page-narrow")
        assert bite in browser.find_element("tag name", "h1").text
        browser.set_window_size(1280, 900)
        browser.find_element("css selector", "nav a").click()
        looked_at(5)
        picture("version")
        assert browser.current_url.endswith("/versions/1")
        browser.find_element("css selector", "form button").click()
        wait.WebDriverWait(browser, 60).until(lambda b: "/compare" in b.current_url)
        looked_at(3)
        picture("comparison")
        assert browser.current_url.endswith("/compare?a=1&b=2")
        browser.back()
        browser.find_element("css selector", "figure a").click()
        assert browser.current_url.endswith("/versions/1/figures/scree.png")
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0
