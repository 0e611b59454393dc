"""Mixup and CutMix: training pictures mixed with others of their global batch.

The partner of a sample is the next one in the order of the global batch, which is random and does
not depend on the number of workers. Each worker loads the partners of its slice itself; a single
worker has them already. How much of the partner a picture gets is drawn for each picture by
counter-based random numbers. So one worker and ten train on the same mixtures, without exchanging
pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afinar.config.augmentation import Augmentation
from afinar.training.augment import Boxes, box_mask
from afinar.training.rng import Keys, repeat_keys, uniform
from afinar.training.sampler import GlobalBatch, RowNumbers

_Rng = Callable[[str], NDArray[np.float64]]


def partners(numbers: RowNumbers, size: int) -> RowNumbers:
    """Return the numbers of the partners in a batch of `size`: 0 has 1, and the last has 0."""
    return (numbers + 1) % size


def with_partners(numbers: RowNumbers, size: int) -> RowNumbers:
    """Return the numbers of samples and of their partners, ascending and without repetition."""
    return np.union1d(numbers, partners(numbers, size))


class Mixes(NamedTuple):
    """Mixing of n pictures with their partners; arrays on the CPU.

    `shares` float64 [n] is the weight of a picture's own label. `opacity` float32 [n] is the weight
    of its own pixels outside its box, and inside the `boxes`, in pixels, there are only pixels of
    the partner: mixup has opacity = share and an empty box, CutMix has opacity 1.
    """

    shares: NDArray[np.float64]
    opacity: NDArray[np.float32]
    boxes: NDArray[np.int64]  # [4, n]: top, left, height, width

    def take(self, numbers: RowNumbers) -> Mixes:
        """Return the mixes of the pictures with these numbers."""
        return Mixes(self.shares[numbers], self.opacity[numbers], self.boxes[:, numbers])

    def blend(self, pictures: Tensor, others: Tensor) -> Tensor:
        """Mix pictures with their partners, both float32 [n, 3, s, s]."""
        boxes = Boxes(*torch.from_numpy(self.boxes))
        inside = box_mask(boxes, pictures.shape[-1], pictures.device)
        opacity = torch.from_numpy(self.opacity).to(pictures.device, non_blocking=True)
        mixed = torch.lerp(others, pictures, opacity[:, None, None, None])
        return torch.where(inside, others, mixed)


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Draws how pictures are mixed. `keys` uint64 [n] are those of the training samples.

    `side` is that of the network's input, in pixels.
    """

    augmentation: Augmentation
    keys: Keys
    seed: int
    side: int

    def draw(self, batch: GlobalBatch, epoch: int) -> Mixes:
        """Return the mixes of a global batch."""
        keys = repeat_keys(self.keys[batch.positions], batch.repeats)

        def rng(name: str) -> NDArray[np.float64]:
            return uniform(keys, self.seed, epoch, name)

        if not self.augmentation.cutmix:
            return self._draw_mixup(rng)
        if not self.augmentation.mixup:
            return self._draw_cutmix(rng)

        is_mixup, mixup, cutmix = rng("mix") < 0.5, self._draw_mixup(rng), self._draw_cutmix(rng)
        return Mixes(
            np.where(is_mixup, mixup.shares, cutmix.shares),
            np.where(is_mixup, mixup.opacity, cutmix.opacity),
            np.where(is_mixup, mixup.boxes, cutmix.boxes),
        )

    def _draw_mixup(self, rng: _Rng) -> Mixes:
        shares = symmetric_beta(self.augmentation.mixup, rng("mixup_radius"), rng("mixup_angle"))
        boxes = np.zeros((4, len(shares)), dtype=np.int64)
        return Mixes(shares, shares.astype(np.float32), boxes)

    def _draw_cutmix(self, rng: _Rng) -> Mixes:
        """Draw boxes as torchvision does: half a side from a random centre, cut at the border.

        The weight of the label is the share of pixels that is left.
        """
        shares = symmetric_beta(self.augmentation.cutmix, rng("cutmix_radius"), rng("cutmix_angle"))
        half = (0.5 * np.sqrt(1 - shares) * self.side).astype(np.int64)
        y, x = ((rng(name) * self.side).astype(np.int64) for name in ("cutmix_y", "cutmix_x"))
        (top, bottom), (left, right) = (
            np.clip((centre - half, centre + half), 0, self.side) for centre in (y, x)
        )

        height, width = bottom - top, right - left
        left_over = 1 - height * width / self.side**2
        boxes = np.stack([top, left, height, width])
        return Mixes(left_over, np.ones(len(shares), dtype=np.float32), boxes)


def symmetric_beta(
    alpha: float, radius: NDArray[np.float64], angle: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return one draw of Beta(alpha, alpha) for each pair of uniform numbers in [0, 1).

    The polar method of Bailey 1994 (doi 10.1090/S0025-5718-1994-1212274-9) makes a Student's t with
    2 alpha degrees of freedom from two numbers, without rejection. t / sqrt(2 alpha + t^2) is then
    a symmetric beta on [-1, 1]. Here t / sqrt(2 alpha) is the tangent of an angle, and that
    quotient is its sine.

    Example: alpha 1 gives a uniform distribution, alpha 0.2 mostly values near 0 or 1.
    """
    # The bound avoids an overflow. Beyond it, the sine is 1 in double precision.
    squared = np.expm1(np.minimum(-np.log1p(-radius) / alpha, 700))
    tangent = np.sqrt(squared) * np.cos(2 * np.pi * angle)
    shares: NDArray[np.float64] = (1 + np.sin(np.arctan(tangent))) / 2
    return shares
