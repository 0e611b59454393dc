"""Cost of nights: the first of 5,000 pictures, one after a change of 1 %, one without change."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.bench.pictures import SMALL, photograph, shown
from tests.bench.table import Table
from tests.bench.world import (
    OURS,
    WrongBenchError,
    in_memory,
    require_cores,
    scaled,
    start_command,
)

PICTURES = 5000
SHARE = 0.10
UNCHANGED_S = 15.0
DISTINCT = 500  # pictures by pixels
CLASSES = ("china", "flower")
FRESH = 5 * 10**6  # first seed of changed pictures
_TIMEOUT_S = 3600.0
_PLACES = ("source", "dataset", "models", "nights")
_RECIPE = """
backbone = "efficientnet_lite0"
weights = "package"
size = 224
"""


@dataclass(frozen=True)
class Night:
    """A night as a process: seconds from start to end, its summary, and its log."""

    seconds: float
    summary: dict[str, Any]
    log: str

    @property
    def starts_ray(self) -> bool:
        return "starting a local Ray" in self.log


def nights() -> bool:
    """Require that a night after a small change costs a tenth of the first, and none little."""
    require_cores()
    table = Table(("what", "measured", "limit", "met"))
    with in_memory() as folder:
        (folder / "nightly.toml").write_text(_RECIPE)
        count = scaled(PICTURES)
        changed = max(1, count // 100)
        for number in range(count):
            _write(folder, number, number % DISTINCT)
        first = _night(folder)
        for number in range(changed):
            # The picture keeps its class and has other pixels.
            seeds = range(FRESH + 100 * number, FRESH + 100 * (number + 1))
            label = shown(number % DISTINCT)
            _write(folder, number, next(seed for seed in seeds if shown(seed) == label))
        second = _night(folder)
        third = _night(folder)

    _require_work(first, second, third, count, changed)
    share = second.seconds / first.seconds
    table.add(f"first night of {count} pictures, s", f"{first.seconds:.1f}", "", "")
    table.limit(
        f"night after {changed} pictures changed, s", f"{second.seconds:.1f}, {share:.1%}",
        f"≤ {SHARE:.0%}", holds=share <= SHARE,
    )  # fmt: skip
    table.limit(
        "night without change, s", f"{third.seconds:.1f}", f"≤ {UNCHANGED_S:g}, without Ray",
        holds=third.seconds <= UNCHANGED_S and not third.starts_ray,
    )  # fmt: skip
    for name, night in (("first", first), ("second", second), ("third", third)):
        steps = ", ".join(
            f"{step} {record['seconds']:.1f}" for step, record in night.summary["steps"].items()
        )
        print(f"{name}: {steps}; Ray: {'yes' if night.starts_ray else 'no'}")
    return table.show(f"nights: 1 % of {count} pictures changed, then nothing")


def _write(folder: Path, number: int, seed: int) -> None:
    label = CLASSES[shown(seed)]
    path = folder / "source" / label / f"{number:06d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(seed) + number.to_bytes(4, "big"))


@cache
def _encoded(seed: int) -> bytes:
    """Return a JPEG; files of the same pixels differ in a number behind its end marker."""
    return photograph(SMALL, seed)


def _night(folder: Path) -> Night:
    started = time.monotonic()
    command = [str(OURS.parent / "afinar"), "nightly", "--recipe", str(folder / "nightly.toml")]
    places = [word for name in _PLACES for word in (f"--{name}", str(folder / name))]
    process = start_command([*command, *places, "--json"])
    try:
        out, log = process.communicate(timeout=_TIMEOUT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    seconds = time.monotonic() - started
    if process.returncode:
        raise WrongBenchError(f"a night ended with {process.returncode}: {log[-3000:]}")
    summary = json.loads(out.strip().splitlines()[-1])
    print(f"{seconds:7.1f} s  {summary['outcome']}: {summary['reasons']}", flush=True)
    return Night(seconds, summary, log)


def _require_work(first: Night, second: Night, third: Night, count: int, changed: int) -> None:
    if first.summary["outcome"] != "promoted" or first.summary["steps"]["ingest"]["added"] != count:
        raise WrongBenchError(f"the first night did not do its work: {first.summary['reasons']}")
    steps = second.summary["steps"]
    if steps["ingest"]["changed"] != changed or steps["train"]["candidate"] != 2:
        raise WrongBenchError(f"the second night did not do its work: {steps}")
    if third.summary["outcome"] != "no change":
        raise WrongBenchError(f"the third night had something to do: {third.summary['reasons']}")
