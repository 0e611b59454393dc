"""`python -m tests.cluster.feature_raylets DATASET WEIGHTS SEED`: features on three raylets.

One raylet is SIGKILLed at a random moment. The head has no cores, so that a node with workers dies.
Prints as JSON how many units were committed then, how many are now, and how many nodes are alive.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import threading
import time

import ray
from ray.cluster_utils import Cluster

from afinar.execution.executor import RayExecutor
from tests.cluster.raylets import HEALTH
from tests.features.jobs import compute, done_units


def main(dataset: str, weights: str, seed: str) -> None:
    rng = random.Random(int(seed))
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    ray.init(address=cluster.address, namespace="afinar", logging_level=logging.WARNING)
    finished, committed = threading.Event(), -1

    def kill_one() -> None:
        nonlocal committed
        wanted = rng.randrange(1, 8)
        while not finished.is_set():
            count = len(done_units(dataset))
            if count >= wanted:
                committed = count
                rng.choice(nodes).kill_raylet(check_alive=False)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        summary = compute(dataset, weights, RayExecutor(None), cut="3,6")
    finally:
        finished.set()
        killer.join()
    # The job may end before the death is noticed.
    deadline = time.monotonic() + 60
    while (alive := _alive()) == len(nodes) + 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    facts = {"committed": committed, "read": summary.read, "alive": alive}
    print(json.dumps(facts), flush=True)
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


def _alive() -> int:
    return sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(*sys.argv[1:])
