"""Labels of the same pictures by the same model: bfloat16 and float32, OpenVINO and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from tests.bench.hardware import has_amx
from tests.bench.labelling_models import make_model
from tests.bench.labelling_outputs import read_ours, require_every
from tests.bench.pictures import SMALL, make_pictures
from tests.bench.table import Ratio, Table, spread
from tests.bench.world import CORES, WrongBenchError, in_memory, require_cores, run_side, scaled

SAME: Final = 0.995
COUNT: Final = 2000
ENGINE_PICTURES: Final = 128
ENGINE_ROUNDS: Final = 5
SIZE: Final = 224
NETWORKS: Final = ("mobilenet_v3_small", "resnet18")
_UNCERTAIN: Final = 0.6  # probability, of two classes, below which the label could change


def label_precision() -> bool:
    """Require the same label for at least 99.5 % of the pictures; rates are not measured."""
    require_cores()
    table = Table(
        (
            "network",
            "labelled in",
            "pictures",
            "below 0.6",
            "same label, %",
            "probability, worst apart",
            "limit",
            "met",
        )
    )
    reduced: list[bool] = []
    with in_memory() as folder:
        source = make_pictures(folder / "pictures", SMALL, scaled(COUNT))
        warm = make_pictures(folder / "warm", SMALL, 64, seed=10**6)
        for name in NETWORKS:
            full, half = _answers(
                source, warm, make_model(folder / f"{name}-models", name, SIZE), folder / name
            )
            paths = sorted(full)
            same = sum(full[path][0] == half[path][0] for path in paths) / len(paths)
            apart = np.array([_apart(full[path], half[path]) for path in paths])
            reduced.append(bool(apart.any()))
            uncertain = sum(full[path][1] < _UNCERTAIN for path in paths)
            table.limit(
                name, "bfloat16" if reduced[-1] else "float32, by its golden samples", len(paths),
                uncertain, f"{100 * same:.2f}", f"{apart.max():.3f}", f"≥ {100 * SAME:g}",
                holds=same >= SAME,
            )  # fmt: skip
    if not any(reduced):
        raise WrongBenchError("no network was used in bfloat16: there is nothing to compare")
    instructions = "AMX" if has_amx() else "no AMX"
    return table.show(
        f"label_precision: bfloat16 ({instructions}) against float32, "
        f"{SMALL[0]}×{SMALL[1]} at {SIZE} px"
    )


def label_openvino() -> bool:
    """Require that OpenVINO is no slower than torch on one core, and 99.5 % the same labels.

    Both are what `--precision auto` chooses, for many pictures with and without OpenVINO.
    """
    require_cores()
    table = Table(
        ("network", "torch", "ms", "OpenVINO", "ms", "times as fast", "same label as float32, %",
         "probability, worst apart", "start, s", "limit", "met")
    )  # fmt: skip
    with in_memory() as folder:
        source = make_pictures(folder / "pictures", SMALL, max(scaled(ENGINE_PICTURES), 32))
        for name in NETWORKS:
            model = make_model(folder / f"{name}-models", name, SIZE)
            answer = run_side(
                "label_engines",
                {"model": model, "source": str(source), "pictures": ENGINE_PICTURES,
                 "rounds": ENGINE_ROUNDS},
                timeout_s=900,
            )  # fmt: skip
            times, used = answer["times_ms"], answer["precisions"]
            if not used["openvino"].startswith("OpenVINO"):
                raise WrongBenchError(f"{name} was not computed by OpenVINO")

            ratio, same = Ratio.of(times["torch"], times["openvino"]), answer["same"]["openvino"]
            table.limit(
                name, used["torch"], spread(times["torch"], "{:.2f}"),
                used["openvino"], spread(times["openvino"], "{:.2f}"), ratio, f"{100 * same:.2f}",
                f"{answer['apart']['openvino']:.4f}", f"{answer['start_s']:.1f}",
                f"≥ 1, ≥ {100 * SAME:g}", holds=ratio.median >= 1 and same >= SAME,
            )  # fmt: skip
    return table.show(f"label_openvino: one core, batches of 16, {SIZE} px")


Answers = dict[str, tuple[str, float]]


def _answers(source: Path, warm: Path, model: str, out: Path) -> tuple[Answers, Answers]:
    """Return label and probability by path, in float32 and in bfloat16."""
    both = [
        {
            "source": str(source),
            "predictions": str(out / precision),
            "model": model,
            "precision": precision,
        }
        for precision in ("float32", "bfloat16")
    ]
    warm_up = both[0] | {"source": str(warm), "predictions": str(out / "warm")}
    run_side(
        "label_afinar", {"cores": CORES, "warm_up": warm_up, "labellings": both}, timeout_s=900
    )
    full, half = (
        require_every("afinar", read_ours(Path(fields["predictions"])), source) for fields in both
    )
    return full, half


def _apart(one: tuple[str, float], other: tuple[str, float]) -> float:
    return abs(one[1] - (other[1] if one[0] == other[0] else 1 - other[1]))
