"""Maps of what a prediction rests on: Grad-CAM, integrated gradients, occlusion; and their checks.

These are 200 lines on the graphs of `ExplainedNetwork`. captum has the same methods, with hooks on
modules; its Grad-CAM cannot take an activation that is no module's output, such as the sum at the
end of a transformer's block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from afinar.config.explain import SaliencyMethod
from afinar.explain.images import Pixels, blurred, normalized, resize_map
from afinar.explain.layers import SHALLOW_SIDE, as_maps, map_of
from afinar.explain.network import ExplainedNetwork

Values = NDArray[np.float32]

_IG_STEPS: Final = 64
_WINDOWS: Final = 7  # windows of occlusion along a side; they overlap by half
HOT_SHARE: Final = 0.2
_RANDOM_MAPS: Final = 8
_BLUR_SHARE: Final = 1 / 12  # of the side


@dataclass(frozen=True, kw_only=True)
class SaliencyMap:
    """A map float32 [size, size] of 0 to 1 over the stored view.

    `is_blank` is true if nothing in the picture supports the class. `error` is the completeness
    error of integrated gradients: |sum of the map - (score of the picture - score of the
    baseline)|, as a share of that difference; it is None for other methods.
    """

    values: Values
    is_blank: bool
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """Confidence after a fifth of the picture was blurred: the hottest, and random ones (mean)."""

    confidence: float
    hottest: float
    random: float


def compute_map(
    network: ExplainedNetwork, method: SaliencyMethod, image: Pixels, target: int, node: str
) -> SaliencyMap:
    """Return the map of one image uint8 [size, size, 3]; `node` is that of Grad-CAM."""
    targets = torch.tensor([target], device=network.device)
    if method == "gradcam":
        return grad_cam(network, image[None], targets, node)[0]
    if method == "integrated":
        return integrated_gradients(network, image, targets)
    return occlusion(network, image, targets)


def grad_cam(
    network: ExplainedNetwork, images: Pixels, targets: Tensor, node: str
) -> list[SaliencyMap]:
    """Return Grad-CAM maps of images uint8 [n, size, size, 3] for classes int64 [n].

    Channels at the node are weighted by the mean of their gradient, summed, and what is negative is
    cut off (Selvaraju et al. 2017, arXiv 1610.02391). At a shallow node each position has its own
    weight, the positive part of its gradient (LayerCAM). The tokens of a vision transformer have
    their own gradients as weights (HiResCAM, Draelos and Carin 2020, arXiv 2011.08891): which of
    them a score depends on is decided by attention, and a mean over tokens would lose it.
    """
    pixels = network.pixels(images).requires_grad_(True)
    logits, (activations,) = network.run(pixels, (node,))
    (gradient,) = torch.autograd.grad(network.score(logits, targets).sum(), activations)
    found = map_of(tuple(activations.shape[1:]) and (1, *activations.shape[1:]))
    assert found is not None, "the caller has chosen a node with positions"

    values, weights = as_maps(activations.detach(), found), as_maps(gradient, found)
    if found.layout != "tokens":
        is_shallow = found.side >= SHALLOW_SIDE
        weights = weights.relu() if is_shallow else weights.mean(dim=(2, 3), keepdim=True)
    maps = (weights * values).sum(dim=1).relu()
    resized = resize_map(maps, images.shape[1]).cpu().numpy()
    return [SaliencyMap(values=normalized(values), is_blank=not values.any()) for values in resized]


def integrated_gradients(
    network: ExplainedNetwork, image: Pixels, target: Tensor, steps: int = _IG_STEPS
) -> SaliencyMap:
    """Return integrated gradients of one image uint8 [size, size, 3] (Sundararajan et al. 2017).

    arXiv 1703.01365. The path leads from the mean colour of the network's training data, which is
    grey; the integral is a Gauss-Legendre sum. The map is the absolute sum over colours, smoothed:
    a single pixel says little to people. Batches bound the memory.
    """
    pixels = network.pixels(image[None])
    baseline = 255 * pixels.new_tensor(network.input_view.mean).expand_as(pixels)
    places, weights = np.polynomial.legendre.leggauss(steps)
    shares = torch.from_numpy((places + 1) / 2).float().to(pixels.device)
    factors = torch.from_numpy(weights / 2).float().to(pixels.device)

    total = torch.zeros_like(pixels)
    for start in range(0, steps, network.batch_size):
        share = shares[start : start + network.batch_size].view(-1, 1, 1, 1)
        points = (baseline + share * (pixels - baseline)).requires_grad_(True)
        scores = network.score(network.logits(points), target.expand(len(points)))
        (gradient,) = torch.autograd.grad(scores.sum(), points)
        factor = factors[start : start + network.batch_size].view(-1, 1, 1, 1)
        total += (factor * gradient).sum(dim=0, keepdim=True)
    attribution = (pixels - baseline) * total

    with torch.no_grad():
        ends = network.score(network.logits(torch.cat([pixels, baseline])), target.expand(2))
    difference = float(ends[0] - ends[1])
    error = abs(float(attribution.sum()) - difference) / max(abs(difference), 1e-6)
    strength = attribution.sum(dim=3, keepdim=True).abs().expand(-1, -1, -1, 3)
    smooth = blurred(strength, max(1.0, image.shape[0] / 75))[0, :, :, 0].cpu().numpy()
    # One pixel may be much stronger than all others.
    top = np.quantile(smooth, 0.995) or 1.0
    values = normalized(np.minimum(smooth, top))
    return SaliencyMap(values=values, is_blank=not values.any(), error=error)


@torch.no_grad()
def occlusion(network: ExplainedNetwork, image: Pixels, target: Tensor) -> SaliencyMap:
    """Return how far the score falls as a grey window covers each part of one image.

    It uses no gradient (Zeiler and Fergus 2014, arXiv 1311.2901): a check of the other maps.
    """
    pixels = network.pixels(image[None])
    size = image.shape[0]
    window = math.ceil(size / _WINDOWS)
    grey = 255 * pixels.new_tensor(network.input_view.mean)
    starts = sorted({min(start, size - window) for start in range(0, size, max(1, window // 2))})
    places = [(top, left) for top in starts for left in starts]
    score = float(network.score(network.logits(pixels), target)[0])

    total, count = pixels.new_zeros(size, size), pixels.new_zeros(size, size)
    for start in range(0, len(places), network.batch_size):
        batch = places[start : start + network.batch_size]
        covered = pixels.repeat(len(batch), 1, 1, 1)
        for row, (top, left) in enumerate(batch):
            covered[row, top : top + window, left : left + window] = grey
        falls = score - network.score(network.logits(covered), target.expand(len(batch)))
        for fall, (top, left) in zip(falls, batch, strict=True):
            total[top : top + window, left : left + window] += fall
            count[top : top + window, left : left + window] += 1
    values = (total / count.clamp(min=1)).relu().cpu().numpy()
    return SaliencyMap(values=normalized(values), is_blank=not values.any())


def deletion_score(
    network: ExplainedNetwork, image: Pixels, target: int, values: Values, seed: int = 0
) -> Deletion:
    """Blur the hottest fifth of an image and random fifths; return the target's probabilities.

    A random fifth is that of the same map, mirrored and moved around the picture at random: it has
    as many parts of the same shapes. Scattered single pixels would be no match for one large part,
    since they can be guessed from their surroundings.
    """
    rng = np.random.default_rng(seed)
    mask = _hottest(values, rng)
    masks = np.stack([mask, *(_moved(mask, rng) for _ in range(_RANDOM_MAPS))])
    pixels = network.pixels(image[None])
    soft = blurred(pixels, max(1.0, image.shape[0] * _BLUR_SHARE))
    chosen = torch.from_numpy(masks)[..., None].to(pixels.device)
    changed = torch.where(chosen, soft, pixels).round().to(torch.uint8).cpu().numpy()
    probabilities = network.probabilities(np.concatenate([image[None], changed]))[:, target]
    return Deletion(
        confidence=float(probabilities[0]),
        hottest=float(probabilities[1]),
        random=float(probabilities[2:].mean()),
    )


def _moved(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask mirrored at random and rolled by any distance along both axes."""
    flipped = mask[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
    down, right = rng.integers(0, mask.shape[0], 2).tolist()
    return np.roll(flipped, (down, right), axis=(0, 1))


def _hottest(values: Values, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return the fifth of the positions with the highest values; ties are broken at random."""
    flat = values.ravel()
    order = np.lexsort((rng.random(flat.size), -flat))
    mask = np.zeros(flat.size, dtype=np.bool_)
    mask[order[: round(HOT_SHARE * flat.size)]] = True
    return mask.reshape(values.shape)


def rank_correlation(first: Values, second: Values) -> float:
    """Return Spearman's rank correlation of two maps, over a grid of 14 x 14 means.

    0 if one of them is constant.
    """
    ranks = []
    for values in (first, second):
        pooled = F.adaptive_avg_pool2d(torch.from_numpy(values)[None], 14)[0].numpy().ravel()
        if np.ptp(pooled) == 0:
            return 0.0
        # Equal values share the mean of their ranks: large parts of a map may be zero.
        _, groups, counts = np.unique(pooled, return_inverse=True, return_counts=True)
        last = counts.cumsum()
        ranks.append((last - (counts - 1) / 2)[groups])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
