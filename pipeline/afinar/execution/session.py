"""Connection to a Ray cluster, or to a local Ray that no other user can use; its resources."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import ray
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationTokenLoader,
    Config,
    GcsClient,
)
from ray.autoscaler.sdk import request_resources
from ray.exceptions import AuthenticationError, RaySystemError, RpcError

from afinar.config.base import cluster_address
from afinar.errors import NoSpaceError, RequestError, ShortfallError
from afinar.execution.console import worker_output
from afinar.execution.failures import TOKEN_ADVICE, first_line
from afinar.execution.interrupts import signal_handlers_kept
from afinar.execution.shared import shared_stack
from afinar.logs import log_settings

logger = logging.getLogger(__name__)

_NAMESPACE = "afinar"
_RAY_FOLDER: Final = "ray"
# A path of a Unix socket has at most 107 bytes. Below the folder of a session the longest is
# /ray-abcdefgh/ray/session_2026-11-26_18-31-05_396000_1234567/sockets/dash_TaskEventsHead.
_MAX_PLACE_BYTES: Final = 107 - 88
_START_S: Final = 150.0  # a loaded machine takes 60
_KILL_S: Final = 5.0
_LEAST_FREE_BYTES: Final = 32 * 2**20
_CONNECT_S: Final = 15.0
_CONNECTION_ERRORS: Final = (
    OSError,  # ConnectionError is one
    RuntimeError,
    ValueError,
    AuthenticationError,
    RaySystemError,
    RpcError,
)
# Errors that Ray's logs do not explain.
_UNRELATED_TO_RAY: Final = (RequestError, ShortfallError, NoSpaceError)
_TOKEN_VARIABLES: Final = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextlib.contextmanager
def ray_session(address: str | None, cores: int = 0, dashboard: bool = False) -> Iterator[None]:
    """Connect to `address`, else RAY_ADDRESS, else start a local Ray that ends with the block.

    If this process is already connected, that Ray is used and left running. Within `share_workers`
    it ends with that block, and has all cores and a dashboard, for whatever job comes next. `cores`
    (0: all) and `dashboard`, which Ray Train needs, concern a local Ray. The output of Ray's own
    processes is shown only if `configure_logging` was called with `verbose`; what afinar logs in
    them always is.

    Raises RequestError, within a minute, if no cluster answers or no local Ray can be started.
    """
    if ray.is_initialized():
        yield
        return

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The future default; Ray warns if it is not set.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

    stack = shared_stack()
    if stack is not None:
        cores, dashboard = 0, True
    target, verbose = cluster_address(address), log_settings().verbose
    session = _connection(target, verbose) if target else _local_ray(cores, dashboard, verbose)
    if stack is not None:
        stack.enter_context(worker_output(verbose))
        stack.enter_context(session)
        yield
        return
    with worker_output(verbose), session:
        yield


@contextlib.contextmanager
def _connection(target: str, verbose: bool) -> Iterator[None]:
    logger.info(f"connecting to Ray at {target}")
    level = logging.INFO if verbose else logging.WARNING

    try:
        _require_listener(target)
        with signal_handlers_kept(), _outside_current_folder():
            ray.init(target, namespace=_NAMESPACE, logging_level=level)
    except _CONNECTION_ERRORS as error:
        ray.shutdown()
        problem = first_line(error)
        advice = TOKEN_ADVICE if "token" in problem else "check --address or RAY_ADDRESS"
        raise RequestError(f"no Ray cluster answers at {target}: {problem}; {advice}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(target: str) -> None:
    """Raise ConnectionError unless Ray's control service answers at `target`, within a minute.

    `ray.init` itself tries an address where nobody listens without end.
    """
    is_client = target.startswith("ray://")
    address = target.removeprefix("ray://")
    if not is_client:
        # Raises ConnectionError if `auto` finds no Ray on this machine.
        address = services.canonicalize_bootstrap_address_or_die(target)
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
        pass

    if is_client:
        return
    # Without it, a missing token would abort this process.
    ensure_token_if_auth_enabled({}, create_token_if_missing=False)
    # Something else may listen there. Ray's own client gives up after 40 s.
    with _silent_stderr():
        GcsClient(address=address)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what is written to stderr, such as by Ray's C++ code."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as sink:  # noqa: PTH123
        os.dup2(sink.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def _local_ray(cores: int, dashboard: bool, verbose: bool) -> Iterator[None]:
    """Start a Ray that no other user of this machine, and no other machine, can use.

    Anybody who can submit a task to a Ray runs commands as the user that started it. Therefore:

    - every socket listens on loopback only;
    - every request needs a random token that is only in the environment of our processes;
    - Ray's files (logs, sockets) are in a folder of mode 0700, which is removed at the end of the
      block unless it raises an error that Ray's logs may explain.
    """
    logger.info("starting a local Ray")
    folder = _make_session_folder()
    keep = False
    try:
        with _own_token():
            try:
                _start_ray(folder, cores, dashboard, verbose)
                yield
            finally:
                # Ray's C++ code notes the tasks that end with it.
                with contextlib.nullcontext() if verbose else _silent_stderr():
                    ray.shutdown()
    except Exception as error:
        keep = not isinstance(error, _UNRELATED_TO_RAY)
        if keep:
            logger.info(f"Ray's logs of this run are in {folder}")
        raise
    finally:
        if not keep:
            _remove_session_folder(folder)


def _start_ray(folder: str, cores: int, dashboard: bool, verbose: bool) -> None:
    """Start Ray with its files in `folder`. Raises RequestError if this machine cannot run it."""
    # Without its processes Ray gives up, in a minute. On a machine that lacks something it may not.
    deadline = threading.Timer(_START_S, _kill_started, (folder,))
    deadline.daemon = True
    deadline.start()
    try:
        with _loopback(), signal_handlers_kept(), _outside_current_folder():
            ray.init(
                "local",
                num_cpus=cores or None,
                namespace=_NAMESPACE,
                # Ray warns that authentication is on, which is intended.
                logging_level=logging.INFO if verbose else logging.CRITICAL,
                include_dashboard=dashboard,
                _node_ip_address="127.0.0.1",
                _temp_dir=f"{folder}/{_RAY_FOLDER}",  # Ray makes this one 0777
            )
    except Exception as error:  # Ray raises all kinds of errors here, plain Exception too
        _kill_started(folder)
        raise RequestError(
            f"Ray could not be started on this machine: {_start_problem(error, folder)}"
        ) from error
    except BaseException:  # interrupted: Ray knows only of processes that it has finished to start
        _kill_started(folder)
        raise
    finally:
        deadline.cancel()


@contextlib.contextmanager
def _outside_current_folder() -> Iterator[None]:
    """Leave the current folder during the block.

    `ray.init` puts the current folder on the module path of its workers. There a user's own
    random.py or queue.py would be imported instead of the module of that name.
    """
    folder = os.getcwd()  # noqa: PTH109
    os.chdir("/")
    try:
        yield
    finally:
        os.chdir(folder)


def _kill_started(folder: str) -> None:
    """Kill the processes that this process has started for the Ray in `folder`."""
    import psutil  # comes with Ray, which makes it importable

    started: list[psutil.Process] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(folder in argument for argument in child.cmdline()):
                # Processes of Ray's agents and workers have other command lines.
                started += [*child.children(recursive=True), child]
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(started, _KILL_S)


def _start_problem(error: Exception, folder: str) -> str:
    """Return why Ray did not start, as far as this machine's limits and the error tell."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        return (
            f"the limit of {limit / 1e9:.1f} GB on addresses (`ulimit -v`) is too low for it; "
            "limit memory with a cgroup instead"
        )
    if shutil.disk_usage(f"{folder}/{_RAY_FOLDER}").free < _LEAST_FREE_BYTES:
        return f"no space is left in {folder}; free some, or set RAY_TMPDIR to another folder"
    return f"{first_line(error)}; run it again with --verbose to see Ray's own messages"


def _make_session_folder() -> str:
    """Create a folder for Ray's files whose path is short enough for its sockets.

    If RAY_TMPDIR is too long, a short folder has a link to one below RAY_TMPDIR. Raises
    RequestError if neither can be created.
    """
    wanted = os.path.abspath(os.environ.get("RAY_TMPDIR") or "/tmp")  # noqa: PTH100
    try:
        if len(os.fsencode(wanted)) <= _MAX_PLACE_BYTES:
            return tempfile.mkdtemp(prefix="ray-", dir=wanted)
        data = tempfile.mkdtemp(prefix="ray-", dir=wanted)
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        os.mkdir(f"{data}/{_RAY_FOLDER}")  # noqa: PTH102
        os.symlink(f"{data}/{_RAY_FOLDER}", f"{folder}/{_RAY_FOLDER}")  # noqa: PTH211
    except OSError as error:
        raise RequestError(
            f"Ray cannot write its files below {wanted} ({error.strerror}): set RAY_TMPDIR to a "
            "folder of your own with free space"
        ) from error
    return folder


def _remove_session_folder(folder: str) -> None:
    files = os.path.realpath(f"{folder}/{_RAY_FOLDER}")
    shutil.rmtree(os.path.dirname(files), ignore_errors=True)  # noqa: PTH120
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """Make a local Ray and all processes that it starts authenticate with a random token.

    Without a token in the environment Ray writes one to `~/.ray/auth_token`, readable by all users.
    After the block the environment and Ray's cached copy of it are restored, so that a later
    connection to a cluster uses the cluster's token.
    """
    before = {name: os.environ.get(name) for name in _TOKEN_VARIABLES}
    for name in _TOKEN_VARIABLES:
        os.environ.pop(name, None)
    # RAY_AUTH_MODE stays unset: a local Ray turns authentication on.
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Make `ray.init` use 127.0.0.1 as this node's address: its processes listen only there.

    Ray replaces a loopback address by one that other machines reach, unless clusters are disabled
    for the platform. Ray reads that setting from the environment at import, so it is changed in
    Ray's module.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False

    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def session_folder() -> str:
    """Return the folder of the files of the Ray that this process is connected to."""
    node: Any = ray._private.worker._global_node
    return str(node.get_session_dir_path())


def cluster_cores() -> int:
    """Return the number of cores of the connected cluster, at least 1."""
    return max(1, int(_resources().get("CPU", 1)))


def node_cores() -> list[int]:
    """Return the number of cores of each node of the connected cluster."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]


def free_share() -> float:
    """Return the share of the connected cluster's cores that no work occupies."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free.get("CPU", 0.0) / cluster_cores()


def cluster_gpus() -> int:
    """Return the number of GPUs of the connected cluster."""
    return int(_resources().get("GPU", 0))


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def wait_for_resources(
    bundle: Mapping[str, float], count: int, address: str | None, timeout_s: float, poll_s: float
) -> bool:
    """Return whether the cluster can hold `count` bundles of resources, waiting for it to grow.

    A cluster (see `cluster_address`) is asked to grow and polled every `poll_s` seconds
    until `timeout_s`. A local Ray cannot grow and is checked once.
    """
    deadline = time.monotonic() + (timeout_s if cluster_address(address) else 0.0)
    if fits(bundle, count):
        return True
    request_resources(bundles=[dict(bundle)] * count)

    try:
        while time.monotonic() < deadline:
            time.sleep(poll_s)
            if fits(bundle, count):
                return True
        return False
    finally:
        request_resources(bundles=[])


def fits(bundle: Mapping[str, float], count: int) -> bool:
    """Return whether the cluster's nodes, busy or idle, can hold `count` bundles.

    A bundle lies on one node. Example: nodes of 3 and 5 cores hold 1 + 2 = 3 bundles of 2 cores.
    """
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    bundles = 0
    for node in nodes:
        if node["Alive"]:
            resources = node["Resources"]
            bundles += min(int(resources.get(name, 0) // bundle[name]) for name in bundle)
    return bundles >= count
