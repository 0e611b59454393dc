"""Cuts: trace a backbone into a graph of nodes and keep the part up to one of them.

The end of resnet18's graph, in forward order:

    layer3.1.relu_1     the second call of the module layer3.1.relu
    layer4.0.conv1
    …
    layer4.1.relu_1
    avgpool
    flatten             the input of the classifier
    fc                  the classifier

`--cut` accepts a node, a module, or `auto`:

    --cut layer4.0.conv1    that node
    --cut layer3            layer3.1.relu_1: the last node inside the module
    --cut auto              flatten: the input of the last layer with weights

Networks of timm are built without their classifier: there, `auto` is the output.
"""

from __future__ import annotations

import difflib
import threading
import warnings
from collections.abc import Sequence
from typing import Final, NamedTuple

from torch import Tensor, fx, nn

from afinar.config.train import Pool
from afinar.errors import RequestError
from afinar.models.networks.backbones import build_backbone, meta_device_context
from afinar.models.networks.heads import pool_activations
from afinar.models.networks.timm_networks import TimmTracer, is_of_timm, trace_timm
from afinar.models.networks.vision import NodePathTracer, StochasticDepth

AUTO = "auto"

TRACING: Final = threading.RLock()
"""Lock of tracing: while torch.fx traces, a module that another thread calls is traced, too."""


class TracedBackbone(NamedTuple):
    """Eval graph of a backbone, and its nodes by the names that `--cut` accepts."""

    graph: fx.Graph
    nodes: dict[str, fx.Node]


class CutBackbone(NamedTuple):
    """Part of a backbone up to a cut, and the name of the node at the cut."""

    module: fx.GraphModule
    cut: str


def trace_backbone(backbone: nn.Module) -> TracedBackbone:
    """Trace the eval graph of a backbone.

    Node names are torchvision's: the path of the module, with `_1` for its second call. The eval
    graph also serves training: layers that behave differently in training (dropout, BatchNorm,
    stochastic depth) are calls to modules, and modules read their own `training` flag. Raises
    RequestError if a network of timm cannot be traced.
    """
    is_timm = is_of_timm(backbone)
    tracer = TimmTracer() if is_timm else NodePathTracer(leaf_modules=[StochasticDepth])
    backbone.eval()
    with TRACING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fx warns about each assertion that it drops
        graph: fx.Graph = trace_timm(backbone, tracer) if is_timm else tracer.trace(backbone)
    names = tracer.node_to_qualname
    return TracedBackbone(graph, {names[node]: node for node in graph.nodes if node in names})


def cut_backbone(backbone: nn.Module, cut: str) -> CutBackbone:
    """Return the part of `backbone` up to the node or module `cut`, or up to the `auto` cut.

    Modules after the cut are dropped; the others keep their names and weights. Raises RequestError
    for an unknown cut; its message lists the names that are most similar.
    """
    graph, nodes = trace_backbone(backbone)
    name = _node_name(backbone, nodes, cut)

    # Make the node the graph's only output, then remove the nodes that do not lead to it.
    for node in [node for node in graph.nodes if node.op == "output"]:
        graph.erase_node(node)
    graph.output(nodes[name])
    module = fx.GraphModule(backbone, graph)
    module.graph.eliminate_dead_code()

    # A GraphModule copies only the modules that its graph calls, so build it again.
    return CutBackbone(fx.GraphModule(backbone, module.graph), name)


class PooledCuts(NamedTuple):
    """A module that returns the pooled activations of several cuts, and the names of the cuts."""

    module: fx.GraphModule
    cuts: list[str]


def cut_at_several(backbone: nn.Module, cuts: Sequence[tuple[str, Pool]]) -> PooledCuts:
    """Return the part of `backbone` up to all of these cuts, each pooled: one pass serves all.

    The module returns a list of float [n, width], in the order of `cuts`. Activations are pooled
    right behind their node: a layer after it may change them in place, as most ReLUs do, and their
    memory is free again. Raises RequestError for an unknown cut.
    """
    graph, nodes = trace_backbone(backbone)
    names = [_node_name(backbone, nodes, cut) for cut, _ in cuts]
    for node in [node for node in graph.nodes if node.op == "output"]:
        graph.erase_node(node)

    outputs = []
    for name, (_, pool) in zip(names, cuts, strict=True):
        with graph.inserting_after(nodes[name]):
            outputs.append(graph.call_function(_pooled_copy, (nodes[name], pool)))
    graph.output(outputs)
    module = fx.GraphModule(backbone, graph)
    module.graph.eliminate_dead_code()
    return PooledCuts(fx.GraphModule(backbone, module.graph), names)


def _pooled_copy(activations: Tensor, pool: Pool) -> Tensor:
    """Return pooled activations in memory of their own."""
    pooled = pool_activations(activations, pool)
    shares_memory = pooled.untyped_storage().data_ptr() == activations.untyped_storage().data_ptr()
    return pooled.clone() if shares_memory else pooled


def _node_name(backbone: nn.Module, nodes: dict[str, fx.Node], cut: str) -> str:
    """Return the name of the node that `cut` means. See the examples at the top of this module."""
    name = _features(backbone, nodes) if cut == AUTO else cut
    if name not in nodes:
        name = next((node for node in reversed(nodes) if node.startswith(f"{name}.")), name)
    if name not in nodes:
        similar = difflib.get_close_matches(name, nodes, n=4, cutoff=0.3)
        raise RequestError(
            f"--cut {name!r} is no node of this backbone; "
            f"near it: {', '.join(similar) or ', '.join(nodes)}"
        )

    return name


def _features(backbone: nn.Module, nodes: dict[str, fx.Node]) -> str:
    """Return the name of the node whose output is the input of the classifier."""
    if is_of_timm(backbone):
        source = _output(backbone, next(iter(nodes.values())).graph)
    else:
        source = _classifier_input(backbone, nodes)
    return next(name for name, node in nodes.items() if node is source)


def _output(backbone: nn.Module, graph: fx.Graph) -> fx.Node:
    """Return the node whose value a graph returns, before layers that do nothing."""
    node = graph.output_node().all_input_nodes[0]
    while node.op == "call_module" and isinstance(
        backbone.get_submodule(str(node.target)), nn.Identity
    ):
        node = node.all_input_nodes[0]
    return node


def _classifier_input(backbone: nn.Module, nodes: dict[str, fx.Node]) -> fx.Node:
    """Return the node before the last linear or convolutional layer.

    Dropout before that layer stays in the backbone, so a new classifier replaces only the layer:
    vgg16 ends in classifier.5 (dropout), classifier.6 (linear), and is cut at classifier.5. In eval
    mode, and therefore in features, dropout does nothing.
    """
    calls = [node for node in nodes.values() if node.op == "call_module"]
    layers = [
        node
        for node in calls
        if isinstance(backbone.get_submodule(str(node.target)), nn.Linear | nn.Conv2d)
    ]
    return layers[-1].all_input_nodes[0]


def resolve_cut(backbone: str, cut: str, input_size: int) -> str:
    """Return the name of the node that `cut` means in a backbone.

    Allocates no weights. Raises RequestError for an unknown cut.
    """
    with meta_device_context(backbone):
        network = build_backbone(backbone, input_size)
    return cut_backbone(network, cut).cut
