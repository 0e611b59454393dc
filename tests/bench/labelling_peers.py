"""Labelling against its peers: the same files, weights and answers, on two cores.

Every side is timed on all pictures and on a part of them, in one process after a warm-up. Its rate
is the difference in pictures over the difference in seconds. So the start (new processes import
torch and load the model) counts for no side: archives are larger than the pictures of a bench. The
part is large enough for all workers and for OpenVINO. The table has the ratio of whole runs too.
All sides squash their pictures, which each of them can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from tests.bench.labelling_models import make_model
from tests.bench.labelling_outputs import Agreement, read_answers, read_ours, require_same_answers
from tests.bench.pictures import SMALL, make_pictures
from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.world import (
    CORES,
    OURS,
    PEERS,
    Record,
    in_memory,
    require_cores,
    round_folder,
    run_side,
    scaled,
)

SIZE: Final = 224
BACKBONE: Final = "mobilenet_v3_small"
COUNT: Final = 10_000
PART: Final = 4000
DISTINCT: Final = 1000
OUR_RUNS: Final = 3
FEW: Final = 8  # for the warm-up, and to choose options
TUNED: Final = 256


@dataclass(frozen=True)
class Peer:
    """One peer. `times` is its limit. Of `options`, the fastest on `TUNED` pictures is compared.

    With `predictor` it uses afinar's predictor, in afinar's environment.
    """

    name: str
    module: str
    times: float
    options: tuple[Record, ...]
    predictor: bool = False


NO_OPTIONAL_COLUMNS: Final = (
    Peer(
        "Ray Data, its guide's batch inference", "label_ray_data", 3.5,
        options=({"form": "map", "blocks": None, "actors": 1, "batch": 16},
                 {"form": "map", "blocks": 8, "actors": 2, "batch": 16},
                 {"form": "sized", "blocks": 8, "actors": 2, "batch": 16}),
    ),
    Peer(
        "Daft, a class with the model", "label_daft", 2.7,
        options=({"form": "apply", "actors": 1, "process": None, "batch": 16},
                 {"form": "apply", "actors": 2, "process": True, "batch": 16},
                 {"form": "resize", "actors": 1, "process": None, "batch": 16},
                 {"form": "resize", "actors": 2, "process": True, "batch": 16}),
    ),
    Peer(
        "torch DataLoader, one process", "label_loader", 2,
        options=({"workers": 0, "threads": 2, "batch": 16, "layout": "channels last"},
                 {"workers": 1, "threads": 1, "batch": 16, "layout": "channels last"},
                 {"workers": 1, "threads": 2, "batch": 16, "layout": "channels last"},
                 {"workers": 2, "threads": 1, "batch": 16, "layout": "channels last"},
                 {"workers": 2, "threads": 1, "batch": 64, "layout": "default"}),
    ),
)  # fmt: skip

GIVEN: Final = (
    Peer(
        "Ray Data, given afinar's predictor", "label_ray_data", 1.5, predictor=True,
        options=({"form": "sized", "blocks": 8, "actors": 2, "batch": 8},
                 {"form": "bytes", "blocks": 4, "actors": 1, "batch": 8},
                 {"form": "bytes", "blocks": 4, "actors": 2, "batch": 8}),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """Pictures per second without and with the start, and the agreement with afinar."""

    rate: float
    whole: float
    agreement: Agreement | None = None


@dataclass(frozen=True)
class Pictures:
    """Folders of pictures, and the model."""

    all: Path
    part: Path
    few: Path
    tuned: Path
    warm: Path
    model: str

    def rate_of(self, part_s: float, all_s: float) -> Timed:
        """Return the rates from the times of the part and of all pictures."""
        count = scaled(COUNT)
        return Timed((count - scaled(PART)) / (all_s - part_s), count / all_s)


def label_peers() -> bool:
    """Require 3.5 times the rate of Ray Data, 2.7 times that of Daft, twice that of DataLoader.

    Each of them has the network of torchvision, in torch; afinar has OpenVINO.
    """
    return _compare(NO_OPTIONAL_COLUMNS, "label_peers")


def label_ray() -> bool:
    """Require 1.5 times the rate of Ray Data with the same predictor."""
    return _compare(GIVEN, "label_ray")


def _compare(peers: Sequence[Peer], bench: str) -> bool:
    require_cores()
    with in_memory() as folder:
        pictures = Pictures(
            make_pictures(folder / "all", SMALL, scaled(COUNT), DISTINCT),
            make_pictures(folder / "part", SMALL, scaled(PART), DISTINCT),
            make_pictures(folder / "few", SMALL, FEW, seed=10**6),
            make_pictures(folder / "tuned", SMALL, scaled(TUNED), seed=2 * 10**6),
            make_pictures(folder / "warm", SMALL, FEW, seed=10**6 + FEW),
            make_model(folder / "models", BACKBONE, SIZE),
        )
        tuned = {peer.name: _tune(peer, pictures, folder) for peer in peers}
        ours: list[Timed] = []
        theirs: dict[str, list[Timed]] = {peer.name: [] for peer in peers}
        versions: dict[str, str] = {}
        for number in range(PAIRS):
            with round_folder(folder, f"round-{number}") as out:
                ours.append(_ours(pictures, out))
                for peer in peers:
                    (out / peer.module).mkdir()
                    sources = [pictures.part, pictures.all]
                    answer = _run(peer, [tuned[peer.name]], sources, pictures, out / peer.module)
                    versions[peer.name] = answer["version"]
                    theirs[peer.name].append(_theirs(peer, answer, pictures, out))
        return _report(bench, peers, ours, theirs, versions, tuned)


def _tune(peer: Peer, pictures: Pictures, folder: Path) -> Record:
    """Return the options with the least time for the `TUNED` pictures beyond the few."""
    with round_folder(folder, "tuning") as out:
        seconds = _run(peer, peer.options, [pictures.few, pictures.tuned], pictures, out)["seconds"]
    differences = [all_s - few_s for few_s, all_s in seconds]
    return peer.options[differences.index(min(differences))]


def _run(
    peer: Peer, options: Sequence[Record], sources: Sequence[Path], pictures: Pictures, out: Path
) -> Record:
    request = {
        "model": pictures.model, "size": SIZE, "cores": CORES, "predictor": peer.predictor,
        "options": list(options), "sources": list(map(str, sources)), "warm_up": str(pictures.warm),
        "out": str(out),
    }  # fmt: skip
    return run_side(peer.module, request, OURS if peer.predictor else PEERS, timeout_s=600)


def _theirs(peer: Peer, answer: Record, pictures: Pictures, out: Path) -> Timed:
    ((part_s, all_s),) = answer["seconds"]
    rows = read_answers(out / peer.module / "0-1")
    timed = pictures.rate_of(part_s, all_s)
    return Timed(
        timed.rate,
        timed.whole,
        require_same_answers(peer.name, rows, read_ours(out / "all-1"), pictures.all),
    )


def _ours(pictures: Pictures, out: Path) -> Timed:
    """Return the rates from the medians of several runs: the start varies by a second of five."""

    def labelling(source: Path, number: int) -> Record:
        predictions = out / f"{source.name}-{number}"
        return {"source": str(source), "predictions": str(predictions), "model": pictures.model}

    sources = [pictures.part, pictures.all] * OUR_RUNS
    request = {
        "cores": CORES,
        "warm_up": labelling(pictures.warm, 0),
        "labellings": [labelling(source, number) for number, source in enumerate(sources)],
    }
    runs = run_side("label_afinar", request, timeout_s=600)["labellings"]
    part_s, all_s = (median(run["seconds"] for run in runs[side::2]) for side in (0, 1))
    return pictures.rate_of(part_s, all_s)


def _report(
    bench: str,
    peers: Sequence[Peer],
    ours: list[Timed],
    theirs: dict[str, list[Timed]],
    versions: dict[str, str],
    tuned: dict[str, Record],
) -> bool:
    table = Table(
        ("peer", "version", "options", "pictures/s", "afinar", "ratio", "ratio of whole runs",
         "labels, worst apart", "limit", "met")
    )  # fmt: skip
    our_rates = [run.rate for run in ours]
    for peer in peers:
        runs = theirs[peer.name]
        rates = [run.rate for run in runs]
        ratio = Ratio.of(our_rates, rates)
        whole = Ratio.of([run.whole for run in ours], [run.whole for run in runs])
        options = ", ".join(f"{name} {value}" for name, value in tuned[peer.name].items())
        cells = (
            peer.name, versions[peer.name], options, spread(rates), spread(our_rates), ratio, whole,
            runs[-1].agreement,
        )  # fmt: skip
        table.limit(*cells, f"≥ {peer.times:g}", holds=ratio.median >= peer.times)
    pictures = f"{scaled(COUNT)} pictures of {SMALL[0]}×{SMALL[1]}"
    return table.show(f"{bench}: {pictures}, {BACKBONE} at {SIZE} px, two cores, files in memory")
