"""`python -m tests.cluster.raylets SOURCE DATASET`: ingest on three raylets, one is SIGKILLed.

The head has no cores, so that a node with workers dies. Prints how many units were committed then.
"""

from __future__ import annotations

import logging
import sys
import threading
import time

import ray
from ray.cluster_utils import Cluster

from afinar.config.ingest import IngestConfig
from afinar.execution.executor import RayExecutor
from afinar.ingestion.driver import run_ingest
from afinar.storage.markers import committed_units
from afinar.storage.open import open_store

# By default a dead raylet is noticed after 20 s.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
}


def main(source: str, dataset: str) -> None:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    ray.init(address=cluster.address, namespace="afinar", logging_level=logging.WARNING)
    finished = threading.Event()

    def kill_one() -> None:
        while not finished.is_set():
            if len(committed_units(open_store(dataset))) >= 2:
                print(
                    "committed when the raylet died:",
                    len(committed_units(open_store(dataset))),
                    flush=True,
                )
                nodes[1].kill_raylet(check_alive=False)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        summary = run_ingest(
            IngestConfig(source=source, dataset=dataset, size=32), RayExecutor(None)
        ).summary
    finally:
        finished.set()
        killer.join()
    alive = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    print("samples:", summary.samples, "nodes alive:", alive, flush=True)
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(*sys.argv[1:])
