"""What every side of `batches` does with its reader: whole epochs, counted picture by picture, against the clock.

A reader's epoch is an iterator of batches: the pictures' numbers, and uint8 [n, size, size, 3] or [n, 3, size, size]
in memory of its own. Imported by sides of both environments, so it needs numpy alone.
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

_ALIKE = 0.05  # share of pictures that may resemble another's more


def measure_each(reader: Callable[[Record, Record], Epoch], request: Record) -> list[Record]:
    """Measure the reader with each of `request["options"]`; its pictures' signatures go to `out`/number.npy."""
    return [
        measure(reader(request, options), request, Path(request["out"], f"{number}.npy"))
        for number, options in enumerate(request["options"])
    ]


def measure(epoch: Epoch, request: Record, out: Path) -> Record:
    """One epoch before the clock, whose pictures' signatures go to `out`; then epochs until `seconds` have passed.

    Gives pictures per second, and how far the order is from the stored one: 1 is what a shuffle of everything gives.
    Raises WrongBenchError when an epoch is not every picture once, in full batches, in an order of its own.
    """
    count, batch_size = request["count"], request["batch"]
    order, signatures = _look(epoch(), count)
    np.save(out, signatures)
    orders, epochs = [order], 0
    started = time.perf_counter()
    while not epochs or time.perf_counter() - started < request["seconds"]:
        orders.append(_read(epoch(), batch_size))
        epochs += 1
    seconds = time.perf_counter() - started
    require_epochs(orders, count)
    return {"rate": epochs * count / seconds, "mixing": mixing(orders[-1]), "epochs": epochs}


def _look(batches: Iterable[tuple[Sequence[int], Any]], count: int) -> tuple[Numbers, Signatures]:
    """The order of an epoch, and its pictures' signatures by number."""
    signatures = np.full((count, GRID, GRID, 3), np.nan, dtype=np.float32)
    order: list[int] = []
    for numbers, images in batches:
        signatures[np.asarray(numbers)] = signature(np.asarray(images))
        order.extend(numbers)
    return np.array(order, dtype=np.int64), signatures


def _read(batches: Iterable[tuple[Sequence[int], Any]], batch_size: int) -> Numbers:
    """The order of an epoch. Each batch is asked for one byte of every page: it has to be in memory by then."""
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
    """Every epoch holds every picture once, and no two neighbours have the same order, nor the stored one."""
    stored = np.arange(count)
    for before, order in zip([stored, *orders], orders, strict=False):
        if len(order) != count or not np.array_equal(np.sort(order), stored):
            raise WrongBenchError(
                f"an epoch of {len(order)} samples, {len(set(order.tolist()))} distinct, of {count}"
            )
        if np.array_equal(order, before) or np.array_equal(order, stored):
            raise WrongBenchError("an epoch was not shuffled")


def mixing(order: Numbers) -> float:
    """Mean distance of a picture from its stored place, over a random permutation's, a third of the length."""
    return float(np.abs(order - np.arange(len(order))).mean() / (len(order) / 3))


def signature(images: Pixels) -> Signatures:
    """Mean colours of an 8 by 8 grid over each picture: float32 [n, 8, 8, 3]."""
    if images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    count, side = len(images), images.shape[1] // GRID
    means: Signatures = images.reshape(count, GRID, side, GRID, side, 3).mean(
        axis=(2, 4), dtype=np.float32
    )
    return means


def require_same_pictures(name: str, found: Signatures, wanted: Signatures, apart: float) -> float:
    """Each picture is at most `apart` levels off on average, and hardly any is twice as near to another's place.

    Hardly, since of two thousand crops of one photograph some differ by less than two filters do: 45 between ours
    and torchvision's. Numbers mixed up would make it nearly all. Returns the worst difference. Raises
    WrongBenchError.
    """
    worst = float(np.abs(found - wanted).mean(axis=(1, 2, 3)).max())
    if not worst <= apart:  # not a number: a picture that never came
        raise WrongBenchError(f"{name}: a picture is {worst:.2f} levels off, {apart:g} are allowed")
    flat, targets = (one.reshape(len(one), -1).astype(np.float64) for one in (found, wanted))
    own = ((flat - targets) ** 2).sum(axis=1)
    nearest = (flat**2).sum(axis=1) + ((targets**2).sum(axis=1) - 2 * flat @ targets.T).min(axis=1)
    swapped = np.flatnonzero(4 * nearest < own - 1)  # squares; 1 is far above rounding
    if len(swapped) > _ALIKE * len(found):
        raise WrongBenchError(
            f"{name}: {swapped.size} pictures look more like others, such as number {swapped[0]}"
        )
    return worst
