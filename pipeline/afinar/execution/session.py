"""Finding Ray, or starting it: one place for everything that a driver does to a cluster before its work."""

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

logger = logging.getLogger(__name__)

_NAMESPACE = "afinar"
_TOKEN_VARIABLES: Final = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextlib.contextmanager
def ray_session(address: str | None, cores: int = 0, dashboard: bool = False) -> Iterator[None]:
    """Connect to `address`, else RAY_ADDRESS, else a local Ray of `cores` (0: all) that ends with the block.

    A Ray that this process is already connected to is used as it is and left running. `dashboard` starts the dashboard
    of a local Ray, which Ray Train asks.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # the future default; Ray warns without it
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    with _local_ray(cores, dashboard) if target == "local" else _connection(target):
        yield


@contextlib.contextmanager
def _connection(target: str) -> Iterator[None]:
    logger.info(f"connecting to Ray at {target}")
    try:
        ray.init(target, namespace=_NAMESPACE, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise RequestError(
            f"no Ray cluster answers at {target}: {error}. Check --address or RAY_ADDRESS."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _local_ray(cores: int, dashboard: bool) -> Iterator[None]:
    """Start a Ray that no other user of this machine, and no other machine, can use.

    Whoever may submit a task to a Ray runs commands as the user that started it. So every socket listens on loopback
    only, every request needs a random token that is in the environment of our processes and nowhere else, and Ray's
    files (logs, sockets) lie in a folder of mode 0700, which is removed with the block unless it raises.
    """
    logger.info("starting a local Ray")
    folder = tempfile.mkdtemp(prefix="ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    with _own_token():
        with _loopback():
            ray.init(
                "local",
                num_cpus=cores or None,
                namespace=_NAMESPACE,
                logging_level=logging.ERROR,  # Ray warns that authentication is on, which it is on purpose
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
    """Have a local Ray, and all processes that it starts, authenticate with a random token.

    Without a token in the environment Ray writes one to `~/.ray/auth_token`, readable by all. The environment, and what
    Ray remembers of it, are what they were after the block: a later connection to a cluster uses the cluster's token.
    """
    before = {name: os.environ.get(name) for name in _TOKEN_VARIABLES}
    for name in _TOKEN_VARIABLES:
        os.environ.pop(name, None)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(
        32
    )  # no mode is given: a local Ray turns authentication on
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
    """Let `ray.init` take 127.0.0.1 for this node's address, so that its processes listen there alone.

    Ray replaces a loopback address by one that other machines reach unless it believes that this platform has no
    clusters. It reads that from the environment when it is imported, which may be long past.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def cluster_cores() -> int:
    """Cores of the cluster we are connected to."""
    return max(1, int(_resources().get("CPU", 1)))


def cluster_gpus() -> int:
    """GPUs of the cluster we are connected to."""
    return int(_resources().get("GPU", 0))


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def wait_for_resources(
    bundle: Mapping[str, float], count: int, address: str | None, timeout_s: float, poll_s: float
) -> bool:
    """Whether the cluster has room for `count` bundles of resources; one that may grow is asked to, and waited for."""
    deadline = time.monotonic() + (timeout_s if address or "RAY_ADDRESS" in os.environ else 0.0)
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
    """Whether the cluster's nodes, taken or free, can hold so many bundles; each lies on one node."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    room = [
        min(int(node["Resources"].get(kind, 0) // amount) for kind, amount in bundle.items())
        for node in nodes
        if node["Alive"]
    ]
    return sum(room) >= count
