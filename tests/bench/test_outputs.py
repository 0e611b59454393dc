"""Outputs that a comparison refuses: pictures that are missing, twice, swapped, or too small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bench.outputs import Pixels, reference, require_same
from tests.bench.world import WrongBenchError
from tests.conftest import jpeg

SIZE = 32
GOOD = 6


def written(folder: Path) -> list[tuple[str, Pixels]]:
    """Write six pictures of different tints; return them as a correct side converts them."""
    rows = []
    for number in range(GOOD):
        path = folder / f"{number}.jpg"
        path.write_bytes(jpeg(number, tint=(40 * number, 120, 240 - 40 * number)))
        rows.append((str(path), reference(path.read_bytes(), SIZE, "crop")))
    return rows


def refused(rows: Iterator[tuple[str, Pixels]], folder: Path) -> str:
    with pytest.raises(WrongBenchError) as caught:
        require_same("peer", rows, folder, SIZE, "crop")
    return str(caught.value)


def test_same_pictures_pass(tmp_path: Path) -> None:
    assert require_same("peer", iter(written(tmp_path)), tmp_path, SIZE, "crop") == 0.0


def test_missing_picture_is_refused(tmp_path: Path) -> None:
    assert "5 of 6" in refused(iter(written(tmp_path)[1:]), tmp_path)


def test_picture_written_twice_is_refused(tmp_path: Path) -> None:
    rows = written(tmp_path)
    assert "twice" in refused(iter([*rows, rows[0]]), tmp_path)


def test_swapped_pictures_are_refused(tmp_path: Path) -> None:
    (one, first), (other, last), *rest = written(tmp_path)
    assert "levels off" in refused(iter([(one, last), (other, first), *rest]), tmp_path)


def test_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    (one, _), *rest = written(tmp_path)
    assert "(8, 8, 3)" in refused(iter([(one, np.zeros((8, 8, 3), np.uint8)), *rest]), tmp_path)
