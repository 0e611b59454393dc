"""Addresses of Ray, the folder of a local Ray, and starts that fail or are interrupted."""

from __future__ import annotations

import contextlib
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray._private import services
from ray.exceptions import RpcError

from afinar.config.base import cluster_address
from afinar.errors import NoSpaceError, RequestError
from afinar.execution import session
from tests.servers import free_port


@pytest.fixture(autouse=True)
def no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin without a connection, beside the session's own Ray."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("address", ["auto", "head:6379", "[::1]:6379", "ray://10.0.0.1:10001"])
def test_address_of_a_cluster_is_taken(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_address(address) == address
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address(None) == address
    assert cluster_address("local") is None


@pytest.mark.parametrize(
    "address",
    ["http://head:8265", "https://me:secret@head", "head", "a b:1", "head:66000", "://:1"],
)
def test_other_address_is_refused_by_the_name_of_its_setting(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="^--address "):
        cluster_address(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RequestError, match="^RAY_ADDRESS .*HEAD:6379") as raised:
        cluster_address(None)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_address_where_nobody_listens_is_refused(scheme: str) -> None:
    with (
        pytest.raises(RequestError, match="no Ray cluster answers at .* refused"),
        session.ray_session(f"{scheme}127.0.0.1:{free_port()}"),
    ):
        pass


def test_address_where_something_else_listens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(address: str) -> None:
        raise RpcError("Timed out while waiting for GCS")  # type: ignore[no-untyped-call]

    # Ray asks at the machine's own address for 127.0.0.1.
    monkeypatch.setattr(services, "canonicalize_bootstrap_address_or_die", str)
    monkeypatch.setattr(session, "GcsClient", fail)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(RequestError, match="answers at .*Timed out while waiting for GCS"),
            session.ray_session(address),
        ):
            pass


def test_missing_token_is_refused_before_ray_would_abort_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no authentication token was found. Ensure that the token for …")

    monkeypatch.setattr(services, "canonicalize_bootstrap_address_or_die", str)
    monkeypatch.setattr(session, "ensure_token_if_auth_enabled", fail)
    monkeypatch.setattr(session, "GcsClient", lambda address: pytest.fail("not to be called"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(RequestError, match="token was found; set RAY_AUTH_MODE=token"),
            session.ray_session(address),
        ):
            pass


def session_folders(place: Path) -> list[Path]:
    return list(place.glob("ray-*"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return RAY_TMPDIR: a folder whose path is too long for the sockets of Ray."""
    place = tmp_path / ("job-of-a-batch-system-" + "0123456789" * 8)
    place.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    return place


def test_long_ray_tmpdir_gets_a_short_folder_that_leads_to_it(place: Path) -> None:
    folder = session._make_session_folder()
    try:
        (data,) = session_folders(place)
        assert len(folder) + len("/ray") < 24
        assert (Path(folder) / "ray").resolve() == data / "ray"
        assert {stat.S_IMODE(path.stat().st_mode) for path in (Path(folder), data)} == {0o700}
    finally:
        session._remove_session_folder(folder)
    assert not Path(folder).exists()
    assert session_folders(place) == []


def test_ray_tmpdir_that_does_not_exist_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(place / "missing"))
    with pytest.raises(RequestError, match="set RAY_TMPDIR to a folder of your own"):
        session._make_session_folder()


# A process with one of its own, which has another command line.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "open(0).read()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
input()
"""
children: list[int] = []


@contextlib.contextmanager
def starting(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> Iterator[list[Any]]:
    """Replace `ray.init` by a start that has started one process when it raises `error`."""
    processes: list[Any] = []

    def init(*_: Any, _temp_dir: str, **__: Any) -> None:
        command = [sys.executable, "-c", PARENT, _temp_dir]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        children.append(int(process.stdout.readline()))
        if error is not None:
            raise error

    monkeypatch.setattr(ray, "init", init)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (
            Exception("raylet.out: no\nmore"),
            RequestError,
            "could not be started .*: raylet.out: no;",
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_start_that_fails_or_is_interrupted_leaves_no_process_and_no_folder(
    error: BaseException,
    raised: type[BaseException],
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with starting(monkeypatch, error) as processes:
        with pytest.raises(raised, match=message), session.ray_session(None):
            pass
        assert not psutil.pid_exists(processes[0].pid)
        assert not psutil.pid_exists(children[-1])
    assert session_folders(place) == []


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (RequestError("the request"), False),
        (NoSpaceError("full"), False),
        (KeyboardInterrupt(), False),
        (RuntimeError("a bug"), True),
    ],
)
def test_files_of_ray_are_kept_only_for_errors_that_they_may_explain(
    error: BaseException, is_kept: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        starting(monkeypatch, None),
        pytest.raises(type(error)),
        session.ray_session(None),
    ):
        raise error
    assert bool(session_folders(place)) == is_kept
