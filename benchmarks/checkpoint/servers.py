"""The servers of these benchmarks: begun for one turn, gone with all data afterwards."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.ports import free_ports
from dev.processes import Processes
from dev.s3 import S3Endpoint, S3Server, serves


@contextmanager
def sink(size: int = 0) -> Iterator[S3Endpoint]:
    """Forgets what it is given: what is left is the clients' time. `size`: bytes that every object is said to have; 0:
    registers and metadata are kept."""
    command = [sys.executable, "-m", "benchmarks.checkpoint.sink", f"--size={size}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield S3Endpoint(server.stdout.readline().strip(), "key", "secret")
        finally:
            server.kill()


@contextmanager
def versitygw() -> Iterator[S3Endpoint]:
    """A real server that costs little."""
    program = shutil.which("versitygw")
    if program is None:
        raise FileNotFoundError(
            "versitygw is not on PATH: go install github.com/versity/versitygw/cmd/versitygw@v1.8.0, or take "
            "--server seaweedfs"
        )
    with tempfile.TemporaryDirectory() as folder:
        data, processes = Path(folder) / "data", Processes(Path(folder) / "processes")
        data.mkdir()
        port = free_ports(1)[0]
        endpoint = S3Endpoint(f"http://127.0.0.1:{port}", "everstep", "everstep-benchmark")
        arguments = ["--port", f"127.0.0.1:{port}", "--access", endpoint.access_key, "--secret", endpoint.secret_key]
        processes.start("versitygw", [program, *arguments, "--quiet", "--keep-alive", "posix", str(data)])
        try:
            client = endpoint.client()
            processes.wait("versitygw", lambda: serves(client), seconds=30)
            yield endpoint
        finally:
            processes.stop(["versitygw"], grace=0)


@contextmanager
def seaweedfs() -> Iterator[S3Endpoint]:
    with tempfile.TemporaryDirectory() as folder:
        server = S3Server(Path(folder) / "s3")
        try:
            yield server.start()
        finally:
            server.remove()


SERVERS = {"versitygw": versitygw, "seaweedfs": seaweedfs}
