"""Activations of a node for one picture, and the pictures that activate a channel most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import fx

from afinar.dataset.reader import Dataset
from afinar.explain.images import colour_map, encode_png, grid, normalized
from afinar.explain.layers import as_maps, map_of
from afinar.explain.network import ExplainedNetwork
from afinar.explain.pictures import PictureInput
from afinar.explain.units import Rendered
from afinar.features.key import FeatureSpec
from afinar.features.network import weights_hash
from afinar.features.reader import Features, list_all

_TILE_PX: Final = 112


@dataclass(frozen=True, kw_only=True)
class ChannelStrength:
    """A channel and the mean of its absolute activations over the picture."""

    channel: int
    strength: float


@dataclass(frozen=True, kw_only=True)
class NodeResult:
    """Activations of one node: its shape [channels, side, side], and its strongest channels."""

    node: str
    shape: tuple[int, int, int]
    channels: list[ChannelStrength]


@dataclass(frozen=True, kw_only=True)
class FeaturesResult:
    """The nodes of one picture, in forward order, and what the model answers."""

    uri: str
    predicted: str
    score: float
    nodes: list[NodeResult]


@dataclass(frozen=True, kw_only=True)
class FeaturesTask:
    """One picture; its grids have the `channels` strongest channels of each node."""

    unit: str
    picture: PictureInput
    nodes: tuple[str, ...]
    channels: int

    @property
    def title(self) -> str:
        return self.picture.uri

    def run(self, network: ExplainedNetwork) -> Rendered[FeaturesResult]:
        """Compute the grids. Raises PictureError for a picture that cannot be used."""
        image = self.picture.load(network.stored_view)
        with torch.no_grad():
            logits, activations = network.run(network.pixels(image[None]), self.nodes)
        (scores,) = (logits / network.temperature).softmax(dim=1).cpu().numpy()
        best = int(scores.argmax())

        results, pictures = [], {"picture.png": encode_png(image)}
        for number, (node, values) in enumerate(zip(self.nodes, activations, strict=True)):
            found = map_of(tuple(values.shape))
            assert found is not None, "the driver has checked the nodes"
            maps = as_maps(values, found)[0].float().cpu().numpy()
            strength = np.abs(maps).mean(axis=(1, 2))
            order = np.argsort(-strength, kind="stable")[: self.channels]
            results.append(
                NodeResult(
                    node=node,
                    shape=(maps.shape[0], maps.shape[1], maps.shape[2]),
                    channels=[
                        ChannelStrength(channel=int(channel), strength=float(strength[channel]))
                        for channel in order
                    ],
                )
            )
            tiles = [_tile(maps[channel]) for channel in order]
            pictures[f"node{number}.png"] = encode_png(grid(tiles))
        result = FeaturesResult(
            uri=self.picture.uri,
            predicted=network.classes[best],
            score=float(scores[best]),
            nodes=results,
        )
        return Rendered(result, pictures)


def _tile(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return one channel's map in colours; each has its own scale, positions stay squares."""
    side = values.shape[0]
    enlarged = Image.fromarray(colour_map(normalized(values)))
    method = Image.Resampling.NEAREST if side < _TILE_PX else Image.Resampling.BOX
    tile: NDArray[np.uint8] = np.asarray(enlarged.resize((_TILE_PX, _TILE_PX), method))
    return tile


@dataclass(frozen=True, kw_only=True)
class StrongestPictures:
    """Rows of a dataset's index that activate a channel most, and their mean activations."""

    node: str
    channel: int
    rows: list[int]
    values: list[float]


def strongest_pictures(
    network: ExplainedNetwork, dataset: Dataset, wanted: dict[str, list[int]], count: int
) -> list[StrongestPictures]:
    """Return the pictures with the highest mean activation of each channel of some nodes.

    They are read from the feature cache: a node without cached features of these very weights gives
    none. `wanted` are channels by node.
    """
    cached, row_of = list_all(dataset.store.root), _first_rows(dataset)
    found = []
    for node, channels in wanted.items():
        features = _cached_at(network, node, cached)
        if features is None:
            continue
        values, ids = _columns(features, channels)
        known = np.array([sample_id in row_of for sample_id in ids])
        values, ids = values[known], ids[known]
        for column, channel in enumerate(channels):
            order = np.argsort(-values[:, column], kind="stable")[:count]
            found.append(
                StrongestPictures(
                    node=node,
                    channel=channel,
                    rows=[row_of[ids[place]] for place in order],
                    values=[float(values[place, column]) for place in order],
                )
            )
    return found


def _cached_at(network: ExplainedNetwork, node: str, cached: list[Features]) -> Features | None:
    """Return features that this network has computed at a node: the same weights and input."""
    digest: str | None = None
    for features in cached:
        spec: FeatureSpec = features.spec
        if (spec.cut, spec.pool, spec.input_view) != (node, "average", network.input_view):
            continue
        digest = digest or weights_hash(_weights_up_to(network, node))
        if spec.weights == digest:
            return features
    return None


def _weights_up_to(network: ExplainedNetwork, node: str) -> dict[str, torch.Tensor]:
    """Return the tensors that the activations at a node depend on, by the backbone's names."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(network.module.graph, copies)
    graph.output(copies[network.nodes[node]])
    part = fx.GraphModule(network.module, graph)
    part.graph.eliminate_dead_code()
    # A GraphModule copies only the modules that its graph calls, so build it again.
    return fx.GraphModule(part, part.graph).state_dict()


def _columns(
    features: Features, channels: list[int]
) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Return some columns of the features float32 [n, channels], and the content hashes [n]."""
    index = features.index.sort_by([("shard", "ascending"), ("row", "ascending")])
    names = index.column("shard").to_numpy(zero_copy_only=False)
    rows = index.column("row").to_numpy()
    values = np.empty((len(index), len(channels)), dtype=np.float32)
    for name, shard in features.iter_shards():
        is_here = names == name
        values[is_here] = shard[rows[is_here]][:, channels]
    ids: NDArray[np.str_] = index.column("sample_id").to_numpy(zero_copy_only=False).astype(str)
    return values, ids


def _first_rows(dataset: Dataset) -> dict[str, int]:
    """Return the first index row of each content."""
    column: pa.ChunkedArray = dataset.index.column("sample_id")
    first: dict[str, int] = {}
    for row, sample_id in enumerate(column.to_pylist()):
        first.setdefault(sample_id, row)
    return first
