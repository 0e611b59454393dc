"""Measurement of whole epochs, which every side of `batches` makes with its reader.

An epoch is an iterator of batches: the numbers of the pictures, and their pixels as uint8 [n, size,
size, 3] or [n, 3, size, size] in memory that is not reused. Sides of both environments import this
module, so it needs only numpy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.world import Record, WrongBenchError

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.int64]
Signatures = NDArray[np.float32]
Epoch = Callable[[], Iterator[tuple[Sequence[int], Any]]]

GRID = 8
_PAGE = 4096

_ALIKE = 0.05  # largest share of pictures that may be nearer to another picture


def measure_each(reader: Callable[[Record, Record], Epoch], request: Record) -> list[Record]:
    """Measure the reader with each of `request["options"]`.

    Signatures of the pictures are written to `out`/NUMBER.npy, with the number of the options.
    """
    return [
        measure(reader(request, options), request, Path(request["out"], f"{number}.npy"))
        for number, options in enumerate(request["options"])
    ]


def measure(epoch: Epoch, request: Record, out: Path) -> Record:
    """Read one epoch untimed, then epochs until `seconds` have passed.

    The signatures of the untimed epoch are written to `out`. Returns pictures per second, and the
    mixing of the last order. Raises WrongBenchError if an epoch does not have every picture once,
    in full batches, in a new order.
    """
    count, batch_size = request["count"], request["batch"]
    order, signatures = _read_signatures(epoch(), count)
    np.save(out, signatures)
    orders, epochs = [order], 0
    started = time.perf_counter()
    while not epochs or time.perf_counter() - started < request["seconds"]:
        orders.append(_read(epoch(), batch_size))
        epochs += 1
    seconds = time.perf_counter() - started
    require_epochs(orders, count)
    return {"rate": epochs * count / seconds, "mixing": mixing(orders[-1]), "epochs": epochs}


def _read_signatures(
    batches: Iterable[tuple[Sequence[int], Any]], count: int
) -> tuple[Numbers, Signatures]:
    """Return the order of an epoch, and the signatures of its pictures by number."""
    signatures = np.full((count, GRID, GRID, 3), np.nan, dtype=np.float32)
    order: list[int] = []
    for numbers, images in batches:
        signatures[np.asarray(numbers)] = signature(np.asarray(images))
        order.extend(numbers)
    return np.array(order, dtype=np.int64), signatures


def _read(batches: Iterable[tuple[Sequence[int], Any]], batch_size: int) -> Numbers:
    """Return the order of an epoch. One byte of every page is read, so that all are in memory."""
    order: list[int] = []
    for numbers, images in batches:
        pixels = np.asarray(images)
        if len(numbers) != batch_size or len(pixels) != batch_size or pixels.dtype != np.uint8:
            raise WrongBenchError(
                f"a batch of {pixels.dtype} {pixels.shape} for {len(numbers)} pictures"
            )
        pixels.ravel("K")[::_PAGE].max()
        order.extend(numbers)
    return np.array(order, dtype=np.int64)


def require_epochs(orders: Sequence[Numbers], count: int) -> None:
    """Raise WrongBenchError unless every epoch has every picture once, in a new order.

    The order must differ from the stored one and from that of the epoch before.
    """
    stored = np.arange(count)
    for before, order in zip([stored, *orders], orders, strict=False):
        if len(order) != count or not np.array_equal(np.sort(order), stored):
            raise WrongBenchError(
                f"an epoch of {len(order)} samples, {len(set(order.tolist()))} distinct, of {count}"
            )
        if np.array_equal(order, before) or np.array_equal(order, stored):
            raise WrongBenchError("an epoch was not shuffled")


def mixing(order: Numbers) -> float:
    """Return how far an order is from the stored one: 0 if equal, about 1 for a full shuffle.

    It is the mean distance of a picture from its stored position, divided by that of a random
    permutation, which is a third of the length.
    """
    return float(np.abs(order - np.arange(len(order))).mean() / (len(order) / 3))


def signature(images: Pixels) -> Signatures:
    """Return the mean colours in an 8 by 8 grid over each picture: float32 [n, 8, 8, 3]."""
    if images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    count, side = len(images), images.shape[1] // GRID
    means: Signatures = images.reshape(count, GRID, side, GRID, side, 3).mean(
        axis=(2, 4), dtype=np.float32
    )
    return means


def require_same_pictures(name: str, found: Signatures, wanted: Signatures, apart: float) -> float:
    """Return the worst mean difference of a picture in levels; raise WrongBenchError above `apart`.

    It is also raised if more than `_ALIKE` of the pictures are twice as near to another picture as
    to their own: their numbers are mixed up. A few are, since some of two thousand crops of one
    photograph differ by less than two filters do: 45 with the filters of afinar and torchvision.
    """
    worst = float(np.abs(found - wanted).mean(axis=(1, 2, 3)).max())
    if not worst <= apart:  # NaN if a picture is missing
        raise WrongBenchError(f"{name}: a picture is {worst:.2f} levels off, {apart:g} are allowed")
    flat, targets = (part.reshape(len(part), -1).astype(np.float64) for part in (found, wanted))
    own = ((flat - targets) ** 2).sum(axis=1)
    nearest = (flat**2).sum(axis=1) + ((targets**2).sum(axis=1) - 2 * flat @ targets.T).min(axis=1)
    # Squared distances: half the distance is a quarter. 1 is far above rounding.
    swapped = np.flatnonzero(4 * nearest < own - 1)
    if len(swapped) > _ALIKE * len(found):
        raise WrongBenchError(
            f"{name}: {swapped.size} pictures look more like others, such as number {swapped[0]}"
        )
    return worst
