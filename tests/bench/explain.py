"""`explain`: ideal pictures, maps and their sanity check on EfficientNet-Lite0, and memory."""

from __future__ import annotations

import gc
import itertools
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from afinar.config.explain import Prior
from afinar.explain.ideal import IdealResult, IdealTask
from afinar.explain.images import decode_png, structural_similarity
from afinar.explain.layers import saliency_layer
from afinar.explain.network import ExplainedNetwork, ModelSpec, find_class, load_explained
from afinar.explain.saliency import deletion_score, grad_cam, occlusion, rank_correlation
from tests.bench.table import Table
from tests.bench.world import scaled

Pixels = NDArray[np.uint8]

LITE0 = "efficientnet_lite0"
CERTAIN = 0.99
VARIATION = 0.5  # of the naive picture's
LIKENESS = 0.9  # SSIM of seeds
ON_OBJECT = 0.8  # of pictures whose map has more than half of its mass on the object
CORRELATION = 0.5
GROWTH_BYTES = 30e6  # of memory over 400 pictures

_HEADS = 5
_OCCLUDED = 10


def explain() -> bool:
    """Require what the pages of EfficientNet-Lite0 say of themselves, and flat memory."""
    torch.set_num_threads(1)
    network = load_explained(ModelSpec(model=f"imagenet:{LITE0}"))
    return all([ideal(network), planted_photos(network), memory(network)])


def ideal(network: ExplainedNetwork, name: str = "Egyptian cat", steps: int = 512) -> bool:
    """Draw one class with three seeds, and with each other prior once."""
    steps = scaled(steps)
    columns = ("prior", "seed", "probability", "after shifts", "variation", "of naive", "met")
    table, pictures = Table(columns), []
    naive, _ = _ideal(network, name, "none", 0, steps)
    table.add("none", 0, *_cells(naive, 1.0))
    tv, _ = _ideal(network, name, "tv", 0, steps)
    table.add("tv", 0, *_cells(tv, tv.variation / naive.variation))
    for seed in range(3):
        result, picture = _ideal(network, name, "fourier", seed, steps)
        pictures.append(picture)
        share = result.variation / naive.variation
        is_certain = min(result.probability, result.shifted_probability) >= CERTAIN
        table.limit(
            "fourier", seed, *_cells(result, share), holds=is_certain and share <= VARIATION
        )
    met = table.show(f"Ideal pictures of {name}, {steps} steps")
    pairs = [structural_similarity(*pair) for pair in itertools.combinations(pictures, 2)]
    print(f"mean SSIM of the seeds: {np.mean(pairs):.2f} (limit {LIKENESS})")
    return met and float(np.mean(pairs)) < LIKENESS


def _cells(result: IdealResult, share: float) -> tuple[str, ...]:
    return (
        f"{result.probability:.4f}",
        f"{result.shifted_probability:.4f}",
        f"{result.variation:.4f}",
        f"{share:.2f}",
    )


def _ideal(
    network: ExplainedNetwork, name: str, prior: Prior, seed: int, steps: int
) -> tuple[IdealResult, Pixels]:
    target = find_class(name, network.classes)
    task = IdealTask(unit="", title=name, target=target, prior=prior, steps=steps, seed=seed)
    rendered = task.run(network)
    return rendered.result, decode_png(rendered.pictures["picture.png"])


@dataclass(frozen=True)
class Planted:
    """A picture with an object, whose box is `top`, `left` and `side`."""

    image: Pixels
    top: int
    left: int
    side: int

    def share_inside(self, values: NDArray[np.float32]) -> float:
        """Return the share of a map's mass on the object."""
        box = (slice(self.top, self.top + self.side), slice(self.left, self.left + self.side))
        return float(values[box].sum() / max(float(values.sum()), 1e-9))


def planted_photos(network: ExplainedNetwork) -> bool:
    """Paste photographs into noise; explain the class that the network gives each one alone."""
    photos = load_sample_images().images
    whole = np.stack([_squared(photo, 224) for photo in photos])
    answers = network.probabilities(whole).argmax(axis=1)
    rng, numbers = np.random.default_rng(0), np.arange(scaled(40)) % len(photos)
    pasted = [paste(_squared(photos[number], 112), 224, rng) for number in numbers]
    return check_maps("EfficientNet-Lite0, ImageNet", network, pasted, answers[numbers])


def check_maps(
    name: str, network: ExplainedNetwork, pasted: list[Planted], targets: NDArray[np.int64]
) -> bool:
    """Require maps on the object, other maps with a random head, and a telling deletion score."""
    layer = saliency_layer(network)
    assert layer is not None
    maps = [
        grad_cam(network, entry.image[None], torch.tensor([target]), layer)[0]
        for entry, target in zip(pasted, targets, strict=True)
    ]
    # A map can be on the object only if the network looks at it: occlusion shows that without maps.
    occluded = [
        entry.share_inside(occlusion(network, entry.image, torch.tensor([target])).values)
        for entry, target in zip(pasted[:_OCCLUDED], targets, strict=False)
    ]
    on_object = np.mean(
        [entry.share_inside(found.values) > 0.5 for entry, found in zip(pasted, maps, strict=True)]
    )
    scores = [
        deletion_score(network, entry.image, int(target), found.values)
        for entry, target, found in zip(pasted, targets, maps, strict=True)
    ]
    hottest, random = (
        float(np.mean([getattr(score, field) for score in scores]))
        for field in ("hottest", "random")
    )

    other = load_explained(network.spec)
    correlations = []
    for seed in range(_HEADS):
        other.randomize_head(seed)
        for entry, target, found in zip(pasted[:10], targets, maps, strict=False):
            (changed,) = grad_cam(other, entry.image[None], torch.tensor([target]), layer)
            correlations.append(rank_correlation(found.values, changed.values))
    correlation = float(np.mean(correlations))
    is_met = bool(on_object >= ON_OBJECT and correlation < CORRELATION and hottest < random)
    print(
        f"{name}, {layer}: more than half of the map on the object in {on_object:.0%} of "
        f"{len(pasted)} pictures (limit {ON_OBJECT:.0%}); rank correlation with random heads "
        f"{correlation:.2f} (limit {CORRELATION}); confidence "
        f"{np.mean([score.confidence for score in scores]):.2f}, hottest fifth blurred "
        f"{hottest:.2f}, random {random:.2f}: {'met' if is_met else 'NOT met'}; "
        f"share of occlusion's maps on the object {np.mean(occluded):.2f}"
    )
    return is_met


def memory(network: ExplainedNetwork, pictures: int = 500) -> bool:
    """Explain many pictures, and require that memory does not grow and no hook is left."""
    rng, process = np.random.default_rng(0), psutil.Process()
    layer = saliency_layer(network)
    assert layer is not None
    sizes = []
    for number in range(pictures):
        image = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        grad_cam(network, image[None], torch.tensor([number]), layer)
        if number % 50 == 49:
            gc.collect()
            sizes.append(process.memory_info().rss)
    hooks = sum(
        len(module._forward_hooks) + len(module._backward_hooks)
        for part in network.modules
        for module in part.modules()
    )
    growth = sizes[-1] - sizes[1]
    print(
        f"memory after {pictures} pictures: {growth / 1e6:+.1f} MB since the 100th "
        f"(limit {GROWTH_BYTES / 1e6:.0f}); {hooks} hooks"
    )
    return growth < GROWTH_BYTES and not hooks


def paste(thing: Pixels, size: int, rng: np.random.Generator) -> Planted:
    image = rng.normal(127, 40, (size, size, 3)).clip(0, 255).astype(np.uint8)
    side = thing.shape[0]
    top, left = rng.integers(0, size - side + 1, 2).tolist()
    image[top : top + side, left : left + side] = thing
    return Planted(image, top, left, side)


def _squared(photo: Pixels, size: int) -> Pixels:
    side = min(photo.shape[:2])
    return np.asarray(Image.fromarray(photo[:side, :side]).resize((size, size)))
