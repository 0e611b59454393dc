"""Sections of the pages of `explain`: pictures, numbers and charts of each method's results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from afinar.errors import StorageError
from afinar.explain.driver import (
    FeaturesOutcome,
    IdealOutcome,
    SaliencyOutcome,
)
from afinar.explain.ideal import IdealResult
from afinar.explain.images import decode_png, structural_similarity
from afinar.explain.saliency_task import SaliencyResult
from afinar.explain.units import Stored
from afinar.report.blocks import Block
from afinar.report.charts import Chart, axis, exact_axis
from afinar.report.pieces import LARGE_PX, Tile, data_uri, thumbnail, tiles
from afinar.storage.objects import ObjectRef, get_object
from afinar.storage.store import Store

SHOWN: Final = 40
"""Pictures, or classes, on a page: about 3 MB."""
_GRID_PX: Final = 460
_ANIMATIONS: Final = 8
_MAP_PX: Final = 224

METHODS: Final = {
    "gradcam": "Grad-CAM",
    "integrated": "integrated gradients",
    "occlusion": "occlusion",
}
PRIORS: Final = {
    "fourier": "Fourier spectrum, transforms",
    "tv": "loss on variation (courses)",
    "none": "no prior (naive)",
}


@dataclass(kw_only=True)
class Summary:
    """Beginning of a page: headline numbers, and sentences on how to read the page."""

    numbers: list[tuple[str, str]]
    reading: list[str]


def shot(
    store: Store, ref: ObjectRef | None, caption: str, alt: str, size_px: int = _MAP_PX
) -> Tile:
    """Return a picture of a unit as a thumbnail; without one if its object is gone."""
    if ref is None:
        return Tile("", "", caption, alt)
    try:
        data = get_object(store, ref)
    except StorageError:
        return Tile("", ref.path, caption, alt)
    if ref.path.endswith(".webp"):
        return Tile(data_uri(data, "webp"), ref.path, caption, alt)
    return Tile(data_uri(thumbnail(decode_png(data), size_px), "jpeg"), ref.path, caption, alt)


def features_blocks(outcome: FeaturesOutcome) -> list[Block]:
    """Return a section for each picture, and one for the pictures that channels like most."""
    blocks = []
    for stored in outcome.results[:SHOWN]:
        result = stored.result
        block = Block(
            title=result.uri.rsplit("/", 1)[-1],
            texts=[f"The model answers {result.predicted} with {result.score:.1%}."],
            is_large=True,
        )
        block.shots.append(
            shot(outcome.store, stored.pictures.get("picture.png"), "the network's input", "input")
        )
        for number, node in enumerate(result.nodes):
            channels, side, _ = node.shape
            names = ", ".join(str(entry.channel) for entry in node.channels)
            caption = (
                f"{node.node}: {len(node.channels)} of {channels} channels of {side} × {side}, "
                f"the strongest first, row by row: {names}"
            )
            ref = stored.pictures.get(f"node{number}.png")
            alt = f"activations at {node.node}"
            block.shots.append(shot(outcome.store, ref, caption, alt, _GRID_PX))
        blocks.append(block)
    return [*blocks, *_strongest_blocks(outcome)]


def _strongest_blocks(outcome: FeaturesOutcome) -> list[Block]:
    if outcome.dataset is None:
        return []
    blocks = []
    for entry in outcome.strongest[:SHOWN]:
        captions = [f"mean activation {value:.3g}" for value in entry.values]
        blocks.append(
            Block(
                title=f"Pictures that activate channel {entry.channel} of {entry.node} most",
                shots=tiles(outcome.dataset, entry.rows, captions),
            )
        )
    return blocks


def features_summary(outcome: FeaturesOutcome) -> Summary:
    """Return what the page of features begins with."""
    return Summary(
        numbers=[("pictures", f"{len(outcome.results):,}")],
        reading=[
            "Each small square is one channel: bright where it responds. Every square has its "
            "own scale, and channels are sorted by the mean of their absolute activations. "
            "Early layers follow edges and colours; later ones answer to parts of objects, "
            "with fewer positions.",
        ],
    )


def ideal_blocks(outcome: IdealOutcome) -> list[Block]:
    """Return a section for each class or channel, with its seeds and priors side by side."""
    by_name: dict[str, list[Stored[IdealResult]]] = defaultdict(list)
    for stored in outcome.results:
        by_name[stored.result.name].append(stored)

    blocks, animations = [], 0
    for name, group in list(by_name.items())[:SHOWN]:
        block = Block(title=name, is_large=True)
        first_of: dict[str, Stored[IdealResult]] = {}
        for stored in group:
            first_of.setdefault(stored.result.prior, stored)
            block.shots.append(_ideal_shot(outcome, stored))
        for prior, stored in first_of.items():
            if animations < _ANIMATIONS:
                animations += 1
                ref = stored.pictures.get("frames.webp")
                caption = f"{PRIORS[prior]}: from noise to step {stored.result.steps} (animation)"
                block.shots.append(shot(outcome.store, ref, caption, f"{name}, animation"))
        typical = outcome.typical.get(name)
        if typical is not None:
            ref = typical.pictures.get("typical.png")
            caption = (
                f"real pictures with the highest score, of {typical.result.sample} with this "
                "label: " + ", ".join(f"{share:.0%}" for share in typical.result.probabilities)
            )
            block.shots.append(shot(outcome.store, ref, caption, f"real {name}", 3 * _MAP_PX))
        block.charts = [_ideal_curve(list(first_of.values()))]
        block.heading, block.rows = _ideal_table(outcome, group)
        blocks.append(block)
    return blocks


def _ideal_shot(outcome: IdealOutcome, stored: Stored[IdealResult]) -> Tile:
    result = stored.result
    caption = f"{PRIORS[result.prior]}, seed {result.seed}"
    if result.rank:
        caption += f": {result.probability:.1%}, rank {result.rank}"
    return shot(
        outcome.store, stored.pictures.get("picture.png"), caption, f"ideal {result.name}", LARGE_PX
    )


def _ideal_curve(group: Sequence[Stored[IdealResult]]) -> Chart:
    points = [point for stored in group for point in stored.result.curve]
    steps, scores = zip(*points, strict=True)
    low = min(scores) if min(scores) < -0.1 * max(scores) else 0.0  # noise begins just below 0
    chart = Chart(
        title="Score by step (as the network sees the picture)",
        x=exact_axis("step", 0, max(steps), integer=True),
        y=axis("score", low, max(scores)),
    )
    for colour, stored in enumerate(group, start=1):
        curve = [(float(step), score) for step, score in stored.result.curve]
        chart.line(curve, colour, name=PRIORS[stored.result.prior])
    return chart


def _ideal_table(
    outcome: IdealOutcome, group: list[Stored[IdealResult]]
) -> tuple[list[str], list[list[str]]]:
    heading = ["prior", "probability", "after a shift", "variation", "similarity of seeds"]
    rows = []
    by_prior: dict[str, list[Stored[IdealResult]]] = defaultdict(list)
    for stored in group:
        by_prior[stored.result.prior].append(stored)
    for prior, entries in by_prior.items():
        results = [stored.result for stored in entries]
        likeness = seed_similarity(outcome.store, entries)
        rows.append(
            [
                PRIORS[prior],
                _mean([result.probability for result in results]) if results[0].rank else "–",
                _mean([result.shifted_probability for result in results])
                if results[0].rank
                else "–",
                f"{sum(result.variation for result in results) / len(results):.4f}",
                "one seed" if likeness is None else f"{likeness:.2f}",
            ]
        )
    return heading, rows


def _mean(shares: list[float]) -> str:
    return f"{sum(shares) / len(shares):.1%}"


def seed_similarity(store: Store, entries: Sequence[Stored[IdealResult]]) -> float | None:
    """Return the mean SSIM of pairs of ideal pictures of one class, None for fewer than two."""
    pictures = [decode_png(get_object(store, stored.pictures["picture.png"])) for stored in entries]
    values = [
        structural_similarity(pictures[first], pictures[second])
        for second in range(len(pictures))
        for first in range(second)
    ]
    return sum(values) / len(values) if values else None


def ideal_summary(outcome: IdealOutcome) -> Summary:
    """Return what the page of ideal pictures begins with."""
    names = {stored.result.name for stored in outcome.results}
    return Summary(
        numbers=[
            ("classes or channels", f"{len(names):,}"),
            ("pictures", f"{len(outcome.results):,}"),
        ],
        reading=[
            "An ideal picture is what the network responds to most, not what a class looks "
            "like. A standard network often answers to textures and repeated parts. Without a "
            "prior the score rises on noise that no person recognises.",
            "Probabilities are those of the picture saved with 8 bits; after a shift by three "
            "pixels in four directions the lowest counts. Variation is the mean difference of "
            "neighbouring pixels, a share of the range. Similarity of seeds is the mean SSIM "
            "of pairs: 1 would be the same picture every time.",
        ],
    )


def saliency_blocks(outcome: SaliencyOutcome) -> list[Block]:
    """Return a section for each picture: its maps, and their checks as a table."""
    blocks = []
    for stored in outcome.results[:SHOWN]:
        result = stored.result
        shots = [shot(outcome.store, stored.pictures.get("picture.png"), "picture", "picture")]
        for entry in result.maps:
            ref = stored.pictures.get(f"{entry.method}.png")
            name = METHODS[entry.method]
            caption = f"{name}: blank, nothing supports the class" if entry.is_blank else name
            shots.append(shot(outcome.store, ref, caption, name))
        blocks.append(
            Block(
                title=result.uri.rsplit("/", 1)[-1],
                texts=[_saliency_text(result)],
                shots=shots,
                heading=["map", "hottest fifth blurred", "random fifth", "checks"],
                rows=[
                    [
                        METHODS[entry.method],
                        f"{entry.hottest:.1%}",
                        f"{entry.random:.1%}",
                        _checks(entry.error, entry.agreement),
                    ]
                    for entry in result.maps
                ],
            )
        )
    return blocks


def _saliency_text(result: SaliencyResult) -> str:
    label = f" (label: {result.label})" if result.label is not None else ""
    text = f"The model answers {result.predicted}{label}. "
    return text + f"Explained: {result.explained}, {result.confidence:.1%}."


def _checks(error: float | None, agreement: float | None) -> str:
    parts = []
    if error is not None:
        parts.append(f"completeness error {error:.1%}")
    if agreement is not None:
        parts.append(f"rank correlation with occlusion {agreement:.2f}")
    return ", ".join(parts)


def saliency_summary(outcome: SaliencyOutcome) -> Summary:
    """Return what the page of maps begins with: how far the maps can be believed on the whole."""
    numbers = [(f"{outcome.chosen}, of {outcome.listed:,}", f"{len(outcome.results):,}")]
    for method, name in METHODS.items():
        entries: list[Any] = [
            entry
            for stored in outcome.results
            for entry in stored.result.maps
            if entry.method == method and not entry.is_blank
        ]
        if entries:
            better = sum(entry.hottest < entry.random for entry in entries)
            numbers.append((f"{name}: hottest fifth matters more", f"{better} of {len(entries)}"))
    return Summary(
        numbers=numbers,
        reading=[
            "Bright parts support the explained class. A map can be believed as far as the "
            "table shows: if the confidence falls much further when its hottest fifth is "
            "blurred than when the same shape is blurred at random places, the model does "
            "rest on that part.",
        ],
    )
