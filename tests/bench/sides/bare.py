"""The bare limit: one process per core that decodes pictures in memory and writes a shard."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afinar.dataset.shards import batch_rows
from afinar.pictures.decode import decode, decode_into
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.resize import Pixels

Decoder = Callable[[bytes, StoredView], Pixels]
Loop = Callable[[list[bytes], StoredView, Path], None]
"""Work on all pictures of a process, which may write to a file of its own."""


def ours(data: bytes, view: StoredView) -> Pixels:
    """Decode as every job does."""
    return decode(data, view).image


def in_place(data: bytes, view: StoredView) -> Pixels:
    """Decode into an existing buffer."""
    decode_into(data, view, _place(view.size))
    return _place(view.size)


@cache
def _place(size: int) -> Pixels:
    return np.empty((size, size, 3), dtype=np.uint8)


def pillow(data: bytes, view: StoredView) -> Pixels:
    """Decode an ordinary JPEG without checks, orientation, transparency or errors."""
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    image.draft("RGB", (2 * view.size, 2 * view.size))
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = image.resize(
        (view.size, view.size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return np.asarray(square)


DECODERS: dict[str, Decoder] = {"decode": ours, "decode_into": in_place, "pillow": pillow}
"""Candidates for the fastest. Their pixels are compared with those of `decode`."""


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Return pictures per second by decoder and of required work, other costs, differences."""
    files = sorted(str(path) for path in Path(request["source"]).rglob("*.jpg"))[
        : request["pictures"]
    ]
    view = StoredView(size=request["size"], fit="crop")
    cores, out = request["cores"], Path(request["out"])
    loops = {name: partial(_decode_all, decoder) for name, decoder in DECODERS.items()}
    return {
        "rates": {name: rate(loop, files, view, out, cores) for name, loop in loops.items()},
        "required": rate(_write_shard, files, view, out, cores),
        "costs_s": costs_s(files, view, out),
        "apart": apart(files[:100], view),
    }


def rate(loop: Loop, files: list[str], view: StoredView, out: Path, cores: int) -> float:
    """Return the sum of the rates of all processes, so that none waits for another at the end."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(cores)
    answers: Any = context.SimpleQueue()
    processes = [
        context.Process(
            target=_time_loop,
            args=(loop, files[number::cores], view, Path(f"{out}-{number}"), barrier, answers),
        )
        for number in range(cores)
    ]
    for process in processes:
        process.start()
    total = sum(answers.get() for _ in processes)
    for process in processes:
        process.join()
    return float(total)


def _time_loop(
    loop: Loop, files: list[str], view: StoredView, out: Path, barrier: Any, answers: Any
) -> None:
    pictures = [Path(file).read_bytes() for file in files]
    loop(pictures[:20], view, out)
    barrier.wait()
    started = time.perf_counter()
    loop(pictures, view, out)
    answers.put(len(pictures) / (time.perf_counter() - started))


def _decode_all(decoder: Decoder, pictures: list[bytes], view: StoredView, out: Path) -> None:
    del out
    for data in pictures:
        decoder(data, view)


def _write_shard(pictures: list[bytes], view: StoredView, out: Path) -> None:
    """Do what the format requires: decode, hash each file, hash and write the pixels."""
    rows = batch_rows(view)
    batch = np.empty((rows, view.size, view.size, 3), np.uint8)
    digest, ids = hashlib.sha256(), []
    with out.open("wb") as file:
        for start in range(0, len(pictures), rows):
            group = pictures[start : start + rows]
            for data, place in zip(group, batch, strict=False):
                ids.append(hashlib.sha256(data).hexdigest())
                decode_into(data, view, place)
            digest.update(batch[: len(group)].data)
            file.write(batch[: len(group)].data)
        os.fsync(file.fileno())
    out.unlink()


def costs_s(files: list[str], view: StoredView, out: Path) -> dict[str, float]:
    """Return the seconds per picture of the other work of an ingest: hash and write."""
    pictures = [Path(file).read_bytes() for file in files[:500]]
    shard = (
        np.random.default_rng(0)
        .integers(0, 256, len(pictures) * view.size**2 * 3, dtype=np.uint8)
        .tobytes()
    )
    return {
        "hash the file": _timed(lambda: [hashlib.sha256(data).hexdigest() for data in pictures])
        / len(pictures),
        "hash the shard": _timed(lambda: hashlib.sha256(shard).hexdigest()) / len(pictures),
        "write the shard": _timed(lambda: _write(out, shard)) / len(pictures),
    }


def _write(out: Path, data: bytes) -> None:
    with out.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    out.unlink()


def _timed(work: Callable[[], object]) -> float:
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def apart(files: list[str], view: StoredView) -> dict[str, float]:
    """Return the largest mean difference of a picture from `decode`, by decoder, in levels."""
    worst = dict.fromkeys(DECODERS, 0.0)
    for file in files:
        data = Path(file).read_bytes()
        wanted = decode(data, view).image.astype(np.int16)
        for name, make in DECODERS.items():
            worst[name] = max(worst[name], float(np.abs(make(data, view) - wanted).mean()))
    return worst


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
