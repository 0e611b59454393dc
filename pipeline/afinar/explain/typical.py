"""Work of one unit: the most typical real pictures of a class, beside its ideal ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from afinar.explain.images import encode_png, grid
from afinar.explain.network import ExplainedNetwork
from afinar.explain.pictures import PictureInput
from afinar.explain.units import Rendered

_SHOWN: Final = 6


@dataclass(frozen=True, kw_only=True)
class TypicalResult:
    """The pictures with the highest score of a class, of `sample` that have its label."""

    name: str
    sample: int
    uris: list[str]
    probabilities: list[float]


@dataclass(frozen=True, kw_only=True)
class TypicalTask:
    """Pictures of one class, among which the most typical are searched."""

    unit: str
    title: str
    target: int
    sample: tuple[PictureInput, ...]

    @property
    def pictures(self) -> int:
        return len(self.sample)

    def run(self, network: ExplainedNetwork) -> Rendered[TypicalResult]:
        """Order the pictures by the score of the class."""
        images = np.stack([picture.load(network.stored_view) for picture in self.sample])
        scores, target = [], torch.tensor([self.target], device=network.device)
        with torch.no_grad():
            for start in range(0, len(images), network.batch_size):
                logits = network.logits(network.pixels(images[start : start + network.batch_size]))
                scores.append(network.score(logits, target.expand(len(logits))).cpu().numpy())
        order = np.argsort(-np.concatenate(scores), kind="stable")[:_SHOWN]
        probabilities = network.probabilities(images[order])[:, self.target]
        result = TypicalResult(
            name=network.classes[self.target],
            sample=len(images),
            uris=[self.sample[place].uri for place in order],
            probabilities=[float(share) for share in probabilities],
        )
        sheet = grid([images[place] for place in order], columns=3)
        return Rendered(result, {"typical.png": encode_png(sheet)})
