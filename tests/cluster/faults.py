"""Settings that the tests with faults of Ray share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

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
