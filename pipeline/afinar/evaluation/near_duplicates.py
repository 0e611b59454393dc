"""Near-duplicates in two stages: candidates by hash and by features, confirmation by pixels.

A perceptual hash finds copies that were encoded again or resized, features find cropped ones. Both
also name pictures that are only alike, most of all in an archive of one motif. So each candidate is
compared pixel by pixel, after aligning brightness, contrast and a small crop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afinar.evaluation.neighbours import Neighbours

Images = NDArray[np.uint8]
Pairs = NDArray[np.int64]

HASH_BITS: Final = 64
MAX_HASH_DISTANCE: Final = 14
"""Bits that may differ between the hashes of candidates. A crop of 3 % changes 12 of them."""
MAX_RELATIVE_DISTANCE: Final = 0.5
"""Distance of candidates by features, in median distances to the last of the k neighbours. An
absolute limit would name every pair of an archive of one motif."""
MIN_CORRELATION: Final = 0.9
"""Correlation of the luminance of two pictures from which they are duplicates. On 2,000 pictures of
one fabric that of different pictures was 0.1, that of copies 0.98."""

THUMBNAIL_PX: Final = 16
"""Side of the luminance of all pictures that is kept in memory: 256 bytes for each."""
_MIN_THUMBNAIL_CORRELATION: Final = 0.5  # copies cropped by 3 % had 0.62 and more

_HASH_PX: Final = 32
_COARSE_PX: Final = 32  # of the luminance in which crops are looked for
_FINE_PX: Final = 64  # of the luminance that is compared
_CROPS: Final = (1.0, 0.985, 0.97)  # side of a crop, as a share of the whole picture
# The part that is compared. A crop of a picture that is not square also moves its centre, so that
# the stored square shows a little that the other square does not.
_INNER: Final = 0.9
_OVERHANG: Final = 0.02
_STEP: Final = 0.01  # between positions of a crop
_FLAT: Final = 2.0  # standard deviation below which a picture has no content to correlate
_SAME_GRAY: Final = 8.0  # difference of the means of two blank pages that are the same
_PAIRS: Final = 32  # pairs whose pixels are compared at a time
_CHECKED: Final = 16384  # pairs whose thumbnails are compared at a time
_LUMINANCE: Final = (0.299, 0.587, 0.114)  # Rec. 601


def luminance(images: Images, side: int) -> NDArray[np.float32]:
    """Return the luminance of uint8 [n, size, size, 3], averaged to float32 [n, side, side]."""
    gray = images.astype(np.float32) @ np.asarray(_LUMINANCE, dtype=np.float32)
    weights = _area_weights(images.shape[1], side)
    return np.asarray(weights @ gray @ weights.T, dtype=np.float32)


@lru_cache(maxsize=8)
def _area_weights(size: int, side: int) -> NDArray[np.float32]:
    """Return the matrix [side, size] that averages the pixels that each new pixel covers."""
    edges = np.linspace(0, size, side + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = overlap.clip(min=0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def perceptual_hashes(images: Images) -> NDArray[np.uint64]:
    """Return a hash of 64 bits for each picture uint8 [n, size, size, 3].

    pHash (Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions): a bit
    for each of the 8 x 8 lowest frequencies of the luminance, 1 if it is above their median.
    """
    frequency = np.arange(8)[:, None] * (2 * np.arange(_HASH_PX) + 1)
    cosine = np.cos(np.pi * frequency / (2 * _HASH_PX)).astype(np.float32)
    spectrum = cosine @ luminance(images, _HASH_PX) @ cosine.T
    coefficients = spectrum.reshape(len(images), HASH_BITS)
    bits = coefficients > np.median(coefficients[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False  # the mean brightness
    packed: NDArray[np.uint8] = np.packbits(bits, axis=1)
    return packed.view(">u8").astype(np.uint64).ravel()


def hash_vectors(hashes: NDArray[np.uint64]) -> Tensor:
    """Return hashes as unit vectors float32 [n, 64] for `nearest_neighbours`.

    Each bit is ±1/8, so that the squared distance of two vectors is a sixteenth of the number of
    bits that differ: 4 / 64 for each.
    """
    as_bytes = hashes.astype(">u8").view(np.uint8).reshape(-1, 8)
    bits = np.unpackbits(as_bytes, axis=1).astype(np.float32)
    return torch.from_numpy((2 * bits - 1) / 8)


def candidate_pairs(
    by_features: Neighbours, by_hash: Neighbours, thumbnails: NDArray[np.uint8]
) -> Pairs:
    """Return pairs of rows that may be duplicates, int64 [m, 2], the smaller row first.

    The first two arguments are neighbours of the same rows: of features, and of `hash_vectors`.
    `thumbnails` uint8 [n, 16, 16] are the luminance of all rows; pairs without a correlation of at
    least 0.5 are left out.
    """
    near = by_features.distances <= MAX_RELATIVE_DISTANCE * by_features.median_distance
    bits = 16 * by_hash.distances.astype(np.float64) ** 2
    pairs = np.concatenate(
        [_pairs_of(by_features, near), _pairs_of(by_hash, bits <= MAX_HASH_DISTANCE + 0.5)]
    )
    pairs = np.unique(pairs, axis=0)

    kept = []
    for start in range(0, len(pairs), _CHECKED):
        chunk = pairs[start : start + _CHECKED]
        first, second = (torch.from_numpy(thumbnails[rows]).float() for rows in chunk.T)
        kept.append(chunk[_correlation(first, second).numpy() >= _MIN_THUMBNAIL_CORRELATION])
    return np.concatenate(kept) if kept else pairs


def _pairs_of(neighbours: Neighbours, chosen: NDArray[np.bool_]) -> Pairs:
    rows, positions = np.nonzero(chosen)
    pairs = np.stack([rows, neighbours.indices[rows, positions].astype(np.int64)], axis=1)
    return np.sort(pairs, axis=1)


def correlate_pairs(
    pairs: Pairs,
    read: Callable[[NDArray[np.int64]], Images],
    on_progress: Callable[[int], None] = lambda pairs: None,
) -> NDArray[np.float32]:
    """Return the highest correlation of the luminance of each pair over small crops, float32 [m].

    `read` returns the pixels of rows, uint8 [n, size, size, 3]. `on_progress` is called with the
    number of pairs that were compared.
    """
    found = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), _PAIRS):
        chunk = pairs[start : start + _PAIRS]
        rows, positions = np.unique(chunk, return_inverse=True)
        detail = torch.from_numpy(luminance(read(rows), 2 * _FINE_PX))
        first, second = positions.reshape(chunk.shape).T
        found[start : start + _PAIRS] = correlations(detail[first], detail[second]).numpy()
        on_progress(len(chunk))
    return found


def correlations(first: Tensor, second: Tensor) -> Tensor:
    """Return the correlation of pictures float32 [m, 128, 128], the highest over small crops.

    It does not change with brightness and contrast. Crops are tried if the whole pictures do not
    agree. Pictures without content (blank pages) correlate fully if they are equally bright.
    """
    whole = _correlation(_halved(first), _halved(second))
    unsure = torch.nonzero(whole < MIN_CORRELATION).flatten()
    if len(unsure):
        aligned = _aligned_correlation(first[unsure], second[unsure])
        whole[unsure] = torch.maximum(whole[unsure], aligned)
    return whole


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return the correlation of pictures [m, h, w], without any shift."""
    found = (_standardised(first) * _standardised(second)).mean(dim=(1, 2))
    is_flat = [picture.std(dim=(1, 2)) < _FLAT for picture in (first, second)]
    difference = (first.mean(dim=(1, 2)) - second.mean(dim=(1, 2))).abs()
    is_same_page = is_flat[0] & is_flat[1] & (difference <= _SAME_GRAY)
    found = torch.where(is_flat[0] | is_flat[1], torch.zeros(()), found)
    return torch.where(is_same_page, torch.ones(()), found)


def _aligned_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return the highest correlation of the inner part of one picture with a window of the other.

    Either picture may be the crop. Windows are tried in steps of 1 % at 32 px; then the best of
    each size, and those half a step from it, are compared at 64 px.
    """
    best = torch.zeros(len(first))
    for picture, other in ((first, second), (second, first)):
        for crop in _CROPS:
            best = torch.maximum(best, _best_window(picture, other, crop))
    is_flat = torch.minimum(first.std(dim=(1, 2)), second.std(dim=(1, 2))) < _FLAT
    return torch.where(is_flat, torch.zeros(()), best)


def _best_window(picture: Tensor, other: Tensor, crop: float) -> Tensor:
    count = round((1 - crop + 2 * _OVERHANG) / _STEP) + 1
    starts = torch.linspace(-_OVERHANG, 1 - crop + _OVERHANG, count)
    starts = starts.expand(len(picture), count)
    coarse = _window_scores(_halved(picture), _halved(other), starts, starts, crop, _COARSE_PX)
    position = coarse.flatten(1).argmax(dim=1)

    around = torch.tensor([-_STEP / 2, 0.0, _STEP / 2])
    top = starts.gather(1, (position // count)[:, None]) + around
    left = starts.gather(1, (position % count)[:, None]) + around
    return _window_scores(picture, other, top, left, crop, _FINE_PX).flatten(1).amax(dim=1)


def _window_scores(
    picture: Tensor, other: Tensor, top: Tensor, left: Tensor, crop: float, side: int
) -> Tensor:
    """Return the correlations [m, a, b] of windows of `picture` with the inner part of `other`.

    `top` [m, a] and `left` [m, b] are where a copy of size `crop` would begin; the windows are its
    inner part.
    """
    margin = (1 - _INNER) / 2
    inner = _window_weights(torch.tensor([margin]), _INNER, other.shape[1], side)[0]
    template = _standardised(inner @ other @ inner.T)

    rows = _window_weights(top + margin * crop, _INNER * crop, picture.shape[1], side)
    columns = _window_weights(left + margin * crop, _INNER * crop, picture.shape[1], side)
    strips = torch.einsum("maij,mjk->maik", rows, picture)
    windows = torch.einsum("maik,mblk->mabil", strips, columns)
    flat = _standardised(windows.flatten(0, 2)).view_as(windows)
    return torch.einsum("mabil,mil->mab", flat, template) / side**2


def _window_weights(starts: Tensor, size: float, side: int, out: int) -> Tensor:
    """Return matrices [..., out, side] that average the part [start, start + size] of a side."""
    edges = side * (starts[..., None] + size * torch.linspace(0, 1, out + 1))
    pixels = torch.arange(side)
    ends = torch.minimum(edges[..., 1:, None], pixels + 1)
    overlap = (ends - torch.maximum(edges[..., :-1, None], pixels)).clamp_min(0)
    return overlap / overlap.sum(dim=-1, keepdim=True).clamp_min(1e-6)


def _standardised(pictures: Tensor) -> Tensor:
    centred = pictures - pictures.mean(dim=(1, 2), keepdim=True)
    return centred / centred.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-6)


def _halved(pictures: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(pictures[:, None], 2)[:, 0]


def connect(rows: int, pairs: Pairs) -> NDArray[np.int64]:
    """Return the smallest row that each row is connected with by `pairs` [m, 2]: int64 [rows]."""
    group = np.arange(rows)
    first, second = pairs[:, 0], pairs[:, 1]
    while True:
        lowest = np.minimum(group[first], group[second])
        linked = group.copy()
        # The roots of both sides get the lower one, then each row follows its root.
        np.minimum.at(linked, group[first], lowest)
        np.minimum.at(linked, group[second], lowest)
        while not np.array_equal(linked, linked[linked]):
            linked = linked[linked]
        linked = linked[group]
        if np.array_equal(linked, group):
            return group
        group = linked


def groups_of(group: NDArray[np.int64]) -> list[list[int]]:
    """Return the rows of each group of two or more; `group` is that of `connect`."""
    order = np.argsort(group, kind="stable")
    _, starts, counts = np.unique(group[order], return_index=True, return_counts=True)
    return [
        order[start : start + count].tolist()
        for start, count in zip(starts, counts, strict=True)
        if count > 1
    ]
