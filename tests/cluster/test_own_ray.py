"""A local Ray is closed to other users: loopback, token only in the environment, private files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from afinar.execution.metrics import JobMetrics, ascii_tag

PROBE = """
import glob, json, os, sys, urllib.error, urllib.request
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
found = {"tokens": [], "jobs": [], "entered": [], "refused": 0}
own = f"/proc/{os.getpid()}/"
for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
    try:
        if sys.argv[1].encode() in open(path, "rb").read() and not path.startswith(own):
            found["tokens"].append(path)
    except OSError:
        pass
for folder in sys.argv[3:]:
    try:
        found["entered"] += os.listdir(folder)
    except OSError:
        found["refused"] += 1
for port in map(int, sys.argv[2].split(",")):
    for path in ("/api/jobs/", "/api/job_agent/jobs/"):
        body = json.dumps({"entrypoint": "id"}).encode()
        url = f"http://127.0.0.1:{port}{path}"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            found["jobs"].append(urllib.request.urlopen(request, timeout=3).read().decode())
        except Exception:  # a refusal, or no HTTP
            found["refused"] += 1
print(json.dumps(found))
"""

SESSION = """
import sys
sys.path.pop(0)  # the current folder, which has modules called like those of Python
import json, os
sys.path.insert(0, os.environ["CHECKOUT"])
from afinar.execution.session import ray_session
import ray

@ray.remote
def token():
    return os.environ["RAY_AUTH_TOKEN"]

for dashboard in (False, True):
    with ray_session(None, 1, dashboard):
        print(json.dumps({"token": ray.get(token.remote())}), flush=True)
        sys.stdin.readline()
    left = [name for name in os.environ if name.startswith("RAY_AUTH")]
    print(json.dumps({"left": left}), flush=True)
"""


@pytest.fixture
def session(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Process that starts a Ray without a dashboard, then one with it.

    It continues at every line on its stdin. Its current folder has modules called like those of
    Python: workers must not import them.
    """
    (tmp_path / "home").mkdir()
    (tmp_path / "scripts").mkdir()
    for name in ("queue", "random", "types"):
        (tmp_path / "scripts" / f"{name}.py").write_text("raise SystemExit('a script of the user')")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path / "home"), "CHECKOUT": str(Path.cwd())}
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        env=environment,
        cwd=tmp_path / "scripts",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield process
    process.kill()
    process.wait()


def listening(process: int) -> list[tuple[str, int]]:
    """Return address and port of every socket on which a process or its descendants listen."""
    root = psutil.Process(process)
    return [
        (str(connection.laddr.ip), connection.laddr.port)
        for member in [root, *root.children(recursive=True)]
        for connection in member.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def read(session: subprocess.Popen[str]) -> dict[str, Any]:
    assert session.stdout is not None
    answer: dict[str, Any] = json.loads(session.stdout.readline())
    return answer


def test_local_ray_is_closed_to_other_users(session: subprocess.Popen[str], tmp_path: Path) -> None:
    assert session.stdin is not None
    tokens = set()
    for dashboard in (False, True):
        token = read(session)["token"]
        tokens.add(token)
        sockets = listening(session.pid)
        assert sockets
        assert {address.removeprefix("::ffff:") for address, _ in sockets} == {"127.0.0.1"}
        assert (8265 in {port for _, port in sockets}) <= dashboard

        (folder,) = (path for path in Path("/tmp").glob("ray-*") if session.pid in _owners(path))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list((tmp_path / "home").iterdir()) == [], "nothing is written into HOME"

        if os.getuid() == 0:
            found = _as_nobody(token, [port for _, port in sockets], folder)
            assert found["tokens"] == found["jobs"] == found["entered"] == []
            assert found["refused"] == 1 + 2 * len(sockets)

        session.stdin.write("\n")
        session.stdin.flush()
        assert read(session)["left"] == []
        assert not folder.exists()
    assert len(tokens) == 2, "each Ray has its own token"


def _owners(folder: Path) -> set[int]:
    """Return the ids of the processes that started the Rays in a folder, by the sessions' names."""
    return {int(path.name.rsplit("_", 1)[1]) for path in folder.glob("ray/session_2*")}


def _as_nobody(token: str, ports: list[int], folder: Path) -> dict[str, Any]:
    """As another user, look for the token, submit a job to every port, and list the folder."""
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(
        [*command, token, ",".join(map(str, ports)), str(folder)],
        input=PROBE,
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_ascii_tag_percent_encodes_other_characters() -> None:
    assert ascii_tag("/data/José/100%/苔") == "/data/Jos%C3%A9/100%/%E8%8B%94"
    assert ascii_tag("s3://bucket/a b") == "s3://bucket/a b"


def test_failing_counter_is_logged_once_and_raises_nothing(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str) -> None:
        raise ValueError(f"no room for {name}")

    assert ray.is_initialized()
    monkeypatch.setattr("afinar.execution.metrics._counter", broken)
    metrics = JobMetrics("ingest", "/pictures", "/dataset")
    metrics.count_retry()
    metrics.count_retry()
    assert (
        capfd.readouterr().err.count("metrics are not counted: no room for afinar_units_retried")
        == 1
    )
