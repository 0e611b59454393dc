"""Labelling on CPUs against its bound: decoding alone plus the forward pass alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from tests.bench.labelling_models import make_model
from tests.bench.labelling_outputs import read_ours, require_every
from tests.bench.pictures import SMALL, make_pictures
from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.world import (
    CORES,
    Record,
    WrongBenchError,
    in_memory,
    require_cores,
    round_folder,
    run_side,
    scaled,
)

SHARE: Final = 0.88
SIZE: Final = 224
PICTURES: Final = {"mobilenet_v3_small": 8000, "resnet18": 1600}
"""Half a minute each, so that workers that start some seconds apart make no difference."""
DISTINCT: Final = 1000
BARE: Final = {"mobilenet_v3_small": 256, "resnet18": 64}
"""Pictures that each process passes through each candidate: enough for a rate in two seconds."""
LEAST: Final = 100  # pictures: enough for a unit for each worker
Candidate = tuple[str, int]
CANDIDATES: Final = tuple(
    (network, batch) for network in ("published", "labelling's") for batch in (4, 8, 16, 32, 64)
)  # fmt: skip
"""The published network, and the one that labelling optimizes; the fastest gives the bound."""


@dataclass
class Network:
    """Measurements of one network; `bounds` and `rates` are pictures per second."""

    source: Path
    model: str
    candidates: tuple[Candidate, ...] = CANDIDATES
    bounds: list[float] = field(default_factory=list)
    costs: list[tuple[float, float]] = field(default_factory=list)
    ours: list[Record] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Rates from the start of the first unit to the end of the job."""
        return [run["summary"]["labelled"] / (run["units_s"] + run["after_s"]) for run in self.ours]


def label_bound() -> bool:
    """Require 0.88 of the bound for both networks; the first round finds the fastest candidate."""
    require_cores()
    with in_memory() as folder:
        warm_up = make_pictures(folder / "warm", SMALL, 64, seed=10**6)
        networks = {}
        for name, count in PICTURES.items():
            source = make_pictures(folder / name, SMALL, max(scaled(count), LEAST), DISTINCT)
            networks[name] = Network(source, make_model(folder / f"{name}-models", name, SIZE))
        for number in range(PAIRS):
            for name, network in networks.items():
                _add_bound(network, _bare(name, network))
            with round_folder(folder, f"round-{number}") as out:
                _add_ours(networks, warm_up, out)
        return _report(networks)


def _bare(name: str, network: Network) -> Record:
    return run_side(
        "label_bare",
        {"model": network.model, "source": str(network.source),
         "pictures": max(scaled(BARE[name]), 64), "candidates": network.candidates, "cores": CORES},
    )  # fmt: skip


def _add_bound(network: Network, answer: Record) -> None:
    """Add the bound: each core decodes a picture, then makes the cheapest forward pass."""
    costs = [
        {(name, batch): cost for name, batch, cost in process} for process in answer["forward"]
    ]
    best = min(costs[0], key=lambda candidate: sum(process[candidate] for process in costs))
    network.candidates = (best,)
    forward = [process[best] for process in costs]
    per_picture_s = [sum(pair) for pair in zip(answer["decode"], forward, strict=True)]
    network.bounds.append(sum(1 / seconds for seconds in per_picture_s))
    network.costs.append((median(answer["decode"]), median(forward)))


def _add_ours(networks: dict[str, Network], warm_up: Path, out: Path) -> None:
    labellings = [
        {"source": str(network.source), "predictions": str(out / name), "model": network.model}
        for name, network in networks.items()
    ]
    first = labellings[0] | {"source": str(warm_up), "predictions": str(out / "warm")}
    answers = run_side(
        "label_afinar", {"cores": CORES, "warm_up": first, "labellings": labellings}, timeout_s=600
    )
    for (name, network), run in zip(networks.items(), answers["labellings"], strict=True):
        require_every("afinar", read_ours(out / name), network.source)
        if run["workers"] != CORES:
            raise WrongBenchError(f"{run['workers']} of {CORES} workers labelled")
        network.ours.append(run)


def _report(networks: dict[str, Network]) -> bool:
    table = Table(
        ("network", "pictures", "afinar, /s", "bound, /s", "decode + forward, ms",
         "network and batch of the bound", "whole job, /s", "share", f"≥ {SHARE}")
    )  # fmt: skip
    for name, network in networks.items():
        share = Ratio.of(network.rates, network.bounds)
        decode, forward = (1000 * median(cost[side] for cost in network.costs) for side in (0, 1))
        (fastest,) = network.candidates
        whole = [run["summary"]["labelled"] / run["seconds"] for run in network.ours]
        table.limit(
            name, network.ours[0]["summary"]["listed"], spread(network.rates),
            spread(network.bounds), f"{decode:.2f} + {forward:.2f}", f"{fastest[0]}, {fastest[1]}",
            spread(whole), share, holds=share.median >= SHARE,
        )  # fmt: skip
    return table.show(
        f"label_bound: {SMALL[0]}×{SMALL[1]} at {SIZE} px, two cores, files in memory, "
        "from the start of the first unit"
    )
