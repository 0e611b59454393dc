"""Explanations of a model in Python: saliency, activations, ideal and adversarial pictures."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike, fspath
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from afinar.config.base import require
from afinar.config.explain import SALIENCY_METHODS, Prior, SaliencyMethod
from afinar.explain.adversarial import Attack, pgd
from afinar.explain.ideal import IdealTask, ascend
from afinar.explain.images import overlay
from afinar.explain.layers import as_maps, map_of, saliency_layer
from afinar.explain.network import ExplainedNetwork, ModelSpec, find_class, load_explained
from afinar.explain.pictures import list_inputs
from afinar.explain.saliency import Deletion, compute_map, deletion_score

Pixels = NDArray[np.uint8]
Picture = str | PathLike[str] | Pixels
"""A path or s3:// URI, or a stored view: uint8 [size, size, 3]."""

_RANDOM_SEED: Final = 0


@dataclass(frozen=True, kw_only=True)
class Saliency:
    """A map of one picture.

    `values` float32 [size, size] are 0 to 1, `overlay` uint8 [size, size, 3] is the picture under
    the map. `deletion` has the confidence in `label`, and what is left of it when the hottest
    fifth, or a random fifth, is blurred. `error` is the completeness error of integrated gradients.
    """

    label: str
    values: NDArray[np.float32]
    overlay: Pixels
    deletion: Deletion
    error: float | None


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """A picture after an attack, uint8 [size, size, 3], and the answers before and after."""

    image: Pixels
    before: str
    after: str
    succeeded: bool


class Explainer:
    """A model, loaded to be explained: `open_explainer` returns it.

    Each method explains one picture or class in this process;
    `afinar explain` does that for many, on Ray, and writes a page.
    """

    def __init__(self, network: ExplainedNetwork) -> None:
        self.network = network

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.network.classes

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes whose activations can be read, in forward order."""
        return list(self.network.shapes)

    @property
    def size(self) -> int:
        """Side in pixels of the pictures that the model takes, before its own resize."""
        return self.network.stored_view.size

    def saliency(
        self, picture: Picture, method: SaliencyMethod = "gradcam", label: str | None = None
    ) -> Saliency:
        """Return the map of a picture for a class, by default the predicted one.

        `method` is "gradcam", "integrated" or "occlusion". Raises RequestError for an unknown
        method or class, PictureError for a picture that cannot be used.
        """
        require(method in SALIENCY_METHODS, f"{method!r}: choose {', '.join(SALIENCY_METHODS)}")
        image = self._pixels(picture)
        number = self._answer(image) if label is None else find_class(label, self.classes)
        found = compute_map(self.network, method, image, number, self._node(method))
        return Saliency(
            label=self.classes[number],
            values=found.values,
            overlay=overlay(image, found.values),
            deletion=deletion_score(self.network, image, number, found.values),
            error=found.error,
        )

    def _node(self, method: SaliencyMethod) -> str:
        if method != "gradcam":
            return ""
        node = saliency_layer(self.network)
        require(node is not None, "this network has no layer with positions: take another method")
        assert node is not None
        return node

    def activations(self, picture: Picture, node: str) -> NDArray[np.float32]:
        """Return the activations of a picture at a node, float32 [channels, side, side].

        At a node without positions they are [width]. Raises RequestError for an unknown node.
        """
        name = self.network.find_node(node)
        with torch.no_grad():
            pixels = self.network.pixels(self._pixels(picture)[None])
            (values,) = self.network.run(pixels, (name,)).activations
        found = map_of(tuple(values.shape))
        maps = values if found is None else as_maps(values, found)
        result: NDArray[np.float32] = maps[0].float().cpu().numpy()
        return result

    def ideal(
        self, label: str, *, prior: Prior = "fourier", steps: int = 512, seed: int = _RANDOM_SEED
    ) -> Pixels:
        """Return the picture that a class responds to most, uint8 [size, size, 3].

        512 steps of a ResNet-18 take about a minute of one core.
        """
        number = find_class(label, self.classes)
        task = IdealTask(unit="", title=label, target=number, prior=prior, steps=steps, seed=seed)
        frames, _ = ascend(self.network, task)
        return frames[-1]

    def adversarial(
        self, picture: Picture, label: str | None = None, *, epsilon: int = 8, steps: int = 20
    ) -> Adversarial:
        """Return the picture with changes of at most `epsilon` levels that lead to another answer.

        `label` is the class to reach, by default any other.
        """
        require(1 <= epsilon <= 255, f"epsilon={epsilon}: give 1 to 255 levels")
        image = self._pixels(picture)
        answer = self._answer(image)
        wanted = answer if label is None else find_class(label, self.classes)
        labels, targets = (
            torch.tensor([number], device=self.network.device) for number in (answer, wanted)
        )
        found = pgd(
            self.network,
            self.network.pixels(image[None]),
            labels,
            None if label is None else targets,
            Attack(epsilon=epsilon, steps=steps),
        )
        changed: Pixels = found.pixels[0].to(torch.uint8).cpu().numpy()
        return Adversarial(
            image=changed,
            before=self.classes[answer],
            after=self.classes[self._answer(changed)],
            succeeded=bool(found.succeeded[0]),
        )

    def _answer(self, image: Pixels) -> int:
        return int(self.network.probabilities(image[None])[0].argmax())

    def _pixels(self, picture: Picture) -> Pixels:
        if isinstance(picture, np.ndarray):
            require(
                picture.dtype == np.uint8 and picture.shape == (self.size, self.size, 3),
                f"an array {picture.dtype} {list(picture.shape)} is no stored view of this model: "
                f"give uint8 [{self.size}, {self.size}, 3], or a path",
            )
            return picture
        (entry,) = list_inputs([fspath(picture)])
        return entry.load(self.network.stored_view)

    def __repr__(self) -> str:
        return f"Explainer({self.network.spec.model!r}): {len(self.classes)} classes"


def open_explainer(model: str, *, weights: str = "imagenet", input_size: int = 0) -> Explainer:
    """Load a model to explain it: MODELS, MODELS@VERSION, or `imagenet:BACKBONE`.

    It is a float32 copy that is neither folded nor changed. `weights` and `input_size` are those of
    `imagenet:BACKBONE`. Raises RequestError if there is no such model.
    """
    spec = ModelSpec(model=fspath(model), weights=weights, input_size=input_size)
    return Explainer(load_explained(spec))
