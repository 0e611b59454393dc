"""`python -m tests.bench [NAME…]`: measure, and compare with the limits of this project's own making."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from tests.bench.everyday import demo, requests
from tests.bench.incremental import incremental
from tests.bench.large import large
from tests.bench.limit import limit
from tests.bench.memory import memory
from tests.bench.peers import peers
from tests.bench.planning import planning
from tests.bench.s3 import s3
from tests.bench.world import WrongBenchError

BENCHES: dict[str, Callable[[], bool]] = {
    "requests": requests,
    "demo": demo,
    "large": large,
    "limit": limit,
    "peers": peers,
    "s3": s3,
    "memory": memory,
    "incremental": incremental,
    "planning": planning,
}


def run(name: str) -> bool:
    """One bench; a side that did not do its work fails it."""
    try:
        return BENCHES[name]()
    except WrongBenchError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return False


def main(names: list[str]) -> int:
    """Exit code: 1 when a limit is not met, 2 for a bench there is not."""
    if unknown := set(names) - BENCHES.keys():
        print(f"no bench {', '.join(sorted(unknown))}: there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    met = {name: run(name) for name in names or BENCHES}
    for name, holds in met.items():
        print(f"{name}: {'within its limits' if holds else 'NOT within its limits'}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers end and memory is given back
    sys.exit(main(sys.argv[1:]))
