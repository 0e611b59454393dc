"""Shuffled batches of pixels: afinar from shards, a gather from one memory map, and peers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from afinar.dataset.reader import open_dataset
from tests.bench.epochs import Signatures, require_same_pictures, signature
from tests.bench.pictures import SMALL, make_pictures
from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.world import (
    CORES,
    OURS,
    PEERS,
    Record,
    WrongBenchError,
    in_memory,
    ingests_of,
    require_cores,
    round_folder,
    run_side,
    scaled,
)

SIZE: Final = 256
BATCH: Final = 64
# Batches in an epoch: 2,048 pictures, 400 MB of pixels in each store that keeps pixels.
COUNT: Final = 32
SECONDS: Final = 4.0  # least duration of a measurement, which has whole epochs
SHARE: Final = 0.8
TIMES: Final = 2.0
EXACT: Final = 0.01  # levels: the same pixels
# Levels on a grid of means: the same pictures after JPEG, or resized by another filter.
NEAR: Final = 3.0


@dataclass(frozen=True)
class Reader:
    """A side that reads epochs. The fastest of its `options` is found before the comparison."""

    name: str
    module: str
    options: tuple[Record, ...]
    apart: float = NEAR
    form: str = ""
    python: Path = PEERS


AFINAR: Final = Reader("afinar", "shard_batches", ({},), EXACT, "afinar", OURS)
GATHER: Final = Reader(
    "numpy gather", "shard_batches", ({"how": "take"}, {"how": "index"}), EXACT, "gather", OURS
)


def _workers(**options: object) -> tuple[Record, ...]:
    """Return options: no worker process, or two with two or eight batches prepared ahead."""
    return (
        {**options, "workers": 0},
        *({**options, "workers": CORES, "ahead": ahead} for ahead in (2, 8)),
    )


COMPARED: Final = (
    Reader(
        "MosaicML Streaming", "mosaic_batches",
        (*_workers(store="mds-pixels"), {"store": "mds-jpeg", "workers": 0},
         {"store": "mds-jpeg", "workers": CORES, "ahead": 2}),
    ),
    Reader(
        "WebDataset", "webdataset_batches",
        (*_workers(kind="npy"), {"kind": "jpg", "workers": 0},
         {"kind": "jpg", "workers": CORES, "ahead": 2}),
    ),
    Reader(
        "Ray Data, `iter_torch_batches`", "ray_batches",
        ({"form": "parquet", "ahead": 1}, {"form": "parquet", "ahead": 4},
         {"form": "images", "ahead": 4}),
    ),
    Reader("torch DataLoader, ImageFolder", "folder_batches", _workers()),
)  # fmt: skip


def batches() -> bool:
    """Require 0.8 of the gather's rate and twice the best peer's.

    In each round every reader runs in a new process.
    """
    require_cores()
    with in_memory() as folder:
        source, stores = folder / "pictures", folder / "stores"
        wanted = _make_stores(source, stores)
        base = {
            "source": str(source), "stores": str(stores), "size": SIZE, "batch": BATCH,
            "cores": CORES, "count": len(wanted), "seconds": SECONDS if PAIRS > 1 else 0.0,
        }  # fmt: skip
        readers = (GATHER, AFINAR, *COMPARED)
        tuned = {reader.name: _tune(reader, base, folder) for reader in readers}
        rounds: dict[str, list[Record]] = {reader.name: [] for reader in readers}
        for number in range(PAIRS):
            for reader in readers:
                with round_folder(folder, f"{reader.module}-{number}") as out:
                    answer = _run(reader, [tuned[reader.name]], base, out)
                    signatures = np.load(out / "0.npy")
                run = answer["runs"][0] | {"version": answer["version"]}
                run["apart"] = require_same_pictures(reader.name, signatures, wanted, reader.apart)
                rounds[reader.name].append(run)
        _sizes(stores, len(wanted))
        return _report(rounds, tuned, len(wanted))


def _make_stores(source: Path, stores: Path) -> Signatures:
    """Store the pixels of one source as a dataset, an array, JPEGs, and in each peer's format.

    Returns the signatures of the pictures.
    """
    count = BATCH * scaled(COUNT)
    make_pictures(source, SMALL, count)
    (stores / "jpegs").mkdir(parents=True)
    fields = {"source": str(source), "dataset": str(stores / "dataset"), "size": SIZE}
    warm_up = make_pictures(source.parent / "warm", SMALL, 8, seed=10**6)
    first = {"source": str(warm_up), "dataset": str(source.parent / "warmed"), "size": SIZE}
    ingests_of(run_side("afinar_ingest", {"cores": CORES, "warm_up": first, "ingests": [fields]}))
    dataset = open_dataset(str(stores / "dataset"))
    rows = {
        int(Path(uri).stem): row for row, uri in enumerate(dataset.index.column("uri").to_pylist())
    }
    if sorted(rows) != list(range(count)):
        raise WrongBenchError(f"the dataset holds {len(rows)} of {count} pictures")
    pixels = np.lib.format.open_memmap(
        stores / "pixels.npy", "w+", np.uint8, (count, SIZE, SIZE, 3)
    )
    for number in range(count):
        pixels[number] = dataset.read([rows[number]])[0]
        Image.fromarray(pixels[number]).save(stores / "jpegs" / f"{number:06d}.jpg", quality=95)
    pixels.flush()
    wanted = np.concatenate([signature(part) for part in np.array_split(pixels, count // BATCH)])
    run_side("batch_stores", {"stores": str(stores)}, PEERS)
    return wanted


def _run(reader: Reader, options: list[Record], base: Record, out: Path) -> Record:
    request = base | {"form": reader.form, "options": options, "out": str(out)}
    return run_side(reader.module, request, reader.python, timeout_s=600)


def _tune(reader: Reader, base: Record, folder: Path) -> Record:
    if len(reader.options) == 1:
        return reader.options[0]
    with round_folder(folder, "tuning") as out:
        runs = _run(reader, list(reader.options), base | {"seconds": base["seconds"] / 2}, out)[
            "runs"
        ]
    rates = [float(run["rate"]) for run in runs]
    return reader.options[rates.index(max(rates))]


def _sizes(stores: Path, count: int) -> None:
    table = Table(("store", "KB a picture"))
    for path in sorted(stores.iterdir()):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        table.add(
            f"`{path.name}`", f"{sum(file.stat().st_size for file in files) / count / 1000:.1f}"
        )
    table.show("batches: what is stored")


def _report(rounds: dict[str, list[Record]], tuned: dict[str, Record], count: int) -> bool:
    table = Table(
        (
            "reader",
            "version",
            "options",
            "pictures/s",
            "mixing",
            "levels apart",
            "afinar : reader",
            "limit",
            "met",
        )
    )
    ours = [run["rate"] for run in rounds[AFINAR.name]]
    for name, runs in rounds.items():
        rates = [run["rate"] for run in runs]
        options = ", ".join(f"{key} {value}" for key, value in tuned[name].items()) or "–"
        mixed = min(run["mixing"] for run in runs)
        cells = (
            name, runs[0]["version"] if name != AFINAR.name else "", options, spread(rates),
            f"{mixed:.2f}", f"{max(run['apart'] for run in runs):.2f}",
        )  # fmt: skip
        if name == AFINAR.name:
            table.add(*cells)
            continue
        least = SHARE if name == GATHER.name else TIMES
        ratio = Ratio.of(ours, rates)
        table.limit(*cells, ratio, f"≥ {least:g}", holds=ratio.median >= least)
    return table.show(
        f"batches: {count} pictures of {SIZE}×{SIZE} in batches of {BATCH}, two cores, in memory"
    )
