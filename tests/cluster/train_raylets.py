"""`python -m tests.cluster.train_raylets CONFIG`: training on three raylets, one is SIGKILLed.

CONFIG is JSON of a TrainConfig with `audit`. The head has no cores, so a node with a worker dies.
Prints the published version, its weights, and how many nodes are alive at the end.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from afinar.config.train import TrainConfig
from afinar.execution.train_launcher import launch_on_ray
from afinar.training.driver import run_training
from tests.cluster.raylets import HEALTH
from tests.training.runs import wait_for_step


def main(argument: str) -> None:
    config = TrainConfig(**json.loads(argument))
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    raylets = [node.all_processes["raylet"][0].process for node in nodes]
    ray.init(address=cluster.address, namespace="afinar", logging_level=logging.WARNING)
    os.environ["RAY_ADDRESS"] = cluster.address  # a cluster that may grow, not a local Ray

    def kill_one() -> None:
        workers = wait_for_step(Path(config.audit), 12, config.workers)
        parents = {parent.pid for parent in psutil.Process(workers[0]).parents()}
        (victim,) = (
            node for node, raylet in zip(nodes, raylets, strict=True) if raylet.pid in parents
        )
        victim.kill_raylet(check_alive=False)

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcome = run_training(config, launch_on_ray, "run")
    killer.join()
    alive = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    print(
        json.dumps(
            {
                "version": outcome.version.version,
                "weights": outcome.result.weights["sha256"],
                "alive": alive,
            }
        ),
        flush=True,
    )
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(*sys.argv[1:])
