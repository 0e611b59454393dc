"""Layers that are worth showing: the one that Grad-CAM uses, and some at several depths."""

from __future__ import annotations

import math
import re
from typing import Final, Literal, NamedTuple

from torch import Tensor

from afinar.explain.graphs import dependent_nodes
from afinar.explain.network import ExplainedNetwork

Layout = Literal["channels first", "channels last", "tokens"]

_BLOCK: Final = re.compile(r"(.*?\d+)\.")
"""Path of the block of a transformer that a node belongs to: `encoder.layers.encoder_layer_11`."""

SHALLOW_SIDE: Final = 15
"""Maps of more positions a side are of a shallow cut: there a channel's weights differ by position,
and LayerCAM (Jiang et al. 2021, doi 10.1109/TIP.2021.3089943) is used instead of Grad-CAM."""


_FINE_SIDE: Final = 7
"""Positions a side of the last convolution of most networks at 224 px. Maps of fewer do not tell
places apart: of objects of half the picture's side, at 128 px, MobileNet v2's map of 4 x 4 had more
than half of its mass on 5 %, and its map of 8 x 8 on 70 %."""


class Map(NamedTuple):
    """Layout of the activations of a node, and their side in positions."""

    layout: Layout
    side: int


def map_of(shape: tuple[int, ...]) -> Map | None:
    """Return the layout of activations of one picture; None if they have no square of positions.

    `channels last` is recognised by h == w != channels, as in `pool_activations`. The first tokens
    of a vision transformer may belong to no position (class token, registers).
    """
    if shape[0] != 1:  # windows of a transformer, in place of pictures
        return None
    if len(shape) == 4:
        _, first, second, third = shape
        if first == second != third:
            return Map("channels last", first) if first > 1 else None
        return Map("channels first", second) if second == third > 1 else None
    if len(shape) == 3 and shape[1] > 4:
        side = math.isqrt(shape[1])
        return Map("tokens", side) if shape[1] - side * side <= 8 else None
    return None


def as_maps(activations: Tensor, found: Map) -> Tensor:
    """Return activations as [n, channels, side, side]."""
    if found.layout == "channels first":
        return activations
    if found.layout == "channels last":
        return activations.permute(0, 3, 1, 2)
    tokens = activations[:, activations.shape[1] - found.side**2 :]
    count, _, channels = tokens.shape
    return tokens.transpose(1, 2).reshape(count, channels, found.side, found.side)


def saliency_layer(network: ExplainedNetwork) -> str | None:
    """Return the node whose activations Grad-CAM weights; None if no node has positions.

    It is the last node with enough positions to tell places apart: the last convolution's
    activation in a CNN at its usual input size, an earlier one at a smaller size. A node through
    which everything passes is preferred to one of a branch. In a vision transformer only the class
    token of the last block reaches the head, so that all other tokens have no gradient there: the
    output of the block before the last one is taken.
    """
    maps = _maps(network)
    deepest = _deepest(maps)
    if deepest is None or maps[deepest].layout == "tokens":
        return deepest
    fine = [name for name, found in maps.items() if found.side >= _FINE_SIDE]
    passed = _passed_by_all(network)
    whole = [name for name in fine if name in passed]
    return (whole or fine or [deepest])[-1]


def _passed_by_all(network: ExplainedNetwork) -> set[str]:
    """Return the nodes that are on every path from the picture to the output.

    No edge leads from a node before such a node to one behind it.
    """
    depends = dependent_nodes(network.module)
    places = {
        node: place
        for place, node in enumerate(node for node in network.module.graph.nodes if node in depends)
    }
    passed, furthest = set(), 0
    for node, place in places.items():
        if furthest <= place:
            passed.add(node)
        furthest = max([furthest, *(places[user] for user in node.users)])
    return {name for name, node in network.nodes.items() if node in passed}


def _deepest(maps: dict[str, Map]) -> str | None:
    """Return the last node with positions; in a vision transformer the last with a gradient."""
    if not maps:
        return None
    last = next(reversed(maps))
    if maps[last].layout != "tokens":
        return last
    blocks: dict[str, str] = {}
    for name, found in maps.items():
        if found.layout == "tokens" and (match := _BLOCK.match(name)):
            blocks[match[1]] = name
    return list(blocks.values())[-2] if len(blocks) > 1 else last


def several_depths(network: ExplainedNetwork) -> list[str]:
    """Return three nodes: an early one, one in the middle, and the deepest one.

    Of a CNN they end a group of layers of the same resolution, of a transformer they end a block.
    """
    maps = _maps(network)
    last = _deepest(maps)
    if last is None:
        return []
    names = list(maps)
    before = names[: names.index(last) + 1]
    ends: dict[object, str] = {}
    for name in before:
        match = _BLOCK.match(name)
        is_token = maps[name].layout == "tokens"
        ends[match[1] if is_token and match else maps[name].side] = name
    candidates = list(dict.fromkeys([*ends.values(), last]))
    # The very first resolution shows edges and colours that every network has.
    chosen = [candidates[min(1, len(candidates) - 1)], candidates[len(candidates) // 2], last]
    return list(dict.fromkeys(chosen))


def _maps(network: ExplainedNetwork) -> dict[str, Map]:
    """Return the nodes with positions, in forward order.

    A node that has more positions than the one before it is left out. It has padded or repeated
    them, as VGG's adaptive pooling makes 7 x 7 of 4 x 4 for a small input.
    """
    found = {name: map_of(shape) for name, shape in network.shapes.items()}
    maps = {name: entry for name, entry in found.items() if entry is not None}
    before = [None, *maps.values()]
    return {
        name: entry
        for (name, entry), earlier in zip(maps.items(), before, strict=False)
        if earlier is None or entry.side <= earlier.side
    }
