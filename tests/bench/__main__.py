"""`python -m tests.bench [NAME…]`: measure, and compare with the limits of this project's own making."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from tests.bench.batches import batches
from tests.bench.everyday import demo, requests
from tests.bench.hardware import bfloat16, gpu, has_amx, has_gpu
from tests.bench.incremental import incremental
from tests.bench.labelling_bound import label_bound
from tests.bench.labelling_gpu import label_gpu
from tests.bench.labelling_memory import label_memory
from tests.bench.labelling_peers import label_peers, label_ray
from tests.bench.labelling_precision import label_precision
from tests.bench.labelling_start import label_start
from tests.bench.large import large
from tests.bench.limit import limit
from tests.bench.memory import memory
from tests.bench.peers import peers
from tests.bench.planning import planning
from tests.bench.s3 import s3
from tests.bench.scaling import scaling
from tests.bench.stall import stall
from tests.bench.world import NotMeasuredError, WrongBenchError

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
    "batches": batches,
    "stall": stall,
    "scaling": scaling,
    "label_bound": label_bound,
    "label_peers": label_peers,
    "label_ray": label_ray,
    "label_precision": label_precision,
    "label_memory": label_memory,
    "label_start": label_start,
    "gpu": gpu,
    "bfloat16": bfloat16,
    "label_gpu": label_gpu,
}
NEEDS: dict[str, Callable[[], bool]] = {"gpu": has_gpu, "bfloat16": has_amx, "label_gpu": has_gpu}
"""Benches that only some machines can run: run by default there, elsewhere when named, to say so."""


def run(name: str) -> bool | None:
    """One bench; a side that did not do its work fails it. None: not measured, for want of what it is about."""
    try:
        return BENCHES[name]()
    except NotMeasuredError as error:
        print(f"{name}: {error}: not measured")
        return None
    except WrongBenchError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return False


def main(names: list[str]) -> int:
    """Exit code: 1 when a limit is not met, 2 for a bench there is not, 3 when all were met but not all measured."""
    if unknown := set(names) - BENCHES.keys():
        print(
            f"no bench {', '.join(sorted(unknown))}: there are {', '.join(BENCHES)}",
            file=sys.stderr,
        )
        return 2
    met = {name: run(name) for name in names or _default()}
    for name, holds in met.items():
        if holds is not None:
            print(f"{name}: {'within its limits' if holds else 'NOT within its limits'}")
    if False in met.values():
        return 1
    return 3 if None in met.values() else 0


def _default() -> list[str]:
    return [name for name in BENCHES if name not in NEEDS or NEEDS[name]()]


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that servers end and memory is given back
    sys.exit(main(sys.argv[1:]))
