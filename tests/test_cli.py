"""The command: what a newcomer types, what it answers, and what it says when something is wrong."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.console import Pace, PlainLines
from pipeline.errors import ConvergenceError
from pipeline.progress import Progress

COMMANDS = ["fit", "plan", "transform", "inspect", "report", "run", "submit", "jobs", "logs", "cancel", "doctor"]


def pipeline(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args], prog_name="pipeline")


def done(*args: object) -> str:
    """What a command that must succeed prints on stdout."""
    result = pipeline(*args)
    assert result.exit_code == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


def refused(*args: object, code: int = 2) -> str:
    """The one sentence of a command that must fail."""
    result = pipeline(*args)
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("pipeline: ")
    assert "Traceback" not in result.stderr
    return result.stderr


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def field() -> xr.DataArray:
    rng = np.random.default_rng(1)
    data = rng.normal(size=(60, 2)) @ (rng.normal(size=(2, 48)) * [[9], [4]]) + 0.1 * rng.normal(size=(60, 48))
    coords = {
        "time": np.datetime64("2000-01-01", "ns") + np.arange(60) * np.timedelta64(1, "D"),
        "lat": np.linspace(-50.0, 50.0, 6),
        "lon": np.arange(8) * 45.0,
    }
    return xr.DataArray(data.reshape(60, 6, 8), coords, ("time", "lat", "lon"), name="sst", attrs={"units": "K"})


@pytest.fixture
def source(tmp_path: Path, field: xr.DataArray) -> Path:
    path = tmp_path / "sst.zarr"
    names = xr.DataArray(np.full((60, 2), "a"), dims=("time", "word"))
    encoding = {"sst": {"chunks": (16, 6, 4)}}
    field.to_dataset().assign(bad=field.where(field.time > field.time[3]), names=names).to_zarr(
        path, zarr_format=3, encoding=encoding
    )
    return path


@pytest.fixture
def model(tmp_path: Path, source: Path) -> Path:
    path = tmp_path / "eof.zarr"
    done("fit", source, "--variable", "sst", "-n", 2, "--out", path)
    return path


def singular_values(field: xr.DataArray) -> np.ndarray:
    rows = field.values.reshape(len(field), -1)
    return np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)


@pytest.mark.parametrize("args", [["--help"], ["fit", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = """if True:
        import sys
        from pipeline.cli import main
        main(sys.argv[1:], standalone_mode=False)
        print(*{"dask", "xarray", "sklearn", "numpy", "pydantic"} & sys.modules.keys(), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", code, *args], check=True, capture_output=True, text=True)
    assert done.stderr.split() == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert f"Usage: pipeline {command}" in pipeline(command, "--help").stdout


def test_from_a_store_to_a_model_and_a_page(tmp_path: Path, source: Path, field: xr.DataArray) -> None:
    model, scores, page = tmp_path / "out" / "eof.zarr", tmp_path / "pc.zarr", tmp_path / "eof.html"
    assert done("fit", source, "--variable", "sst", "-n", 2, "--out", model) == f"{model}\n"
    stored = xr.open_zarr(model)
    assert stored["components"].dims == ("mode", "lat", "lon")
    np.testing.assert_allclose(stored["singular_values"], singular_values(field)[:2], rtol=1e-9)

    assert done("transform", model, source, "--out", scores) == f"{scores}\n"  # the model knows its variable
    written = xr.open_zarr(scores, consolidated=False)["scores"]
    assert (written.dims, written.shape) == (("time", "mode"), (60, 2))
    np.testing.assert_array_equal(written["time"], field["time"])
    np.testing.assert_allclose(np.linalg.norm(written, axis=0), stored["singular_values"], rtol=1e-7)

    words = done("inspect", model)
    assert "60" in words
    assert "48 (lat 6 x lon 8)" in words
    facts = json.loads(done("inspect", model, "--json"))
    assert facts["features"] == {"lat": 6, "lon": 8}
    assert [m["mode"] for m in facts["modes"]] == [1, 2]
    assert facts["modes"][1]["cumulative_ratio"] > 0.99

    assert done("report", model, "--scores", scores, "--out", page) == f"{page}\n"
    assert page.read_text().lstrip().lower().startswith("<!doctype html")


def test_options_reach_the_model(tmp_path: Path, source: Path, field: xr.DataArray) -> None:
    out = tmp_path / "m.zarr"
    options = ["--select", "time=10:50", "--select", "lat=-30.0:50.0", "--select", "lon=2:6", "--no-center"]
    done("fit", source, "--variable", "sst", "-n", 3, "--solver", "gram", "--seed", 5, *options, "--out", out)
    rows = field[10:50, 1:, 2:6].values.reshape(40, -1)
    stored = xr.open_zarr(out)
    np.testing.assert_allclose(stored["singular_values"], np.linalg.svd(rows, compute_uv=False)[:3], rtol=1e-9)
    assert stored["components"].shape == (3, 5, 4)
    dates = ["--select", "time=2000-01-11:2000-02-19", "--weights", "coslat", "--scale", "std"]
    done("fit", source, "--variable", "sst", "-n", 0.5, *dates, "--overwrite", "--out", out)
    stored = xr.open_zarr(out)
    assert stored.attrs["n_samples"] == 40
    assert {"scale", "weights"} <= set(stored)


def test_fit_writes_scores_too(tmp_path: Path, source: Path) -> None:
    model, scores = tmp_path / "m.zarr", tmp_path / "s.zarr"
    args = ["fit", source, "--variable", "sst", "-n", 2, "--out", model, "--scores", scores]
    assert done(*args).split() == [str(model), str(scores)]
    assert xr.open_zarr(scores, consolidated=False)["scores"].shape == (60, 2)
    assert "exists" in refused(*args)
    done(*args, "--overwrite")


def test_plan_says_what_it_takes_and_runs_nothing(tmp_path: Path, source: Path) -> None:
    before = contents(tmp_path)
    assert "gram" in done("plan", source, "--variable", "sst", "-n", 2)
    facts = json.loads(done("plan", source, "--variable", "sst", "-n", 2, "--json"))
    assert {"solver", "why", "passes", "bytes_read", "peak_memory", "blocks_kept"} <= facts.keys()
    assert contents(tmp_path) == before


def test_a_job_file_does_all_at_once(tmp_path: Path, source: Path) -> None:
    job, out = tmp_path / "job.yaml", tmp_path / "out"
    job.write_text(
        f"name: Sea surface\nsource: {{path: {source}, variable: sst, weights: coslat}}\nmodel: {{n_components: 2}}\n"
        f"output: {{model: {out}/m.zarr, scores: {out}/s.zarr, report: {out}/r.html}}\n"
    )
    assert done("run", job).split() == [f"{out}/{name}" for name in ("m.zarr", "s.zarr", "r.html")]
    assert "Sea surface" in (out / "r.html").read_text()
    assert "exists" in refused("run", job)
    done("run", job, "--overwrite")


def test_inspect_is_not_cut_in_a_pipe(model: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "inspect", str(model)]
    words = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "COLUMNS": "20"})
    assert "\x1b" not in words.stdout
    assert "…" not in words.stdout
    assert [line for line in words.stdout.splitlines() if "mode" in line and "sin angle" in line]
    assert words.stderr == ""


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def test_a_running_scheduler_gives_the_same(tmp_path: Path, source: Path, scheduler: str, model: Path) -> None:
    out, scores = tmp_path / "m.zarr", tmp_path / "s.zarr"
    done("fit", source, "--variable", "sst", "-n", 2, "--out", out, "--scheduler", scheduler)
    xr.testing.assert_allclose(xr.open_zarr(out), xr.open_zarr(model), rtol=1e-9)
    done("transform", out, source, "--variable", "sst", "--out", scores, "--scheduler", scheduler)
    assert xr.open_zarr(scores, consolidated=False)["scores"].shape == (60, 2)
    done("plan", source, "--variable", "sst", "-n", 2, "--scheduler", scheduler)
    assert "NaN" in refused(
        "fit", source, "--variable", "bad", "-n", 2, "--out", tmp_path / "x", "--scheduler", scheduler
    )


def test_the_scheduler_that_dask_is_told(tmp_path: Path, source: Path, scheduler: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "fit",
        source,
        "--variable",
        "sst",
        "-n",
        "2",
        "--out",
        tmp_path / "m",
    ]
    env = {**os.environ, "DASK_SCHEDULER_ADDRESS": scheduler}
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{tmp_path}/m\n"
    env["DASK_SCHEDULER_ADDRESS"] = "nonsense"
    ended = subprocess.run([*map(str, command), "--overwrite"], capture_output=True, text=True, env=env)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "nonsense does not answer" in ended.stderr


WRONG = {
    "no such path": (["nowhere.zarr"], "does not exist"),
    "a group of several": (["sst.zarr"], "name one or more"),
    "not a store": (["text.txt"], "text.txt"),
    "no such variable": (["sst.zarr", "--variable", "sts"], "no variable 'sts'"),
    "no such sample dim": (["sst.zarr", "--variable", "sst", "--sample-dim", "day"], "no dim 'day'"),
    "no such dim to select": (["sst.zarr", "--variable", "sst", "--select", "day=0:3"], "no dim 'day'"),
    "select without a dim": (["sst.zarr", "--variable", "sst", "--select", "0:3"], "expected DIM=START:STOP"),
    "select without a stretch": (["sst.zarr", "--variable", "sst", "--select", "time=3"], "is '3'"),
    "select nothing": (["sst.zarr", "--variable", "sst", "--select", "time=3:3"], "pipeline: "),
    "strings": (["sst.zarr", "--variable", "names"], "not numbers"),
    "NaN": (["sst.zarr", "--variable", "bad"], "NaN"),
    "no components": (["sst.zarr", "--variable", "sst", "-n", 0], "n_components is 0"),
    "too many components": (["sst.zarr", "--variable", "sst", "-n", 49], "49"),
    "components in words": (["sst.zarr", "--variable", "sst", "-n", "many"], "n_components is 'many'"),
    "a tol beyond a sine": (["sst.zarr", "--variable", "sst", "--tol", 2], "tol is '2'"),
    "no such solver": (["sst.zarr", "--variable", "sst", "--solver", "magic"], "magic"),
    "no such scale": (["sst.zarr", "--variable", "sst", "--scale", "unit"], "scale is 'unit'"),
    "no such weights": (["sst.zarr", "--variable", "sst", "--weights", "sinlat"], "weights is 'sinlat'"),
    "no such limit": (["sst.zarr", "--variable", "sst", "--memory-limit", "much"], "memory_limit is 'much'"),
    "a limit too low": (["sst.zarr", "--variable", "sst", "--memory-limit", "1kB"], "memory"),
    "an output below a file": (["sst.zarr", "--variable", "sst", "--out", "text.txt/model"], "cannot be written"),
    "the source as output": (["sst.zarr", "--variable", "sst", "--out", "sst.zarr", "--overwrite"], "the source"),
    "no model as output": (["sst.zarr", "--variable", "sst", "--out", "other.zarr", "--overwrite"], "not a model"),
    "an output that exists": (["sst.zarr", "--variable", "sst", "--out", "eof.zarr"], "exists"),
    "no scheduler": (["sst.zarr", "--variable", "sst", "--scheduler", "nonsense"], "does not answer"),
    "no such option": (["sst.zarr", "--colour"], "--colour"),
    "a damaged chunk": (["damaged.zarr"], "cannot be read"),
    "half a store": (["half.zarr"], "half.zarr"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence(
    tmp_path: Path, source: Path, model: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("no numbers")
    zarr.save_array("other.zarr", np.ones((4, 3)))
    zarr.create_array("damaged.zarr", data=np.random.default_rng(0).normal(size=(40, 6)), chunks=(8, 6))
    (tmp_path / "damaged.zarr" / "c" / "2" / "0").write_bytes(b"no chunk")
    (tmp_path / "half.zarr" / "sst").mkdir(parents=True)
    before = contents(tmp_path)
    args, sentence = WRONG[case]
    defaults = [a for pair in (["-n", 2], ["--out", "new.zarr"]) if pair[0] not in args for a in pair]
    assert sentence in refused("fit", *args, *defaults)
    assert contents(tmp_path) == before


def test_a_scheduler_that_is_silent(tmp_path: Path, source: Path) -> None:
    sentence = refused(
        "fit", source, "--variable", "sst", "-n", 2, "--out", tmp_path / "m", "--scheduler", "tcp://127.0.0.1:9"
    )
    assert "tcp://127.0.0.1:9 does not answer" in sentence
    assert not (tmp_path / "m").exists()


def test_wrong_input_of_the_other_commands(tmp_path: Path, source: Path, model: Path) -> None:
    job, out = tmp_path / "job.yaml", tmp_path / "out"
    job.write_text(f"source:\n  path: {source}\nmodle:\n  n_components: 2\noutput:\n  model: {out}\n")
    before = contents(tmp_path)
    assert f"{job} line 3: unknown key 'modle'; did you mean 'model'?" in refused("run", job)
    assert "cannot be read" in refused("run", tmp_path / "no.yaml")
    assert "does not exist" in refused("inspect", tmp_path / "no.zarr")
    assert "not a model" in refused("inspect", source)
    assert "not a model" in refused("report", source, "--out", out)
    assert "holds no scores" in refused("report", model, "--out", out, "--scores", source)
    assert "exists" in refused("report", model, "--out", job)
    assert "not a model" in refused("transform", source, source, "--out", out)
    assert "exists" in refused("transform", model, source, "--variable", "sst", "--out", job)
    width = refused("transform", model, source, "--variable", "sst", "--select", "lon=0:4", "--out", out)
    assert "48" in width
    assert "24" in width
    assert "NaN" in refused("transform", model, source, "--variable", "bad", "--out", out)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ConvergenceError("no gap after 9 passes"), 1, "no gap after 9 passes"),
        (RuntimeError("two\nlines"), 1, "RuntimeError: two lines; rerun as 'pipeline --debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_other_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int, sentence: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.store.load", fails)
    assert sentence in refused("inspect", tmp_path, code=code)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = pipeline("--debug", "inspect", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_quiet_says_nothing(tmp_path: Path, source: Path) -> None:
    result = pipeline("--quiet", "fit", source, "--variable", "sst", "-n", 2, "--out", tmp_path / "m")
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_log_has_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0.0, 1.0, 6.0, 7.0, 20.0, 24.0])
    lines = PlainLines(Pace(clock=lambda: next(seconds)))
    for number, blocks in [(1, 1), (1, 3), (1, 4), (1, 10), (2, 10)]:
        lines(Progress(number, 2, blocks, 10, blocks * 10**9, 10**10))
    lines.close()
    assert capsys.readouterr().err.splitlines() == [
        "pass 1 of 2: 3/10 blocks, 0.5 GB/s, 0:14 left",
        "pass 1 of 2: 10/10 blocks, 0.5 GB/s, 0:20",
        "pass 2 of 2: 10/10 blocks, 2.5 GB/s, 0:04",
    ]


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.console import showing_progress
    from pipeline.progress import tell

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with showing_progress():
        tell(Progress(1, None, 3, 4, 3, 4))
        tell(Progress(2, None, 4, 4, 4, 4))
    assert "pass 1" in screen.getvalue()
    assert "4/4 blocks" in screen.getvalue()
