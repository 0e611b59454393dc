"""Ingest against its peers: the same files in memory, the same output size, on two cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.outputs import RowNumbers, read_afinar, read_frames, read_img2dataset, require_same
from tests.bench.pictures import SMALL, make_pictures
from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.world import (
    CORES,
    PEERS,
    Record,
    in_memory,
    ingests_of,
    require_cores,
    round_folder,
    run_side,
    scaled,
)

SIZE: Final = 256
COUNT: Final = 2000


@dataclass(frozen=True)
class Peer:
    """One peer in one form.

    `fit` is its geometry, in which afinar is measured too. `times` is the limit. The fastest of
    `options` on this machine and these pictures is found before the comparison.
    """

    name: str
    module: str
    fit: str
    times: float
    read: Callable[[Path, int], RowNumbers]
    options: tuple[Record, ...]
    form: str = ""
    reference: str = ""  # fit of the reference, if it differs from `fit`


PEERS_COMPARED: Final = (
    Peer(
        "Ray Data, `read_images`", "ray_data", "squash", 4, read_frames, form="read_images",
        options=({"blocks": None}, {"blocks": 8}),
    ),
    Peer(
        "Ray Data, `map_batches` or `map`", "ray_data", "crop", 3, read_frames, form="map",
        options=({"blocks": 2, "batch": 64}, {"blocks": 8, "batch": 250},
                 {"blocks": 8, "batch": 0}),
    ),
    Peer("Daft", "daft_frames", "squash", 4, read_frames, options=({"batch": 0}, {"batch": 64})),
    Peer(
        "img2dataset", "img2dataset_files", "crop", 2, read_img2dataset, reference="crop last",
        options=({"format": "files", "threads": 1}, {"format": "webdataset", "threads": 2},
                 {"format": "webdataset", "threads": 8}, {"format": "parquet", "threads": 8}),
    ),
)  # fmt: skip


def peers() -> bool:
    """Measure afinar in both geometries, then every peer, each in a new process; three rounds."""
    require_cores()
    with in_memory() as folder:
        source = make_pictures(folder / "pictures", SMALL, scaled(COUNT))
        warm_up = make_pictures(folder / "warm", SMALL, 200, seed=10**6)
        tuned = {peer.name: _tune(peer, source, warm_up, folder) for peer in PEERS_COMPARED}
        ours: dict[str, list[float]] = {"crop": [], "squash": []}
        theirs: dict[str, list[float]] = {peer.name: [] for peer in PEERS_COMPARED}
        apart: dict[str, float] = {}
        versions: dict[str, str] = {}
        for number in range(PAIRS):
            with round_folder(folder, f"ours-{number}") as out:
                for fit, rate in _ours(source, warm_up, out).items():
                    ours[fit].append(rate)
            for peer in PEERS_COMPARED:
                with round_folder(folder, f"{peer.module}-{number}") as out:
                    answer = _run(peer, [tuned[peer.name]], source, warm_up, out)
                    theirs[peer.name].append(scaled(COUNT) / answer["seconds"][0])
                    versions[peer.name] = answer["version"]
                    rows = peer.read(out / "0", SIZE)
                    apart[peer.name] = require_same(
                        peer.name, rows, source, SIZE, peer.reference or peer.fit
                    )
        return _report(ours, theirs, apart, versions, tuned)


def _ours(source: Path, warm_up: Path, out: Path) -> dict[str, float]:
    fields = [
        {"source": str(source), "dataset": str(out / fit), "size": SIZE, "fit": fit}
        for fit in ("crop", "squash")
    ]
    first = {"source": str(warm_up), "dataset": str(out / "warm"), "size": SIZE}
    answer = ingests_of(
        run_side("afinar_ingest", {"cores": CORES, "warm_up": first, "ingests": fields})
    )
    rates = {}
    for record, ingest in zip(answer, fields, strict=True):
        fit = str(ingest["fit"])
        require_same("afinar", read_afinar(out / fit, SIZE), source, SIZE, fit)
        rates[fit] = scaled(COUNT) / record["seconds"]
    return rates


def _run(peer: Peer, options: Sequence[Record], source: Path, warm_up: Path, out: Path) -> Record:
    folders = {"source": str(source), "warm_up": str(warm_up), "out": str(out)}
    request = {"size": SIZE, "cores": CORES, "form": peer.form, "options": list(options), **folders}
    return run_side(peer.module, request, PEERS)


def _tune(peer: Peer, source: Path, warm_up: Path, folder: Path) -> Record:
    with round_folder(folder, "tuning") as out:
        seconds: list[float] = _run(peer, peer.options, source, warm_up, out)["seconds"]
    return peer.options[seconds.index(min(seconds))]


def _report(
    ours: dict[str, list[float]],
    theirs: dict[str, list[float]],
    apart: dict[str, float],
    versions: dict[str, str],
    tuned: dict[str, Record],
) -> bool:
    table = Table(
        (
            "peer",
            "version",
            "options",
            "pictures/s",
            "afinar, same fit",
            "ratio",
            "pixels apart",
            "limit",
            "met",
        )
    )
    for peer in PEERS_COMPARED:
        rates, our_rates = theirs[peer.name], ours[peer.fit]
        ratio = Ratio.of(our_rates, rates)
        options = ", ".join(f"{name} {value}" for name, value in tuned[peer.name].items()) or "–"
        table.limit(
            peer.name, versions[peer.name], options, spread(rates),
            f"{peer.fit} {spread(our_rates)}", ratio, f"{apart[peer.name]:.1f}",
            f"≥ {peer.times:g}", holds=ratio.median >= peer.times,
        )  # fmt: skip
    pictures = f"{scaled(COUNT)} pictures of {SMALL[0]}×{SMALL[1]} to {SIZE}×{SIZE}"
    return table.show(f"peers: {pictures}, two cores, files in memory")
