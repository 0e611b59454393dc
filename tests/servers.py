"""Servers on loopback, for tests and benchmarks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Credentials of the server. Processes that a test starts find them in the environment.
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "K",
    "AWS_SECRET_ACCESS_KEY": "S",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class S3Server:
    """A running server: its address and its process id."""

    endpoint: str
    pid: int

    @property
    def port(self) -> int:
        return int(self.endpoint.rsplit(":", 1)[1])

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables that a process needs to use the server."""
        return {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": self.endpoint}


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """Run a SeaweedFS with its data in `folder`; kill it at the end."""
    identity = {
        "name": "a",
        "credentials": [{"accessKey": "K", "secretKey": "S"}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    port = free_port()
    flags = {
        "dir": folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "webdav": "false",
        "master.telemetry": "false", "master.port": free_port(), "filer.port": free_port(),
        "volume.port": free_port(), "admin.ui": "false", "s3.port": port, "s3.port.iceberg": 0,
        "s3.port.lance": 0, "s3.config": folder / "s3.json", "s3.autoCreateBucket": "false",
    }  # fmt: skip
    command = [
        str(Path(sys.executable).parent / "weed"),
        "-logtostderr=true",
        "mini",
        *(f"-{name}={value}" for name, value in flags.items()),
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        _wait_for(endpoint, server, folder / "log")
        yield S3Server(endpoint, server.pid)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(endpoint: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if server.poll() is not None:
            raise RuntimeError(f"SeaweedFS ended: {log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(endpoint, timeout=1)
        except urllib.error.HTTPError:  # it is up, and asks for a signature
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not answer: {log.read_text()[-2000:]}")
