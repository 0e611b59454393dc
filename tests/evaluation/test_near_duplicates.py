"""Near-duplicates: hashes, candidates, confirmation by pixels, groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from afinar.evaluation.near_duplicates import (
    MIN_CORRELATION,
    candidate_pairs,
    connect,
    correlate_pairs,
    groups_of,
    hash_vectors,
    luminance,
    perceptual_hashes,
)
from afinar.evaluation.neighbours import nearest_neighbours, unit_rows
from tests.evaluation.scenes import encoded, scene


def stored(image: Image.Image, size: int = 96) -> Any:
    """Return the centre of a picture as a square, as ingest stores it."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "exact": lambda image: image,
    "re-encoded": lambda image: encoded(image, 40),
    "resized": lambda image: image.resize((140, 103)),
    "brighter": lambda image: image.point([min(255, round(1.1 * v + 10)) for v in range(256)] * 3),
    "cropped": lambda image: image.crop((9, 7, 300, 220)),
    "cropped at the right": lambda image: image.crop((0, 7, 291, 220)),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_confirmed_and_other_pictures_are_not(name: str) -> None:
    images = np.stack(
        [stored(image) for seed in range(8) for image in (scene(seed), COPIES[name](scene(seed)))]
    )
    pairs = np.array([(row, row + 1) for row in range(0, 16, 2)])
    read: list[int] = []

    def reader(rows: Any) -> Any:
        read.extend(rows.tolist())
        return images[rows]

    assert correlate_pairs(pairs, reader).min() >= MIN_CORRELATION
    assert read == list(range(16))
    others = np.array([(row, (row + 3) % 16) for row in range(16)])
    assert correlate_pairs(others, reader).max() < 0.8


def test_blank_pages_match_pages_of_the_same_gray_only() -> None:
    noise = np.random.default_rng(0).integers(-1, 2, (4, 96, 96, 3))
    pages = np.stack([250 + noise[0], 250 + noise[1], 120 + noise[2], 250 + noise[3]])
    images = np.concatenate([pages.astype(np.uint8), stored(scene(0))[None]])
    found = correlate_pairs(np.array([(0, 1), (0, 2), (0, 3), (0, 4)]), lambda rows: images[rows])
    assert found.tolist() == [1, 0, 1, 0]


def test_hashes_of_copies_are_near_and_vectors_keep_their_distance() -> None:
    images = np.stack([stored(scene(seed)) for seed in range(20)])
    copies = np.stack([stored(encoded(scene(seed), 50)) for seed in range(20)])
    hashes, others = perceptual_hashes(images), perceptual_hashes(copies)
    bits = np.bitwise_count(hashes ^ others)
    assert bits.max() <= 4
    assert len(set(hashes.tolist())) == 20
    vectors = hash_vectors(np.concatenate([hashes, others]))
    distances = (vectors[:20] - vectors[20:]).square().sum(dim=1).numpy()
    np.testing.assert_allclose(16 * distances, bits, atol=1e-4)


def test_luminance_averages_areas() -> None:
    images = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    images[0, :2, :2] = 100
    assert luminance(images, 2)[0].tolist() == [[pytest.approx(100), 0], [0, 0]]
    # Three pixels to two: the middle one belongs half to each.
    row = np.zeros((1, 3, 3, 3), dtype=np.uint8)
    row[0, :, 1] = 90
    assert luminance(row, 2)[0, 0].tolist() == [pytest.approx(30), pytest.approx(30)]


def test_candidates_come_from_hashes_and_from_features_and_must_look_alike() -> None:
    images = np.stack([stored(scene(seed)) for seed in range(40)])
    images[1] = stored(encoded(scene(0), 60))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 16)).astype(np.float32)
    features[3] = features[2]  # alike for the network, not for the eye
    features[5], images[5] = features[4] + 0.01, stored(COPIES["cropped"](scene(4)))

    thumbnails = luminance(images, 16).astype(np.uint8)
    by_features = nearest_neighbours(unit_rows(features), 5)
    by_hash = nearest_neighbours(hash_vectors(perceptual_hashes(images)), 5)
    assert candidate_pairs(by_features, by_hash, thumbnails).tolist() == [[0, 1], [4, 5]]


@given(st.integers(1, 12), st.data())
def test_groups_are_the_connected_parts(rows: int, data: st.DataObject) -> None:
    numbers = st.integers(0, rows - 1)
    pairs = data.draw(st.lists(st.tuples(numbers, numbers), max_size=15))
    group = connect(rows, np.array(pairs, dtype=np.int64).reshape(-1, 2))

    parts = [{row} for row in range(rows)]
    for first, second in pairs:
        joined = next(part for part in parts if first in part)
        other = next(part for part in parts if second in part)
        if joined is not other:
            joined |= other
            parts.remove(other)
    assert group.tolist() == [min(next(p for p in parts if row in p)) for row in range(rows)]
    wanted = sorted(sorted(part) for part in parts if len(part) > 1)
    assert sorted(groups_of(group)) == wanted
