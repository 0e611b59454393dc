"""Building a backbone and cutting it at a node of its eval graph."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import torch
from torch import fx, nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import NodePathTracer
from torchvision.ops import StochasticDepth

from afinar.errors import RequestError
from afinar.models.networks.catalogue import CATALOGUE
from afinar.models.networks.custom_networks import efficientnet_lite0, small_cnn

AUTO = "auto"


def build_backbone(name: str, input_size: int) -> nn.Module:
    """A whole network with random weights and its 1000-class classifier. `name` is the catalogue's."""
    if name == "small_cnn":
        return small_cnn(input_size)
    if name == "efficientnet_lite0":
        return efficientnet_lite0()
    options: dict[str, Any] = {}
    if name in {"inception_v3", "googlenet"}:
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith(
        "vit_"
    ):  # its position embeddings are as many as its weights were trained with
        options = {"image_size": CATALOGUE[name].input_size}
    network: nn.Module = get_model(name, weights=None, **options)
    return network


def trace(network: nn.Module) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """The network's eval graph, and its nodes by the names `--cut` takes.

    Node names are torchvision's (module path, `_1` for a second call). The eval graph serves training
    too: layers that behave differently in training (dropout, BatchNorm, stochastic depth) are calls to
    modules, which look at their own `training` flag.
    """
    tracer = NodePathTracer(leaf_modules=[StochasticDepth])
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fx remarks on assertions that it drops
        graph: fx.Graph = tracer.trace(network)
    names = {
        tracer.node_to_qualname[node]: node
        for node in graph.nodes
        if node in tracer.node_to_qualname
    }
    return graph, names


def cut_backbone(network: nn.Module, cut: str) -> tuple[fx.GraphModule, str]:
    """The part of `network` up to the node or module `cut`, and the node's name (`auto` resolved).

    Modules behind the cut are dropped; those before it keep their names and weights. Raises RequestError
    naming the nearest nodes for an unknown cut.
    """
    graph, names = trace(network)
    name = default_cut(network, names) if cut == AUTO else cut
    if name not in names:  # a module's path names its last node, as in torchvision
        name = next((node for node in reversed(names) if node.startswith(f"{name}.")), name)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=4, cutoff=0.3)
        raise RequestError(
            f"--cut {name!r} is no node of this backbone; near it: {', '.join(near) or ', '.join(names)}"
        )
    for node in [node for node in graph.nodes if node.op == "output"]:
        graph.erase_node(node)
    graph.output(names[name])
    whole = fx.GraphModule(network, graph)
    whole.graph.eliminate_dead_code()
    return fx.GraphModule(
        network, whole.graph
    ), name  # built anew, it holds only what the graph still calls


def default_cut(network: nn.Module, names: dict[str, fx.Node]) -> str:
    """The input of the classifier: of the last layer with weights.

    Dropout before it stays part of the backbone, so that another classifier replaces only that layer. In
    eval mode, and so in features, it does nothing.
    """
    last = [
        node for node in names.values() if node.op == "call_module" and _weighted(network, node)
    ][-1]
    node = last.all_input_nodes[0]
    return next(name for name, candidate in names.items() if candidate is node)


def _weighted(network: nn.Module, node: fx.Node) -> bool:
    return isinstance(network.get_submodule(str(node.target)), nn.Linear | nn.Conv2d)


def meta_device_context(name: str) -> torch.device:
    """Context in which a backbone is built, and run, without memory for its weights, where it can be.

    RegNets compute with the values of tensors while they are built, which the meta device has none of.
    """
    return torch.device("cpu" if name.startswith("regnet_") else "meta")


def check_cut(name: str, cut: str, input_size: int) -> str:
    """Resolve a cut without allocating the network. Raises RequestError for an unknown one."""
    with meta_device_context(name):
        network = build_backbone(name, input_size)
    return cut_backbone(network, cut)[1]
