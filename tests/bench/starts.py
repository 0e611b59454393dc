"""Time that small jobs take, and time before a training computes, without Ray.

A job cannot begin before torch is imported: the bench measures that import just before each job and
shows it beside the figures. CPU seconds are those of all processes of a job: on a busy machine they
say more than the time that it takes.

*Start* of a training is the time from the command to the line that it logs when it has read its
initial weights.
"""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from tests.bench.labelling_models import make_model
from tests.bench.labelling_outputs import read_ours, require_every
from tests.bench.pictures import SMALL, make_pictures, picture_path
from tests.bench.table import PAIRS, Table, spread
from tests.bench.world import (
    OURS,
    WrongBenchError,
    in_memory,
    require_cores,
    round_folder,
    scaled,
    start_command,
)

LABEL_S: Final = 6.0
ONE_PICTURE_S: Final = 3.0
TRAIN_START_S: Final = 5.0
BACKBONE: Final = "mobilenet_v3_small"
SIZE: Final = 224
_BEGUN: Final = "weights: "


@dataclass(frozen=True)
class Taken:
    """Wall and processor seconds of a command, and of an import of torch just before it."""

    seconds: float
    cpu_s: float
    torch_s: float


def starts() -> bool:
    """Require small jobs to end, and trainings to begin, within seconds."""
    require_cores()
    with in_memory() as folder:
        few = make_pictures(folder / "few", SMALL, scaled(200))
        more = make_pictures(folder / "more", SMALL, scaled(500), seed=10**6)
        model = make_model(folder / "models", BACKBONE, SIZE)
        _ingest(more, folder / "dataset")

        table = Table(("job", "s", "CPU s", "import of torch, s", "beyond it, s", "limit", "met"))
        taken = _repeat(folder, lambda out: _label(few, out, model))
        _add(table, f"label of {scaled(200)} pictures", taken, "≤ {} in all", LABEL_S)
        taken = _repeat(folder, lambda out: _label_one(picture_path(few, 0), model))
        _add(table, "label of one picture", taken, "≤ {} in all", ONE_PICTURE_S)
        taken = _repeat(folder, lambda out: _begin_training(folder / "dataset", out, model))
        row = f"train on {scaled(500)} pictures, until it begins"
        _add(table, row, taken, "≤ {} beyond torch", TRAIN_START_S)
    return table.show(f"starts: {BACKBONE} on two cores, without Ray")


def _repeat(folder: Path, job: Callable[[Path], tuple[float, float]]) -> list[Taken]:
    taken = []
    for number in range(PAIRS):
        with round_folder(folder, f"round-{number}") as out:
            torch_s = _import_torch_s()
            taken.append(Taken(*job(out / "out"), torch_s))
    return taken


def _add(table: Table, job: str, taken: list[Taken], limit: str, limit_s: float) -> None:
    seconds, torch_s = [each.seconds for each in taken], [each.torch_s for each in taken]
    beyond = [each.seconds - each.torch_s for each in taken]
    measured = beyond if "beyond" in limit else seconds
    table.limit(
        job,
        *(spread(values, "{:.1f}") for values in (seconds, [t.cpu_s for t in taken], torch_s)),
        spread(beyond, "{:.1f}"),
        limit.format(f"{limit_s:g} s"),
        holds=median(measured) <= limit_s,
    )


def _import_torch_s() -> float:
    started = time.monotonic()
    subprocess.run([str(OURS), "-c", "import torch"], check=True)
    return time.monotonic() - started


def _ingest(source: Path, dataset: Path) -> None:
    _run("ingest", str(source), str(dataset), "--size", str(SIZE))


def _label(source: Path, predictions: Path, model: str) -> tuple[float, float]:
    taken = _run("label", str(source), str(predictions), "--model", model)
    require_every("afinar", read_ours(predictions), source)
    return taken


def _label_one(picture: Path, model: str) -> tuple[float, float]:
    return _run("label", str(picture), "-", "--model", model)


def _run(*arguments: str) -> tuple[float, float]:
    """Run a command of afinar, which must not start Ray; return its wall and processor seconds."""
    started, cpu_s = time.monotonic(), _children_cpu_s()
    process = start_command([str(OURS), "-m", "afinar", *arguments])
    _, errors = process.communicate(timeout=300)
    seconds = time.monotonic() - started
    if process.returncode or "starting a local Ray" in errors:
        raise WrongBenchError(f"{arguments} ended with {process.returncode}: {errors[-3000:]}")
    return seconds, _children_cpu_s() - cpu_s


def _begin_training(dataset: Path, models: Path, model: str) -> tuple[float, float]:
    """Start a training; return its seconds until it has its weights, and stop it."""
    job = ["train", str(dataset), str(models), "--regime", "frozen", "--workers", "1"]
    started, cpu_s = time.monotonic(), _children_cpu_s()
    command = [*job, "--backbone", BACKBONE, "--weights", model]
    process = start_command([str(OURS), "-m", "afinar", *command])
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(_BEGUN):
            break
    seconds = time.monotonic() - started
    process.kill()
    process.communicate()
    if not lines or not lines[-1].startswith(_BEGUN):
        raise WrongBenchError(f"no training began: {''.join(lines)[-3000:]}")
    return seconds, _children_cpu_s() - cpu_s


def _children_cpu_s() -> float:
    """Return the processor seconds of all processes below this one that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
