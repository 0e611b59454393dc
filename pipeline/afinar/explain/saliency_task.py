"""Work of one unit of `explain saliency`: the maps of one picture, with their checks."""

from __future__ import annotations

from dataclasses import dataclass

from afinar.config.explain import SaliencyMethod
from afinar.explain.images import encode_png, overlay
from afinar.explain.network import ExplainedNetwork
from afinar.explain.pictures import PictureInput
from afinar.explain.saliency import compute_map, deletion_score, rank_correlation
from afinar.explain.units import Rendered


@dataclass(frozen=True, kw_only=True)
class MapResult:
    """Numbers of one map: see SaliencyMap and Deletion. `node` is that of Grad-CAM.

    `agreement` is the rank correlation with the map of occlusion, None for occlusion itself or if
    it was not asked for.
    """

    method: SaliencyMethod
    node: str
    is_blank: bool
    error: float | None
    hottest: float
    random: float
    agreement: float | None


@dataclass(frozen=True, kw_only=True)
class SaliencyResult:
    """The explained class of a picture, its probability, and the maps."""

    uri: str
    label: str | None
    predicted: str
    explained: str
    confidence: float
    maps: list[MapResult]


@dataclass(frozen=True, kw_only=True)
class SaliencyTask:
    """One picture. `target` is the class number that is explained, -1 for the predicted one."""

    unit: str
    picture: PictureInput
    methods: tuple[SaliencyMethod, ...]
    node: str
    target: int

    @property
    def title(self) -> str:
        return self.picture.uri

    def run(self, network: ExplainedNetwork) -> Rendered[SaliencyResult]:
        """Compute the maps. Raises PictureError for a picture that cannot be used."""
        image = self.picture.load(network.stored_view)
        (probabilities,) = network.probabilities(image[None])
        predicted = int(probabilities.argmax())
        target = predicted if self.target < 0 else self.target
        maps = {
            method: compute_map(network, method, image, target, self.node)
            for method in self.methods
        }

        results, pictures = [], {"picture.png": encode_png(image)}
        for method, found in maps.items():
            score = deletion_score(network, image, target, found.values)
            checked = maps.get("occlusion") if method != "occlusion" else None
            agreement = rank_correlation(found.values, checked.values) if checked else None
            results.append(
                MapResult(
                    method=method,
                    node=self.node if method == "gradcam" else "",
                    is_blank=found.is_blank,
                    error=found.error,
                    hottest=score.hottest,
                    random=score.random,
                    agreement=agreement,
                )
            )
            pictures[f"{method}.png"] = encode_png(overlay(image, found.values))
        result = SaliencyResult(
            uri=self.picture.uri,
            label=self.picture.label,
            predicted=network.classes[predicted],
            explained=network.classes[target],
            confidence=float(probabilities[target]),
            maps=results,
        )
        return Rendered(result, pictures)
