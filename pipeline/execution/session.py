"""Finding Ray, or starting it: one place for everything that a driver does to a cluster before its work."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

import pipeline
from pipeline.errors import RequestError
from pipeline.work import say

# Ray puts the driver's current folder first on every worker's path, so a user's own `pipeline.py` there
# would be imported instead of ours. Starting from the folder our packages lie in makes ours come first.
_HOME = Path(pipeline.__file__).resolve().parent.parent
_NAMESPACE = "afinar"


@contextlib.contextmanager
def ray_session(address: str | None, cores: int = 0) -> Iterator[None]:
    """Connect to `address`, else RAY_ADDRESS, else a local Ray of `cores` (0: all) that ends with the block.

    A Ray that this process is already connected to is used as it is and left running.
    """
    if ray.is_initialized():
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the future default; Ray warns without it
    say("starting a local Ray" if target == "local" else f"connecting to Ray at {target}")
    with contextlib.chdir(_HOME):
        _start(target, cores)
    try:
        yield
    finally:
        ray.shutdown()


def _start(target: str, cores: int) -> None:
    try:
        if target == "local":
            ray.init(target, num_cpus=cores or None, namespace=_NAMESPACE, logging_level=logging.WARNING)
        else:
            ray.init(target, namespace=_NAMESPACE, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise RequestError(f"no Ray cluster answers at {target}: {error}. Check --address or RAY_ADDRESS.") from error


def cluster_cores() -> int:
    """Cores of the cluster we are connected to."""
    return max(1, int(_resources().get("CPU", 1)))


def cluster_gpus() -> int:
    """GPUs of the cluster we are connected to."""
    return int(_resources().get("GPU", 0))


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def request_room(bundle: Mapping[str, float], count: int, address: str | None, timeout_s: float, poll_s: float) -> bool:
    """Whether the cluster has room for `count` bundles of resources; one that may grow is asked to, and waited for."""
    deadline = time.monotonic() + (timeout_s if address or "RAY_ADDRESS" in os.environ else 0.0)
    if has_room(bundle, count):
        return True
    request_resources(bundles=[dict(bundle)] * count)
    try:
        while time.monotonic() < deadline:
            time.sleep(poll_s)
            if has_room(bundle, count):
                return True
        return False
    finally:
        request_resources(bundles=[])


def has_room(bundle: Mapping[str, float], count: int) -> bool:
    """Whether the cluster's nodes, taken or free, can hold so many bundles; each lies on one node."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    room = [
        min(int(node["Resources"].get(kind, 0) // amount) for kind, amount in bundle.items())
        for node in nodes
        if node["Alive"]
    ]
    return sum(room) >= count
