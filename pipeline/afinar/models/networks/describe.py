"""Description of a network for `--describe`: nodes, shapes, stages and parameter counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from afinar.config.train import TrainConfig
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.backbones import meta_device_context
from afinar.models.networks.catalogue import require_backbone
from afinar.models.networks.cuts import resolve_cut, trace_backbone
from afinar.models.networks.network import build_network
from afinar.models.networks.stages import freeze, stage_by_node


def describe_network(config: TrainConfig, classes: int) -> dict[str, Any]:
    """Return a JSON description of the network that `config` specifies, without loading weights.

    `nodes` lists in forward order the nodes at which the backbone can be cut, including those after
    the cut: `shape` without the batch, `stage` (None after the cut), and `parameters`, the number
    that the node is the first to use. The totals are those of the cut network and its head. Raises
    RequestError if the network cannot be built.
    """
    info = require_backbone(config.backbone)
    size = config.input_size or info.input_size
    architecture = Architecture(
        backbone=config.backbone,
        cut=resolve_cut(config.backbone, config.cut, size),
        head=config.head,
        input_size=size,
        classes=classes,
        pool=config.pool,
        hidden=config.hidden,
        dropout=config.dropout,
        output=config.output,
        revision=info.revision,
    )
    with meta_device_context(config.backbone), torch.no_grad():
        network, whole = build_network(architecture)
        freeze(network, config.trainable_stages)
        stages = {node.name: stage for node, stage in stage_by_node(network.backbone).items()}
        nodes = list(_describe_nodes(whole, stages, size))

    parameters = list(network.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return {
        "backbone": config.backbone,
        "cut": architecture.cut,
        "input_size": size,
        "classes": classes,
        "regime": config.regime,
        "nodes": nodes,
        "params_head": sum(parameter.numel() for parameter in network.classifier.parameters()),
        "params_total": sum(parameter.numel() for parameter in parameters),
        "params_trainable": sum(parameter.numel() for parameter in trainable),
    }


class _ShapeRecorder(fx.Interpreter):
    """Interpreter of a graph that records the shape of every tensor computed from the images."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, graph=graph)
        self.shapes: dict[str, list[int]] = {}  # by node name
        self._image_nodes: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Compute one node's value and record its shape."""
        value = super().run_node(n)
        from_images = n.op == "placeholder" or any(
            source in self._image_nodes for source in n.all_input_nodes
        )
        # A node that splits channels returns several tensors: it is no cut, but leads to some.
        parts = value if isinstance(value, tuple | list) else (value,)
        if from_images and any(isinstance(part, Tensor) for part in parts):
            self._image_nodes.add(n)
            if isinstance(value, Tensor):
                self.shapes[n.name] = list(value.shape)
        return value


def _describe_nodes(
    whole: nn.Module, stages: dict[str, str], size: int
) -> Iterator[dict[str, Any]]:
    """Yield the nodes of an uncut backbone that have one row per picture.

    Example: vit_b_16 reads its class token in a node of its own, which is no cut. The 768
    parameters of the token are counted at the next node that can be one, the concatenation of the
    token with the patches.
    """
    graph, nodes = trace_backbone(whole)
    recorder = _ShapeRecorder(whole, graph)
    # Nodes after the cut may need larger pictures than this network takes; they have no shape then.
    with contextlib.suppress(RuntimeError, AssertionError, ValueError):
        recorder.run(torch.zeros(1, 3, size, size))

    uncounted = {name: parameter.numel() for name, parameter in whole.named_parameters()}
    carried: dict[fx.Node, int] = {}  # parameters of nodes that are not listed
    for name, node in nodes.items():
        count = sum(uncounted.pop(parameter, 0) for parameter in _parameter_names(whole, node))
        count += sum(carried.pop(source, 0) for source in node.all_input_nodes)

        shape = recorder.shapes.get(node.name, [])
        if node.op == "placeholder" or len(shape) < 2 or shape[0] != 1:
            carried[node] = count
        else:
            stage = stages.get(node.name)
            yield {"node": name, "shape": shape[1:], "stage": stage, "parameters": count}


def _parameter_names(network: nn.Module, node: fx.Node) -> list[str]:
    """Return the names of the parameters that a node uses."""
    target = str(node.target)
    if node.op == "call_module":
        return [f"{target}.{name}" for name, _ in network.get_submodule(target).named_parameters()]
    return [target] if node.op == "get_attr" else []
