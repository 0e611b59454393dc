"""The picture that a class or a channel responds to most, by gradient ascent on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from afinar.config.explain import Prior
from afinar.explain.graphs import leaky_gradients
from afinar.explain.images import (
    Pixels,
    encode_animation,
    encode_png,
    grid,
    total_variation,
)
from afinar.explain.layers import as_maps, map_of
from afinar.explain.network import ExplainedNetwork
from afinar.explain.parametrisation import Parametrisation, parametrise
from afinar.explain.units import Rendered
from afinar.training.optimizers import optim, take_step

_LEAKY_STEPS: Final = 16
_FRAMES: Final = 24
_STRIP: Final = 8  # frames on the sheet
_SHIFT_PX: Final = 3


@dataclass(frozen=True, kw_only=True)
class IdealResult:
    """An ideal picture in numbers.

    `probability`, `rank` (1 is best) and `shifted_probability` are those of the class after the
    picture was saved with 8 bits; after a shift by three pixels in four directions the lowest
    counts. They are 0 for a channel. `variation` is the mean difference of neighbouring pixels, a
    share of the range. `curve` has [step, score].
    """

    name: str
    prior: str
    seed: int
    steps: int
    score: float
    probability: float
    rank: int
    shifted_probability: float
    variation: float
    curve: list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class IdealTask:
    """Work of one unit: one picture of one class (`target`), or of one channel of `node`."""

    unit: str
    title: str
    target: int
    node: str = ""
    prior: Prior
    steps: int
    seed: int

    def run(self, network: ExplainedNetwork) -> Rendered[IdealResult]:
        """Optimise the picture, and measure it as an 8-bit picture."""
        frames, curve = ascend(network, self)
        final = frames[-1]
        probabilities = network.probabilities(np.stack([final, *_shifts(final)]))
        of_class = probabilities[:, self.target] if not self.node else np.zeros(5, np.float32)
        rank = 0 if self.node else 1 + int((probabilities[0] > of_class[0]).sum())
        result = IdealResult(
            name=self.title,
            prior=self.prior,
            seed=self.seed,
            steps=self.steps,
            score=curve[-1][1],
            probability=float(of_class[0]),
            rank=rank,
            shifted_probability=float(of_class[1:].min()),
            variation=total_variation(final),
            curve=curve,
        )
        shown = np.linspace(0, len(frames) - 1, min(_STRIP, len(frames))).round().astype(int)
        pictures = {
            "picture.png": encode_png(final),
            "frames.png": encode_png(grid([frames[place] for place in shown], columns=_STRIP)),
            "frames.webp": encode_animation(frames),
        }
        return Rendered(result, pictures)


def ascend(
    network: ExplainedNetwork, task: IdealTask
) -> tuple[list[Pixels], list[tuple[int, float]]]:
    """Return frames uint8 [size, size, 3], the last one being the result, and [step, score].

    Adam maximises the logit, not the probability: a probability also rises by making other classes
    less probable. In the first steps gradients pass ReLUs that are dead for the whole picture.
    """
    network.prepare((task.node,) if task.node else ())  # before layers are replaced for a while
    generator = torch.Generator().manual_seed(task.seed)
    size = network.stored_view.size
    picture = parametrise(task.prior, size, generator, network.device)
    optimizer = optim.Adam(picture.parameters(), lr=picture.learning_rate)
    wanted = {*_frame_steps(task.steps), task.steps}
    frames, curve = [_as_pixels(picture)], []

    for step in range(1, task.steps + 1):
        is_early = step <= _LEAKY_STEPS
        if picture.advance((step - 1) / task.steps):
            optimizer = optim.Adam(picture.parameters(), lr=picture.learning_rate)
        image = picture.picture()
        shown = picture.transformed(image, generator)
        with leaky_gradients(network.modules if is_early else []):
            score = _score(network, shown, task)
            loss = picture.penalty(image) - score
            gradients = torch.autograd.grad(loss, picture.parameters())
        for parameter, gradient in zip(picture.parameters(), gradients, strict=True):
            parameter.grad = gradient
        take_step(optimizer)

        if step in wanted:
            frames.append(_as_pixels(picture))
            curve.append((step, float(score.detach())))
    return frames, curve


def _score(network: ExplainedNetwork, pixels: Tensor, task: IdealTask) -> Tensor:
    """Return what is maximised: the class's logit, or the mean activation of the channel."""
    if not task.node:
        target = torch.tensor([task.target], device=network.device)
        return network.score(network.logits(pixels), target)[0]
    (activations,) = network.run(pixels, (task.node,)).activations
    found = map_of(tuple(activations.shape))
    if found is None:
        return activations.flatten(1)[0, task.target]
    return as_maps(activations, found)[0, task.target].mean()


def _frame_steps(steps: int) -> Sequence[int]:
    """Return the steps whose pictures are kept; most changes are early."""
    return sorted({max(1, round(steps * (place / _FRAMES) ** 1.5)) for place in range(_FRAMES + 1)})


def _as_pixels(picture: Parametrisation) -> Pixels:
    with torch.no_grad():
        image = picture.picture()[0].round().clamp(0, 255)
    pixels: Pixels = image.to(torch.uint8).cpu().numpy()
    return pixels


def _shifts(image: Pixels) -> list[Pixels]:
    """Return the picture shifted by three pixels in four directions; its edge is repeated."""
    padded = np.pad(image, ((_SHIFT_PX,) * 2, (_SHIFT_PX,) * 2, (0, 0)), mode="edge")
    size = image.shape[0]
    middle, end = _SHIFT_PX, 2 * _SHIFT_PX
    corners = [(0, middle), (end, middle), (middle, 0), (middle, end)]
    return [padded[top : top + size, left : left + size] for top, left in corners]
