"""Connection to a Ray cluster, or to a local Ray that no other user can use; its resources."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.autoscaler.sdk import request_resources

from afinar.errors import RequestError
from afinar.execution.console import worker_output
from afinar.logs import log_settings

logger = logging.getLogger(__name__)

_NAMESPACE = "afinar"
_TOKEN_VARIABLES: Final = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextlib.contextmanager
def ray_session(address: str | None, cores: int = 0, dashboard: bool = False) -> Iterator[None]:
    """Connect to `address`, else RAY_ADDRESS, else start a local Ray that ends with the block.

    If this process is already connected, that Ray is used and left running. `cores` (0: all) and
    `dashboard`, which Ray Train needs, concern a local Ray. The output of Ray's own processes is
    shown only if `configure_logging` was called with `verbose`; what afinar logs in them always is.
    """
    if ray.is_initialized():
        yield
        return

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The future default; Ray warns if it is not set.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

    target, verbose = cluster_address(address), log_settings().verbose
    session = _connection(target, verbose) if target else _local_ray(cores, dashboard, verbose)
    with worker_output(verbose), session:
        yield


def cluster_address(address: str | None) -> str | None:
    """Return `address`, else RAY_ADDRESS; None if a local Ray is started instead."""
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    return None if target == "local" else target


@contextlib.contextmanager
def _connection(target: str, verbose: bool) -> Iterator[None]:
    logger.info(f"connecting to Ray at {target}")
    level = logging.INFO if verbose else logging.WARNING

    try:
        ray.init(target, namespace=_NAMESPACE, logging_level=level)
    except ConnectionError as error:
        raise RequestError(
            f"no Ray cluster answers at {target}: {error}. Check --address or RAY_ADDRESS."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _local_ray(cores: int, dashboard: bool, verbose: bool) -> Iterator[None]:
    """Start a Ray that no other user of this machine, and no other machine, can use.

    Anybody who can submit a task to a Ray runs commands as the user that started it. Therefore:

    - every socket listens on loopback only;
    - every request needs a random token that is only in the environment of our processes;
    - Ray's files (logs, sockets) are in a folder of mode 0700, which is removed at the end of the
      block unless it raises.
    """
    logger.info("starting a local Ray")
    folder = tempfile.mkdtemp(prefix="ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    with _own_token():
        with _loopback():
            ray.init(
                "local",
                num_cpus=cores or None,
                namespace=_NAMESPACE,
                # Ray warns that authentication is on, which is intended.
                logging_level=logging.INFO if verbose else logging.ERROR,
                include_dashboard=dashboard,
                _node_ip_address="127.0.0.1",
                _temp_dir=f"{folder}/ray",  # Ray makes this one 0777
            )
        try:
            yield
        except Exception:
            logger.info(f"Ray's logs of this run are in {folder}")
            raise
        finally:
            ray.shutdown()
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


def cluster_cores() -> int:
    """Return the number of cores of the connected cluster, at least 1."""
    return max(1, int(_resources().get("CPU", 1)))


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
