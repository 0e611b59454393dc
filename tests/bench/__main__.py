"""Run benches, `python -m tests.bench [NAME…]`, and compare what they measure with limits."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from afinar.units.own_process import claim_process, keep_freed_memory
from tests.bench.batches import batches
from tests.bench.everyday import demo, requests
from tests.bench.explain import explain
from tests.bench.explain_families import explain_families
from tests.bench.explain_trained import explain_trained
from tests.bench.features import features
from tests.bench.feeding import feeding
from tests.bench.forecasts import forecasts
from tests.bench.gate_years import gate_years
from tests.bench.hardware import bfloat16, gpu, has_amx, has_gpu
from tests.bench.incremental import incremental
from tests.bench.labelling_bound import label_bound
from tests.bench.labelling_gpu import label_gpu
from tests.bench.labelling_memory import label_memory
from tests.bench.labelling_peers import label_peers, label_ray
from tests.bench.labelling_precision import label_openvino, label_precision
from tests.bench.labelling_start import label_start
from tests.bench.large import large
from tests.bench.limit import limit
from tests.bench.memory import memory
from tests.bench.nights import nights
from tests.bench.pages import pages
from tests.bench.peers import peers
from tests.bench.planning import planning
from tests.bench.regimes import regimes
from tests.bench.s3 import s3
from tests.bench.scaling import scaling
from tests.bench.similar import similar
from tests.bench.stall import stall
from tests.bench.starts import starts
from tests.bench.windows import windows
from tests.bench.world import NotMeasuredError, WrongBenchError

BENCHES: dict[str, Callable[[], bool]] = {
    "requests": requests,
    "demo": demo,
    "starts": starts,
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
    "regimes": regimes,
    "features": features,
    "windows": windows,
    "similar": similar,
    "explain": explain,
    "explain_families": explain_families,
    "explain_trained": explain_trained,
    "pages": pages,
    "forecasts": forecasts,
    "gate_years": gate_years,
    "nights": nights,
    "label_bound": label_bound,
    "label_peers": label_peers,
    "label_ray": label_ray,
    "label_precision": label_precision,
    "label_openvino": label_openvino,
    "label_memory": label_memory,
    "label_start": label_start,
    "feeding": feeding,
    "gpu": gpu,
    "bfloat16": bfloat16,
    "label_gpu": label_gpu,
}
NEEDS: dict[str, Callable[[], bool]] = {"gpu": has_gpu, "bfloat16": has_amx, "label_gpu": has_gpu}
"""Benches that only some machines can run. By default they run only there."""
HOURS = {"regimes", "explain_families"}
"""Benches that take hours. They run only by name."""


def run(name: str) -> bool | None:
    """Run one bench; return True if its limits are met, None if this machine cannot measure it.

    A side that did not do its work fails the bench.
    """
    try:
        return BENCHES[name]()
    except NotMeasuredError as error:
        print(f"{name}: {error}: not measured")
        return None
    except WrongBenchError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return False


def main(names: list[str]) -> int:
    """Run the benches and return the exit code.

    It is 1 if a limit is not met, 2 for an unknown bench, 3 if limits are met but some bench could
    not be measured.
    """
    if unknown := set(names) - BENCHES.keys():
        print(
            f"no bench {', '.join(sorted(unknown))}: the benches are {', '.join(BENCHES)}",
            file=sys.stderr,
        )
        return 2
    claim_process()  # a bench that computes in this process has the malloc of a worker
    keep_freed_memory()
    results = {name: run(name) for name in names or _default()}
    for name, is_met in results.items():
        if is_met is not None:
            print(f"{name}: {'within its limits' if is_met else 'NOT within its limits'}")
    if False in results.values():
        return 1
    return 3 if None in results.values() else 0


def _default() -> list[str]:
    runs_here = {name: NEEDS[name]() if name in NEEDS else name not in HOURS for name in BENCHES}
    return [name for name, runs in runs_here.items() if runs]


if __name__ == "__main__":
    # An exit, unlike a kill, stops the servers and deletes the folders in memory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
