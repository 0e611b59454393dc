"""What a backbone consists of: where it can be cut, what comes out there, and what a regime would train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from afinar.config.train import TrainConfig
from afinar.models.networks.backbones import check_cut, meta_device_context, trace
from afinar.models.networks.catalogue import require_backbone
from afinar.models.networks.network import build_network
from afinar.models.networks.stages import freeze, node_stages
from afinar.models.registry.versions import Architecture


def describe_network(config: TrainConfig, classes: int) -> dict[str, Any]:
    """The network that `config` asks for, with a classifier of so many classes; nothing is trained or loaded.

    `nodes` are the places where the backbone can be cut, in forward order, those behind the cut too: `shape`
    without the batch, `stage` (None behind the cut), `parameters` first used there. The totals are the cut
    network's, head included. Raises RequestError for a network that cannot be built.
    """
    size = config.input_size or require_backbone(config.backbone).input_size
    architecture = Architecture(
        backbone=config.backbone,
        cut=check_cut(config.backbone, config.cut, size),
        head=config.head,
        input_size=size,
        classes=classes,
        pool=config.pool,
        hidden=config.hidden,
        dropout=config.dropout,
        output=config.output,
    )
    with meta_device_context(config.backbone), torch.no_grad():
        network, whole = build_network(architecture)
        freeze(network, config.trainable_stages)
        stages = {node.name: stage for node, stage in node_stages(network.backbone).items()}
        nodes = list(_nodes(whole, stages, size))
    head = [parameter.numel() for parameter in network.classifier.parameters()]
    parameters = list(network.parameters())
    return {
        "backbone": config.backbone,
        "cut": architecture.cut,
        "input_size": size,
        "classes": classes,
        "regime": config.regime,
        "nodes": nodes,
        "params_head": sum(head),
        "params_total": sum(parameter.numel() for parameter in parameters),
        "params_trainable": sum(
            parameter.numel() for parameter in parameters if parameter.requires_grad
        ),
    }


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps the shape of every tensor that is computed from the pictures, by node name."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, graph=graph)
        self.shapes: dict[str, list[int]] = {}
        self._pictures: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """One node's value, as usual."""
        value = super().run_node(n)
        follows = n.op == "placeholder" or any(one in self._pictures for one in n.all_input_nodes)
        parts = (
            value if isinstance(value, tuple | list) else (value,)
        )  # a channel split has several
        if follows and any(isinstance(part, Tensor) for part in parts):
            self._pictures.add(n)
        if n in self._pictures and isinstance(value, Tensor):
            self.shapes[n.name] = list(value.shape)
        return value


def _nodes(whole: nn.Module, stages: dict[str, str], size: int) -> Iterator[dict[str, Any]]:
    graph, names = trace(whole)
    shapes = _Shapes(whole, graph)
    with contextlib.suppress(
        RuntimeError, AssertionError, ValueError
    ):  # pictures too small for what lies behind the cut
        shapes.run(torch.zeros(1, 3, size, size))
    counts = {name: parameter.numel() for name, parameter in whole.named_parameters()}
    waiting: dict[
        fx.Node, int
    ] = {}  # parameters that a node not listed hands on to the one that uses it
    for name, node in names.items():
        own = sum(counts.pop(owned, 0) for owned in _owned(whole, node))
        own += sum(waiting.pop(one, 0) for one in node.all_input_nodes)
        shape = shapes.shapes.get(node.name, [])
        if (
            node.op == "placeholder" or len(shape) < 2 or shape[0] != 1
        ):  # no row for each picture: no place to cut
            waiting[node] = own
            continue
        yield {"node": name, "shape": shape[1:], "stage": stages.get(node.name), "parameters": own}


def _owned(network: nn.Module, node: fx.Node) -> list[str]:
    target = str(node.target)
    if node.op == "call_module":
        return [f"{target}.{name}" for name, _ in network.get_submodule(target).named_parameters()]
    return [target] if node.op == "get_attr" else []
