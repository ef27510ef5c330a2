"""Kinds of clusters: what each asks for, what it refuses, and that no secret gets into a file."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.errors import InputError, PlanError
from pipeline.jobs.cluster import cluster_client
from pipeline.jobs.clusters import KINDS, load_cluster, read_cluster
from pipeline.jobs.spec import JobSpec, parse_job
from tests.servers import free_port

CONF = Path(__file__).parents[1] / "conf" / "clusters"
JOB: dict[str, Any] = {"source": {"path": "x"}, "output": {"model": "y"}}
QUEUE = {"jobs": 2, "cores": 4, "memory": "8GiB", "walltime": "01:00:00"}
POD = {"kind": "kubernetes", "name": "a", "image": "b", "workers": 2}


def test_every_kind_has_a_file() -> None:
    assert {load_cluster(str(path)).kind for path in CONF.glob("*.yaml")} == set(KINDS)


def test_a_job_names_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONF.parents[1])
    there = parse_job({**JOB, "cluster": "slurm"})
    assert there.cluster == parse_job({**JOB, "cluster": "conf/clusters/slurm.yaml"}).cluster
    assert JobSpec.model_validate_json(there.model_dump_json()) == there
    with pytest.raises(InputError, match=r"no cluster file cloud.*in conf/clusters are address, gateway"):
        parse_job({**JOB, "cluster": "cloud"})
    (tmp_path / "c.yaml").write_text("kind: slurm\njobs: 2\ncore: 4\n")
    with pytest.raises(InputError, match=r"c.yaml line 3: unknown key 'core'; did you mean 'cores'\?"):
        parse_job({**JOB, "cluster": str(tmp_path / "c.yaml")})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "give either address"),
        ({"kind": "slrum"}, r"cluster.kind is 'slrum'; did you mean 'slurm'\?"),
        ({"kind": "cloud"}, "known are local, address, slurm, pbs, kubernetes, gateway"),
        ({"kind": "slurm", **QUEUE, "jobs": 0}, "cluster.jobs is 0; expected an int of at least 1"),
        ({"kind": "pbs", "jobs": 1, "cores": 1}, "cluster.memory is missing; expected bytes of a job"),
        ({**POD, "resources": {"limit": {}}}, "cluster.resources"),
        ({"kind": "gateway", "address": "x", "workers": 1, "auth": "guess"}, "expected basic, kerberos or jupyterhub"),
        ({"address": "tcp://h:1", "tls": {"ca": "a", "cert": "b", "key": "c"}}, "tls is for an address such as tls://"),
        ({"address": "tls://h:1", "tls": {"ca": "a", "cert": "b"}}, "cluster.tls.key is missing; expected the path"),
        ({"address": "tls://h:1", "tls": {"ca": "a", "cert": "b", "kee": "c"}}, "unknown key 'kee' in cluster.tls"),
        ({"kind": "gateway", "address": "x", "workers": 1, "password": "y"}, "cluster.password is a secret"),
        ({"kind": "gateway", "address": "https://me:you@x", "workers": 1}, "cluster.address is a secret"),
        ({**POD, "env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "AWS_SECRET_ACCESS_KEY is a secret"),
        ({**POD, "env": [{"name": "API_TOKEN", "value": "x"}]}, "cluster.env.0.value is a secret"),
        ({"kind": "slurm", **QUEUE, "options": {"job_script_prologue": ["export DB_PASSWORD=x"]}}, "is a secret"),
        ({"address": "tls://h:1", "tls": {"ca": "a", "cert": "b", "key": "-BEGIN PRIVATE KEY-----"}}, "is a secret"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        parse_job({**JOB, "cluster": settings})
    assert "\n" not in str(caught.value)


def test_what_only_points_to_a_secret_is_taken() -> None:
    key = {"name": "API_TOKEN", "valueFrom": {"secretKeyRef": {"name": "tokens", "key": "api"}}}
    read_cluster({**POD, "env": [key]})
    read_cluster({"kind": "slurm", **QUEUE, "options": {"job_script_prologue": ["export TOKEN=$OTHER_TOKEN"]}})


def shown(settings: dict[str, Any], folder: Path) -> str:
    (folder / "c.yaml").write_text(yaml.safe_dump(settings))
    result = CliRunner().invoke(main, ["cluster", str(folder / "c.yaml")])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("slurm", ["#SBATCH --cpus-per-task=4", "#SBATCH --mem=8G", "#SBATCH -t 01:00:00", "#SBATCH -p short"]),
        ("pbs", ["#PBS -l select=1:ncpus=4:mem=8192MB", "#PBS -l walltime=01:00:00", "#PBS -q short"]),
    ],
)
def test_the_script_of_a_batch_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lines: list[str]
) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.chdir(tmp_path)
    settings = {"kind": kind, **QUEUE, "processes": 2, "queue": "short", "options": {"interface": "lo"}}
    script = shown(settings, tmp_path)
    for line in lines:
        assert line in script.splitlines()
    assert "tls://127.0.0.1" in script
    assert "--nthreads 2" in script
    assert "--nworkers 2" in script
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]  # the certificates are gone with the cluster
    again = {**settings, "options": {"cores": 3}}
    with pytest.raises(InputError, match=r"cluster.options.cores is a key of the cluster itself"):
        read_cluster(again).shown()


def test_workers_of_a_batch_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real scheduler, certificates and workers; only `sbatch` and `scancel` are ours."""
    pytest.importorskip("dask_jobqueue")
    # As the real one does, it keeps a script of its own: that which it was given is soon removed.
    begin = '#!/bin/sh\ncp "$1" script.$$\nsh script.$$ >/dev/null 2>&1 &\necho $! >> "$PIDS"\necho "job $!"\n'
    for name, text in {"sbatch": begin, "scancel": '#!/bin/sh\nkill "$@"\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    monkeypatch.chdir(tmp_path)
    settings = {"kind": "slurm", "jobs": 1, "cores": 1, "memory": "1GB", "options": {"interface": "lo"}}
    with cluster_client(spec=read_cluster(settings)) as client:
        assert client is not None
        assert client.scheduler.address.startswith("tls://")
        assert client.submit(sum, (1, 2)).result(timeout=60) == 3
    for pid in (tmp_path / "pids").read_text().split():
        subprocess.run(["kill", pid], check=False, capture_output=True)


def test_the_manifest_of_kubernetes(tmp_path: Path) -> None:
    pytest.importorskip("dask_kubernetes")
    settings = {**POD, "namespace": "n", "resources": {"limits": {"memory": "4Gi"}}, "env": {"OMP_NUM_THREADS": "1"}}
    made = yaml.safe_load(shown(settings, tmp_path))
    assert (made["kind"], made["metadata"]) == ("DaskCluster", {"name": "a", "namespace": "n"})
    worker, scheduler = (made["spec"][who]["spec"]["containers"][0] for who in ("worker", "scheduler"))
    assert made["spec"]["worker"]["replicas"] == 2
    assert (worker["args"][:2], scheduler["args"][:2]) == (["dask", "worker"], ["dask", "scheduler"])
    assert made["spec"]["idleTimeout"] == 600
    assert worker["image"] == scheduler["image"] == "b"
    assert worker["resources"] == {"limits": {"memory": "4Gi"}}
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in worker["env"]


@pytest.mark.parametrize(
    "more", [{}, {"resources": {"limits": {"memory": "4Gi"}}, "env": {"A": "1"}, "namespace": "n"}]
)
def test_the_operator_takes_the_manifest(more: dict[str, Any], tmp_path: Path) -> None:
    """It fits the definition that comes with the operator, which drops whatever it does not know."""
    operator, jsonschema = pytest.importorskip("dask_kubernetes.operator"), pytest.importorskip("jsonschema")
    crds = Path(operator.__file__).parent / "deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
    (version,) = yaml.safe_load(crds.read_text())["spec"]["versions"]
    checked = jsonschema.Draft7Validator(closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))
    made = without_nulls(yaml.safe_load(shown({**POD, **more}, tmp_path)))
    assert made["apiVersion"].endswith(f"/{version['name']}")
    assert not [error.message for error in checked.iter_errors(made["spec"])]
    made["spec"]["worker"]["spec"]["containers"][0]["imagine"] = "b"
    assert [list(error.path)[-1] for error in checked.iter_errors(made["spec"])] == [0]


def without_nulls(made: Any) -> Any:
    """As Kubernetes takes it: what is null is not there."""
    if isinstance(made, list):
        return [without_nulls(part) for part in made]
    return {k: without_nulls(v) for k, v in made.items() if v is not None} if isinstance(made, dict) else made


def closed(schema: Any) -> Any:
    """A schema of Kubernetes that takes no other keys than it names."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(part) for key, part in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema["properties"].keys() != {"type"}
    if schema.get("type") == "object" and named and "x-kubernetes-preserve-unknown-fields" not in schema:
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.slow
def test_workers_of_a_gateway(tmp_path: Path) -> None:
    """A real gateway, whose clusters are processes of this machine."""
    pytest.importorskip("dask_gateway")
    pytest.importorskip("dask_gateway_server")
    address, inside = (f"127.0.0.1:{free_port()}" for _ in range(2))
    here = Path(sys.executable).parent
    (tmp_path / "gateway.py").write_text(
        "c.DaskGateway.backend_class = 'dask_gateway_server.backends.local.UnsafeLocalBackend'\n"
        f"c.DaskGateway.address = {inside!r}\n"
        f"c.Proxy.address = {address!r}\n"
        f"c.UnsafeLocalBackend.clusters_directory = {str(tmp_path)!r}\n"
        f"c.ClusterConfig.scheduler_cmd = {[sys.executable, '-m', 'distributed.cli.dask_scheduler']!r}\n"
        f"c.ClusterConfig.worker_cmd = {[sys.executable, '-m', 'distributed.cli.dask_worker']!r}\n"
    )
    command = [str(here / "dask-gateway-server"), "-f", str(tmp_path / "gateway.py")]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    settings = {"kind": "gateway", "address": f"http://{address}", "workers": 1}
    try:
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError), socket.create_connection(address.split(":")):
                break
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        while True:  # the proxy listens before it knows the way to the gateway
            with suppress(PlanError), cluster_client(spec=read_cluster(settings)) as client:
                assert client is not None
                assert client.submit(sum, (1, 2)).result(timeout=120) == 3
                break
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.parametrize(
    ("settings", "module", "extra"),
    [
        ({"kind": "slurm", **QUEUE}, "dask_jobqueue", "jobqueue"),
        (POD, "dask_kubernetes.operator", "kubernetes"),
        ({"kind": "gateway", "address": "http://127.0.0.1:9", "workers": 1}, "dask_gateway", "gateway"),
    ],
)
def test_a_missing_extra_and_what_does_not_answer(
    settings: dict[str, Any], module: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, module, None)
        with (
            pytest.raises(PlanError, match=rf"pip install 'subspace-pipeline\[{extra}\]'"),
            read_cluster(settings).client(),
        ):
            pass
    pytest.importorskip(module)
    if extra == "gateway":
        with pytest.raises(PlanError, match="the gateway cluster cannot be started"), read_cluster(settings).client():
            pass
    if extra == "jobqueue":
        with pytest.raises(InputError, match="ends with the command"), read_cluster(settings).client(stays=True):
            pass
