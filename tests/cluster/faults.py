"""Set Ray's faults, and find workers to kill: helpers of the tests with faults."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Final

import psutil

REPOSITORY: Final = Path(__file__).parents[2]

RPC_CHAOS: Final = json.dumps({
    "CoreWorkerService.grpc_client.PushTask": {
        "num_failures": 20,
        "req_failure_prob": 10,
        "resp_failure_prob": 30,
        "in_flight_failure_prob": 10,
    }
})  # fmt: skip
"""Value of RAY_testing_rpc_failure: Ray loses requests and replies, and breaks connections.

Tasks then run twice and late.
"""


def busy_workers(driver: int) -> list[psutil.Process]:
    """Return the worker processes below a driver; of those of Ray the ones that run a unit."""
    workers = []
    with contextlib.suppress(psutil.NoSuchProcess):  # the driver has ended
        for process in psutil.Process(driver).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, or is a zombie
                if any(
                    re.search(r"ray::Worker.run|local_worker", each) for each in process.cmdline()
                ):
                    workers.append(process)
    return workers
