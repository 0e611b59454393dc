"""`python -m tests.cluster.train_raylets CONFIG`: a training on three raylets, one of which is SIGKILLed midway.

CONFIG is JSON of a TrainConfig, `audit` among it. The head has no cores, so that what dies is a node with a worker.
Prints the step at which it died, and how many nodes were alive at the end.
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
from afinar.config.train import TrainConfig
from afinar.execution.train_launcher import train_on_ray
from afinar.training.task import plan_training
from ray.cluster_utils import Cluster

from tests.cluster.raylets import HEALTH
from tests.training.runs import wait_for_step


def main(words: str) -> None:
    config = TrainConfig(**json.loads(words))
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    raylets = [node.all_processes["raylet"][0].process for node in nodes]
    ray.init(address=cluster.address, namespace="afinar", logging_level=logging.WARNING)
    os.environ["RAY_ADDRESS"] = cluster.address  # a cluster, which may grow: not this machine alone

    def kill_one() -> None:
        workers = wait_for_step(Path(config.audit), 12, config.workers)
        parents = {parent.pid for parent in psutil.Process(workers[0]).parents()}
        (victim,) = (
            node for node, raylet in zip(nodes, raylets, strict=True) if raylet.pid in parents
        )
        victim.kill_raylet(check_alive=False)

    killer = threading.Thread(target=kill_one)
    killer.start()
    version, outcome, _ = train_on_ray(plan_training(config, "run"))
    killer.join()
    alive = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    print(
        json.dumps(
            {"version": version.version, "weights": outcome.weights["sha256"], "alive": alive}
        ),
        flush=True,
    )
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(*sys.argv[1:])
