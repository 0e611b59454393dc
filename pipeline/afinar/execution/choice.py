"""Choice of where a job runs: on this machine without Ray, or on Ray.

A local Ray needs several seconds to start and as many to end. A job that would take less than that
runs on processes of its own. The decisions are pure functions of what was requested and of what the
machine has.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FEW_TRAINED: Final = 2000
"""Pictures in a training split that one process trains on if nobody asks for a number of workers.
A second worker halves the seconds of an epoch; on so few pictures that does not pay for Ray."""

_GPUS: Final = Path("/proc/driver/nvidia/gpus")
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Few:
    """Numbers of pictures that a job reads without Ray, and with one process that has all cores."""

    without_ray: int
    one_process: int = 0


PREDICTED: Final = Few(500, one_process=200)
"""Limits of a job that runs pictures through a network. One core needs 2 s (mobilenet_v3_small) to
20 s (resnet50) for 500. Each process imports torch and loads the network: 3 s of processor time."""
INGESTED: Final = Few(2000)
"""Limits of an ingest. One core needs 2 to 3 s."""
COPIED: Final = Few(20_000)
"""Limits of a job that copies pictures from shard to shard in its own process: 3 GB at 224 px."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Cores and GPUs of this machine that a job can use."""

    cores: int
    gpus: int


@dataclass(frozen=True)
class Choice:
    """True for this machine without Ray, with processes, cores of each, and a line to log."""

    without_ray: bool
    processes: int = 0
    cores: int = 1
    reason: str = ""


@dataclass(frozen=True)
class TrainingRoom:
    """Number of trainings that run at a time, of their workers, and of the cores of a worker.

    0 leaves the number to the launcher of one training.
    """

    at_once: int = 1
    workers: int = 0
    cores_per_worker: int = 0


ONE_TRAINING: Final = TrainingRoom()
"""One training at a time, which has all cores and GPUs."""

_CORES_PER_TRAINING: Final = 4  # a training on fewer cores takes hours where minutes are usual

_RAY: Final = Choice(without_ray=False)


def choose_for_units(
    pictures: int,
    units: int,
    *,
    few: Few,
    workers: int,
    asks_for_ray: bool,
    uses_gpus: bool,
    machine: Machine,
) -> Choice:
    """Choose for a job over `pictures` pictures in `units` units.

    `workers` is `--workers`, 0 for one per core. `asks_for_ray` is true if an address is given, be
    it `local`. Work on GPUs needs Ray, whose other cores decode for it.
    """
    if asks_for_ray or pictures > few.without_ray or (uses_gpus and machine.gpus):
        return _RAY
    default = 1 if pictures <= few.one_process else machine.cores
    processes = min(workers or default, units)
    cores = 1 if workers else max(1, machine.cores // max(1, processes))
    noun = "process" if processes == 1 else "processes"
    work = "1 picture" if pictures == 1 else f"{pictures} pictures"
    reason = f"{work}: {processes} {noun} without Ray (--address local starts Ray)"
    return Choice(without_ray=True, processes=processes, cores=cores, reason=reason)


def choose_for_training(
    pictures: int, *, workers: int, min_workers: int, asks_for_ray: bool, machine: Machine
) -> Choice:
    """Choose for a training on `pictures` pictures. Without Ray one worker trains, in this process.

    `workers` is `--workers`: 0 is one per GPU, or as many as pay on a machine without.
    """
    if asks_for_ray or max(workers, min_workers, machine.gpus if not workers else 0) > 1:
        return _RAY
    is_default = not workers and not machine.gpus
    if is_default and machine.cores > 1 and pictures > FEW_TRAINED:
        return _RAY
    reason = "one worker: trained in this process without Ray"
    if is_default:
        reason += f" ({pictures} pictures; --workers 2 starts Ray)"
    return Choice(without_ray=True, processes=1, reason=reason)


def choose_training_room(*, workers: int, cores: int, gpus: int) -> TrainingRoom:
    """Choose for several trainings on a cluster of so many cores and GPUs.

    `workers` is `--workers`; 0 is one worker for each training. A GPU is for one worker. Example:
    4 GPUs have room for four trainings of one worker; 16 cores without a GPU too, of 4 cores each.
    """
    each = workers or 1
    at_once = gpus // each if gpus else cores // (each * _CORES_PER_TRAINING)
    if at_once <= 1:
        return ONE_TRAINING
    return TrainingRoom(
        at_once=at_once,
        workers=each,
        cores_per_worker=max(1, cores // (at_once * each)) if not gpus else 1,
    )


def this_machine() -> Machine:
    """Return what this process may use of its machine; imports neither torch nor ray."""
    return Machine(cores=_usable_cores(), gpus=_visible_gpus())


def _usable_cores() -> int:
    """Return the cores of this process's affinity, or of its container's limit if that is lower."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    try:
        quota, period = _CGROUP_LIMIT.read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or no limit: "max 100000"
        pass
    return max(1, cores)


def _visible_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return sum(device.strip() not in {"", "-1"} for device in visible.split(","))
    try:
        return sum(1 for _ in _GPUS.iterdir())
    except OSError:
        return 0
