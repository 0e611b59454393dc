"""Work of one unit of `explain adversarial`: one picture, or some of a sample's accuracy curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from afinar.explain.adversarial import Attack, fgsm, pgd
from afinar.explain.images import Pixels, decode_png, encode_png
from afinar.explain.network import ExplainedNetwork
from afinar.explain.pictures import PictureInput
from afinar.explain.units import Rendered

EPSILONS: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Bounds of the accuracy curve, in levels of 255. No picture of 8 bits differs from another by half
a level: for that bound pixels are not rounded. 32 is the check: hardly any model withstands it."""

_MIDDLE_GREY: Final = 128


@dataclass(frozen=True, kw_only=True)
class AdversarialResult:
    """A picture before and after the attack, as read back from its PNG.

    `change` is the largest difference of a colour value in levels, at most `epsilon`; `method` is
    "FGSM" if one step was enough, else "PGD". `target` is None for an untargeted attack.
    """

    uri: str
    label: str | None
    target: str | None
    epsilon: int
    method: str
    succeeded: bool
    change: int
    before: str
    before_score: float
    after: str
    after_score: float
    target_before: float
    target_after: float


@dataclass(frozen=True, kw_only=True)
class AdversarialTask:
    """One picture and a bound; `target` is -1 for any other class."""

    unit: str
    picture: PictureInput
    target: int
    epsilon: int
    steps: int
    restarts: int
    seed: int

    @property
    def title(self) -> str:
        return self.picture.uri

    def run(self, network: ExplainedNetwork) -> Rendered[AdversarialResult]:
        """Attack the picture. Raises PictureError for a picture that cannot be used."""
        image = self.picture.load(network.stored_view)
        pixels = network.pixels(image[None])
        (before,) = network.probabilities(image[None])
        answer = int(before.argmax())
        labels = torch.tensor([answer], device=network.device)
        targets = None
        if self.target >= 0:
            targets = torch.tensor([self.target], device=network.device)

        found, method = fgsm(network, pixels, labels, targets, self.epsilon), "FGSM"
        if not bool(found.succeeded[0]):
            attack = Attack(
                epsilon=self.epsilon,
                steps=self.steps,
                restarts=self.restarts,
                seed=self.seed,
                stops_early=False,
            )
            found, method = pgd(network, pixels, labels, targets, attack), "PGD"
        changed: Pixels = found.pixels[0].round().to(torch.uint8).cpu().numpy()
        saved = encode_png(changed)
        stored = decode_png(saved)
        (after,) = network.probabilities(stored[None])
        now = int(after.argmax())
        wanted = now if self.target < 0 else self.target
        difference = stored.astype(np.int16) - image
        result = AdversarialResult(
            uri=self.picture.uri,
            label=self.picture.label,
            target=network.classes[self.target] if self.target >= 0 else None,
            epsilon=self.epsilon,
            method=method,
            succeeded=now == self.target if self.target >= 0 else now != answer,
            change=int(np.abs(difference).max()),
            before=network.classes[answer],
            before_score=float(before[answer]),
            after=network.classes[now],
            after_score=float(after[now]),
            target_before=float(before[wanted]),
            target_after=float(after[wanted]),
        )
        pictures = {
            "original.png": encode_png(image),
            "change.png": encode_png(_amplified(difference, self.epsilon)),
            "result.png": saved,
        }
        return Rendered(result, pictures)


@dataclass(frozen=True, kw_only=True)
class RobustnessResult:
    """For each picture the smallest bound of EPSILONS that breaks it, None if none does.

    A picture that is wrong as it is breaks at 0.
    """

    uris: list[str]
    broken_at: list[float | None]


@dataclass(frozen=True, kw_only=True)
class RobustnessTask:
    """Some labelled pictures of a dataset; `labels` are class numbers of the model."""

    unit: str
    sample: tuple[PictureInput, ...]
    labels: tuple[int, ...]
    steps: int
    restarts: int
    seed: int

    @property
    def title(self) -> str:
        return self.sample[0].uri

    @property
    def pictures(self) -> int:
        return len(self.sample)

    def run(self, network: ExplainedNetwork) -> Rendered[RobustnessResult]:
        """Attack at growing bounds; a picture that broke stays broken, since bounds contain it."""
        images = np.stack([picture.load(network.stored_view) for picture in self.sample])
        pixels = network.pixels(images)
        labels = torch.tensor(self.labels, device=network.device)
        is_right = torch.from_numpy(network.probabilities(images).argmax(axis=1)).to(labels.device)
        broken: list[float | None] = [
            None if right else 0.0 for right in (is_right == labels).tolist()
        ]
        current = pixels.clone()
        for epsilon in EPSILONS[1:]:
            rows = [row for row, bound in enumerate(broken) if bound is None]
            if not rows:
                break
            attack = Attack(
                epsilon=epsilon, steps=self.steps, restarts=self.restarts, seed=self.seed
            )
            start = current[rows] if epsilon != 1 else pixels[rows]  # half levels are not stored
            found = pgd(network, pixels[rows], labels[rows], None, attack, start=start)
            current[rows] = found.pixels
            for row, succeeded in zip(rows, found.succeeded.tolist(), strict=True):
                broken[row] = epsilon if succeeded else None
        return Rendered(RobustnessResult(uris=[p.uri for p in self.sample], broken_at=broken))


def _amplified(difference: np.ndarray, epsilon: int) -> Pixels:
    """Return a change of up to `epsilon` levels as a picture that spans all levels around grey."""
    scaled = _MIDDLE_GREY + difference.astype(np.float32) * (127 / epsilon)
    pixels: Pixels = scaled.round().clip(0, 255).astype(np.uint8)
    return pixels
