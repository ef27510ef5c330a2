"""Jobs: what a specification takes and refuses, where outputs may go, which cluster is meant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

from pipeline.errors import InputError, PlanError, StoreError
from pipeline.jobs.cluster import cluster_client
from pipeline.jobs.clusters import read_cluster
from pipeline.jobs.federation import load_federation, load_site
from pipeline.jobs.run import check_outputs, make_estimator, open_source, run_job
from pipeline.jobs.spec import JobSpec, ModelSpec, load_job, parse_job

JOB = """\
source:
  path: sst.zarr
  select:
    time: 10:50
    lat: {start: -5.0, stop: 5.0}
    lon: [1, 2]
model:
  n_components: 3
  tol: 1e-6
output:
  model: eof.zarr
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def test_a_job_reads_as_people_write_it(job_file: Path) -> None:
    job_file.write_text(JOB)
    job = load_job(job_file)
    # YAML 1.1 reads 10:50 as 650 (base 60) and 1e-6 as text.
    assert job.source.indexers() == {"time": slice(10, 50), "lat": slice(-5.0, 5.0), "lon": [1, 2]}
    assert (job.model.n_components, job.model.tol, job.model.estimator) == (3, 1e-6, "PCA")
    assert job == JobSpec.model_validate_json(job.model_dump_json())


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("3:9", slice(3, 9)),
        (":9", slice(None, 9)),
        ("'-9:'", slice(-9, None)),
        ("-5.0:5.0", slice(-5.0, 5.0)),
        ("2000-01-01:2000-02-01", slice("2000-01-01", "2000-02-01")),
        ("2000-01-01T06:00:2000-02-01T06:00", slice("2000-01-01T06:00", "2000-02-01T06:00")),
        ("{start: 2000-01-01}", slice("2000-01-01", None)),
        ("[3, 1, 2]", [3, 1, 2]),
    ],
)
def test_a_stretch_is_positions_or_labels(job_file: Path, written: str, meant: object) -> None:
    job_file.write_text(JOB.replace("10:50", written))
    indexers = load_job(job_file).source.indexers()
    assert indexers is not None
    assert indexers["time"] == meant


WRONG = [
    ("n_components", "n_component", 8, "unknown key 'n_component' in model; did you mean 'n_components'?"),
    ("model:\n  n_c", "modle:\n  n_c", 7, "unknown key 'modle'; did you mean 'model'?"),
    ("output:\n", "outptu:\n", 10, "unknown key 'outptu'; did you mean 'output'?"),
    ("output:", "7: x\noutput:", 10, "unknown key '7'; known are name, source, model, output, cluster"),
    (": 3", ": 0", 8, "model.n_components is 0; expected an int of at least 1"),
    (": 3", ": 1.5", 8, "model.n_components is 1.5"),
    (": 3", ": many", 8, "model.n_components is 'many'"),
    (": 3", ": true", 8, "model.n_components is True"),
    ("1e-6", "2", 9, "model.tol is 2; expected a number between 0 and 1"),
    ("tol: 1e-6", "scale: unit", 9, "model.scale is 'unit'; expected std, genotype or mad"),
    ("tol: 1e-6", "memory_limit: 2 gigs", 9, "model.memory_limit is '2 gigs'"),
    ("tol: 1e-6", "memory_limit: 0", 9, "model.memory_limit is 0"),
    ("tol: 1e-6", "n_components: 4", 9, "key 'n_components' is there twice"),
    ("  tol: 1e-6", "   tol: 1e-6", 9, "mapping values are not allowed here"),
    ("tol: 1e-6", "tol: [", 11, "expected"),
    ("  tol: 1e-6", "  center: true\n  estimator: TruncatedSVD", 7, "a TruncatedSVD never centres"),
    ("10:50", "1:2:3", 4, "source.select.time is '1:2:3'; expected DIM: 'START:STOP'"),
    ("10:50", "'10'", 4, "source.select.time is '10'"),
    ("start:", "strat:", 5, "source.select.lat is {"),
    ("[1, 2]", "[1, b]", 6, "source.select.lon is [1, 'b']"),
    ("  path: sst.zarr\n", "", 1, "source.path is missing; expected the path or URL of a Zarr array or group"),
    ("output:\n  model: eof.zarr\n", "", 1, "output is missing"),
    ("output:", "cluster: 3\noutput:", 10, "cluster is 3; expected a section of keys"),
    ("output:", "cluster: {}\noutput:", 10, "give either address"),
    ("output:", "cluster: {address: a, workers: 1}\noutput:", 10, "give either address"),
    ("output:", "cluster: {address: a, memory_limit: 1}\noutput:", 10, "leave them out with address"),
    ("output:", "cluster: {worker: 1}\noutput:", 10, "unknown key 'worker' in cluster; did you mean 'workers'?"),
]


@pytest.mark.parametrize(("old", "new", "line", "sentence"), WRONG, ids=[w[3][:40] for w in WRONG])
def test_what_is_wrong_is_named_with_its_line(job_file: Path, old: str, new: str, line: int, sentence: str) -> None:
    assert old in JOB
    job_file.write_text(JOB.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_job(job_file)
    assert str(caught.value).startswith(f"{job_file} line {line}: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"# nothing yet\n", "is empty"),
        (b"- a\n", "holds no keys"),
        (b"\xff\xfe\x80", "is no text file"),
        (b"a: \x00", "is no YAML"),
        (b"!!python/object:os.x {}", "line 1: could not determine a constructor"),
        (b"source: &a {path: *a}", "line 1: source.path is"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_job_file(job_file: Path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        job_file.write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        load_job(job_file)
    assert "\n" not in str(caught.value)


LOADERS = {"federation.yaml": load_federation, "site.yaml": load_site}


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "conf").glob("*.yaml")), ids=lambda p: p.name)
def test_the_jobs_of_the_repository_are_valid(path: Path) -> None:
    assert LOADERS.get(path.name, load_job)(str(path))


def test_settings_from_python_are_checked_alike() -> None:
    with pytest.raises(InputError, match=r"^model.n_components is 0; expected"):
        parse_job({"source": {"path": "a"}, "model": {"n_components": 0}, "output": {"model": "b"}})


def test_the_estimator_gets_the_parameters() -> None:
    pca = make_estimator(ModelSpec(n_components=2, center=False, scale="std", tol=1e-3, random_state=7))
    assert (pca.n_components, pca.center, pca.scale, pca.tol, pca.random_state) == (2, False, "std", 1e-3, 7)
    assert type(make_estimator(ModelSpec(estimator="TruncatedSVD", n_components=2))).__name__ == "TruncatedSVD"


def test_outputs_are_checked_before_any_work(tmp_path: Path) -> None:
    data, there, new = (str(tmp_path / name) for name in ("data.zarr", "there", "new"))
    (tmp_path / "data.zarr").mkdir()
    (tmp_path / "there").write_text("old")
    check_outputs([new, None, str(tmp_path / "a" / "b")], data)
    check_outputs([there], data, overwrite=True)
    check_outputs(["s3://bucket/model"], data)
    with pytest.raises(StoreError, match="exists already"):
        check_outputs([there], data)
    with pytest.raises(InputError, match="it holds the source"):
        check_outputs([data], data, overwrite=True)
    with pytest.raises(InputError, match="it holds the source"):
        check_outputs([str(tmp_path)], data, overwrite=True)
    with pytest.raises(InputError, match="it holds the output"):
        check_outputs([new, new], data)
    with pytest.raises(StoreError, match="cannot be written"):
        check_outputs([str(Path(there) / "below-a-file")], data)
    for product in ("scores", "report"):
        job = {"source": {"path": data}, "model": {"n_components": 1}, "output": {"model": new, product: "s3://b/p"}}
        with pytest.raises(InputError, match="go to a local disk"):
            run_job(parse_job(job))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.zarr", "there"]


@pytest.fixture
def no_cluster_configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with dask.config.set({"scheduler-address": None}):
        yield


@pytest.mark.usefixtures("no_cluster_configured")
def test_without_a_cluster_there_is_no_client() -> None:
    with cluster_client() as client:
        assert client is None


@pytest.mark.usefixtures("no_cluster_configured")
def test_local_processes_and_the_ways_to_name_a_scheduler(capfd: pytest.CaptureFixture[str]) -> None:
    with cluster_client(spec=read_cluster({"workers": 1})) as outer:
        assert outer is not None
        address = outer.scheduler.address
        with cluster_client(address) as client:
            assert client is not None
            assert client.submit(sum, (1, 2)).result() == 3
        with dask.config.set({"scheduler-address": address}), cluster_client() as client:
            assert client is not None
            assert client.scheduler.address == address
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("address", ["nonsense", "bogus://somewhere:1", "tcp://no.such.host.invalid:1"])
def test_a_scheduler_that_cannot_be_reached(address: str) -> None:
    with pytest.raises(PlanError, match=f"the scheduler at {address} does not answer"), cluster_client(address):
        pass


@pytest.fixture
def field(tmp_path: Path) -> xr.DataArray:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(40, 3)) @ (rng.normal(size=(3, 20)) * [[9], [4], [2]]) + 0.1 * rng.normal(size=(40, 20))
    array = xr.DataArray(
        data.reshape(40, 4, 5), dims=("time", "lat", "lon"), name="sst", coords={"lat": np.arange(4.0)}
    )
    array.chunk(time=7).to_dataset().to_zarr(tmp_path / "sst.zarr", zarr_format=3)
    return array


def test_a_whole_job(tmp_path: Path, field: xr.DataArray) -> None:
    out = {"model": str(tmp_path / "eof.zarr"), "scores": str(tmp_path / "pc.zarr")}
    job = parse_job(
        {
            "source": {"path": str(tmp_path / "sst.zarr"), "select": {"lat": "1.0:3.0"}},
            "model": {"n_components": 2},
            "output": out,
        }
    )
    assert open_source(job.source).shape == (40, 15)
    result = run_job(job)
    rows = field.sel(lat=slice(1.0, 3.0)).values.reshape(40, 15)
    expected = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)[:2]
    np.testing.assert_allclose(result.subspace.singular_values, expected, rtol=1e-9)
    scores = xr.open_zarr(out["scores"], consolidated=False)["scores"]
    assert scores.dims == ("time", "mode")
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0), expected, rtol=1e-7)
    assert (result.model, result.scores, result.report) == (out["model"], out["scores"], None)
    with pytest.raises(StoreError, match="exists already"):
        run_job(job)
