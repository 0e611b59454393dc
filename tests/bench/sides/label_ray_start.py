"""Time to start a local Ray, which every job needs before it can begin."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from afinar.execution.session import ray_session


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of the start, without the import of Ray."""
    started = time.monotonic()
    with ray_session("local", request["cores"]):
        return {"seconds": time.monotonic() - started}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
