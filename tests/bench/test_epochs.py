"""Epochs that `batches` refuses: pictures that are missing, twice, swapped, or not shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bench.epochs import (
    Numbers,
    Pixels,
    Signatures,
    measure,
    mixing,
    require_epochs,
    require_same_pictures,
)
from tests.bench.world import WrongBenchError

COUNT, BATCH, SIZE = 12, 4, 16
PIXELS: Pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
ORDERS: list[Numbers] = [np.random.default_rng(seed).permutation(COUNT) for seed in (1, 2, 3)]


def measured(
    out: Path, orders: list[Numbers], batch: int = BATCH, layout: tuple[int, ...] = (0, 1, 2, 3)
) -> Signatures:
    """Measure a reader that yields these epochs, the first untimed; return its signatures."""
    epochs = iter(orders)

    def epoch() -> Iterator[tuple[list[int], Pixels]]:
        order = next(epochs)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            yield rows.tolist(), np.ascontiguousarray(PIXELS[rows].transpose(layout))

    request = {"count": COUNT, "batch": BATCH, "seconds": 0.0}
    assert measure(epoch, request, out / "signatures.npy")["epochs"] == 1
    signatures: Signatures = np.load(out / "signatures.npy")
    return signatures


def test_both_layouts_have_the_same_signatures(tmp_path: Path) -> None:
    rows_last = measured(tmp_path, ORDERS[:2])
    rows_first = measured(tmp_path, ORDERS[1:], layout=(0, 3, 1, 2))
    assert require_same_pictures("peer", rows_first, rows_last, apart=0.001) < 0.001


def test_small_batches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongBenchError, match="for 3 pictures"):
        measured(tmp_path, ORDERS[:2], batch=3)


@pytest.mark.parametrize(
    "wrong", [ORDERS[1][1:], np.append(ORDERS[1][1:], ORDERS[1][1])], ids=["missing", "twice"]
)
def test_epoch_without_every_picture_once_is_refused(wrong: Numbers) -> None:
    with pytest.raises(WrongBenchError, match="11 distinct, of 12"):
        require_epochs([ORDERS[0], wrong], COUNT)


@pytest.mark.parametrize("second", [ORDERS[0], np.arange(COUNT)], ids=["last epoch", "stored"])
def test_order_that_is_not_new_is_refused(second: Numbers) -> None:
    require_epochs(ORDERS, COUNT)
    with pytest.raises(WrongBenchError, match="not shuffled"):
        require_epochs([ORDERS[0], second], COUNT)


def test_swapped_and_missing_pictures_are_refused(tmp_path: Path) -> None:
    wanted = measured(tmp_path, ORDERS[:2])
    swapped = wanted[[1, 0, *range(2, COUNT)]]
    with pytest.raises(WrongBenchError, match="2 pictures look more like others, such as number 0"):
        require_same_pictures("peer", swapped, wanted, apart=255)
    with pytest.raises(WrongBenchError, match="levels off"):
        require_same_pictures(
            "peer",
            np.where(np.arange(COUNT)[:, None, None, None] == 3, np.nan, wanted),
            wanted,
            255,
        )


def test_mixing_differs_between_a_full_shuffle_and_one_in_windows() -> None:
    order = np.random.default_rng(0).permutation(6000)
    window = np.concatenate(
        [start + np.random.default_rng(start).permutation(100) for start in range(0, 6000, 100)]
    )
    assert 0.9 < mixing(order) < 1.1
    assert mixing(window) < 0.05
