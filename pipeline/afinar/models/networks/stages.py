"""Stages of a backbone: which layers are trained or frozen together, and at which learning rate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from afinar.errors import RequestError
from afinar.models.networks.network import Network

ModulePath = tuple[str, ...]
MIN_STAGES: Final = 4  # with fewer, `last:1` would train a third of the network or more


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive layers of a backbone that are frozen or trained together.

    `modules` are the paths of all leaf modules that the stage calls, also those without parameters.
    `parameters` are the names of its parameters. Both are relative to the backbone. Every parameter
    is in exactly one stage.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class _Layer:
    """Parameters that one graph node uses: those of the module it calls, or one that it reads.

    `path` is the module that holds them. `has_matrix` is true if any has two axes or more.
    """

    path: ModulePath
    parameters: tuple[str, ...]
    has_matrix: bool


def find_stages(backbone: fx.GraphModule) -> list[Stage]:
    """Group the layers of a cut backbone into stages, in forward order.

    Layers form a group if the first d components of their paths are equal. d is the smallest depth
    that gives at least four stages, or the greatest depth if none does.

    A group does not become a stage of its own but joins the group before it (or after it, at the
    beginning of the network) in two cases:

    - all its parameters are vectors: normalisation;
    - its module contains other groups: a class token or position embedding.

    resnet18 cut at `flatten`; d = 1 gives five stages:

        layer                               group     stage
        conv1                               conv1     conv1
        bn1                                 bn1       conv1    (vectors only)
        layer1.0.conv1 … layer1.1.bn2       layer1    layer1
        layer2.0.conv1 … layer2.1.bn2       layer2    layer2
        layer3.0.conv1 … layer3.1.bn2       layer3    layer3
        layer4.0.conv1 … layer4.1.bn2       layer4    layer4

    vit_b_16: d = 1 gives the stages conv_proj and encoder, d = 2 gives conv_proj and
    encoder.layers, so d = 3 (13 stages):

        layer                       group                      stage
        conv_proj                   conv_proj                  conv_proj
        class_token                 the network                conv_proj (contains other groups)
        encoder.pos_embedding       encoder                    conv_proj (contains other groups)
        encoder_layer_0.ln_1, …     encoder…encoder_layer_0    encoder.layers.encoder_layer_0
        …
        encoder_layer_11.ln_1, …    encoder…encoder_layer_11   encoder.layers.encoder_layer_11
        encoder.ln                  encoder.ln                 …encoder_layer_11 (vectors only)
    """
    layers = dict(_layers(backbone))
    modules: dict[str, str] = {}
    parameters: dict[str, str] = {}
    for node, stage in stage_by_node(backbone).items():
        if node.op == "call_module":
            modules.setdefault(str(node.target), stage)
        for name in layers[node].parameters if node in layers else ():
            parameters.setdefault(name, stage)

    return [
        Stage(
            name=stage,
            modules=tuple(module for module, owner in modules.items() if owner == stage),
            parameters=tuple(name for name, owner in parameters.items() if owner == stage),
        )
        for stage in dict.fromkeys(parameters.values())
    ]


def stage_by_node(backbone: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the name of each graph node's stage.

    A node without parameters belongs to the last stage among its inputs; before the first layer
    with parameters, to the first stage. In resnet18, maxpool belongs to conv1; layer1.0.add, whose
    inputs are maxpool (the shortcut) and layer1.0.bn2, belongs to layer1.
    """
    layers = dict(_layers(backbone))
    stage_of_path = _stage_by_path(list(layers.values()))
    order = {name: position for position, name in enumerate(dict.fromkeys(stage_of_path.values()))}

    stages: dict[fx.Node, str] = {}
    for node in backbone.graph.nodes:
        input_stages = [stages[source] for source in node.all_input_nodes if source in stages]
        if node in layers:
            stages[node] = stage_of_path[layers[node].path]
        elif input_stages:
            stages[node] = max(input_stages, key=order.__getitem__)
        elif node.op != "placeholder" and order:
            stages[node] = next(iter(order))
    return stages


def _layers(backbone: fx.GraphModule) -> Iterator[tuple[fx.Node, _Layer]]:
    """Yield each graph node that uses parameters, with these parameters, in forward order."""
    parameters = dict(backbone.named_parameters())
    for node in backbone.graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            called = backbone.get_submodule(target)
            module, names = target, [f"{target}.{name}" for name, _ in called.named_parameters()]
        elif node.op == "get_attr" and target in parameters:
            module, names = target.rpartition(".")[0], [target]
        else:
            continue

        if names:
            path = tuple(module.split(".")) if module else ()
            has_matrix = any(parameters[name].ndim > 1 for name in names)
            yield node, _Layer(path, tuple(names), has_matrix)


def _stage_by_path(layers: list[_Layer]) -> dict[ModulePath, str]:
    """Map the path of each layer to the name of its stage, both in forward order."""
    stages: dict[ModulePath, str] = {layer.path: "" for layer in layers}
    for depth in range(1, max(map(len, stages), default=0) + 1):
        stage_of_group = _stage_by_group(layers, depth)
        stages = {path: stage_of_group[path[:depth]] for path in stages}
        if len(set(stages.values())) >= MIN_STAGES:
            break
    return stages


def _stage_by_group(layers: list[_Layer], depth: int) -> dict[ModulePath, str]:
    """Map each group at this depth to the name of the stage it becomes or joins."""
    has_matrix: dict[ModulePath, bool] = {}
    for layer in layers:
        group = layer.path[:depth]
        has_matrix[group] = has_matrix.get(group, False) or layer.has_matrix

    containers = {group[:length] for group in has_matrix for length in range(len(group))}
    stages = [group for group, matrix in has_matrix.items() if matrix and group not in containers]
    stages = stages or list(has_matrix)  # a backbone of vectors only

    current = stages[0]  # groups before the first stage join it
    stage_of_group: dict[ModulePath, str] = {}
    for group in has_matrix:
        current = group if group in stages else current
        stage_of_group[group] = ".".join(current)
    return stage_of_group


def freeze(network: Network, trainable: int | None) -> None:
    """Freeze all parameters but the classifier's and those of the backbone's last stages.

    `trainable` is the number of stages that train; None trains the whole network. Raises
    RequestError if the backbone has fewer stages.
    """
    stages = find_stages(network.backbone)
    if trainable is not None and trainable > len(stages):
        raise RequestError(
            f"--regime last:{trainable}: the cut backbone has {len(stages)} stages "
            f"({', '.join(stage.name for stage in stages)}); "
            f"give at most last:{len(stages)}, or full"
        )

    network.requires_grad_(True)
    frozen = [] if trainable is None else stages[: len(stages) - trainable]
    for stage in frozen:
        for name in stage.parameters:
            network.backbone.get_parameter(name).requires_grad_(False)


def set_training(network: Network) -> None:
    """Put a network into train mode, except for its frozen stages. Call it instead of `train()`.

    A frozen stage stays in eval mode, so that it computes in training what it computes in use:
    BatchNorm does not update its running statistics and dropout does nothing.
    """
    network.train()
    for stage in find_stages(network.backbone):
        parameters = map(network.backbone.get_parameter, stage.parameters)
        if not any(parameter.requires_grad for parameter in parameters):
            for path in stage.modules:
                network.backbone.get_submodule(path).eval()


@contextlib.contextmanager
def batch_statistics(network: Network) -> Iterator[None]:
    """Let BatchNorm of the stages that train normalise by its batch, as it does in training.

    All else is in eval mode: dropout does nothing, and no running statistics change.
    """
    norms = trained_norms(network)
    for norm in norms:
        norm.train()
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        network.eval()


def trained_norms(network: Network) -> list[_BatchNorm]:
    """Return the BatchNorm layers of the stages that train. The network is in eval mode then."""
    set_training(network)
    layers = network.modules()
    norms = [layer for layer in layers if isinstance(layer, _BatchNorm) and layer.training]
    network.eval()
    return norms


def parameter_groups(
    network: Network, weight_decay: float, layer_decay: float, head_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for an optimizer.

    Each group has `params`, `weight_decay`, `lr_scale` (its share of the learning rate) and `name`.
    Layers near the input are the most general and should change least, so the scale falls with the
    distance from the classifier (Howard and Ruder 2018, arXiv 1801.06146; Bao et al. 2021, arXiv
    2106.08254). With `layer_decay` 0.5 and `head_rate` 10:

        classifier 10, last stage 0.5, the stage before it 0.25, …

    With `layer_decay` 1 the backbone is one part, and with `head_rate` 1 too the whole network is.
    Biases, the parameters of normalisation, class tokens and position embeddings form groups
    without weight decay. The order of groups is the network's, so an optimizer's saved state fits
    the groups of the same request again.
    """
    backbone, head = network.backbone, list(network.classifier.named_parameters())
    parts = [
        (stage.name, [(name, backbone.get_parameter(name)) for name in stage.parameters])
        for stage in find_stages(backbone)
    ]
    if layer_decay == 1:
        parts = [("backbone", [parameter for _, parameters in parts for parameter in parameters])]
    if layer_decay == head_rate == 1:
        parts = [("network", [*parts[0][1], *head])]
    else:
        parts.append(("classifier", head))

    groups: list[dict[str, Any]] = []
    for position, (part, parameters) in enumerate(parts):
        distance = len(parts) - 1 - position  # from the classifier
        for decays in (True, False):
            chosen = [
                parameter
                for name, parameter in parameters
                if parameter.requires_grad and _decays(name, parameter) == decays
            ]
            if chosen:
                group = {
                    "params": chosen,
                    "weight_decay": weight_decay if decays else 0.0,
                    "lr_scale": float(layer_decay**distance if distance else head_rate),
                    "name": part if decays else f"{part} (no decay)",
                }
                groups.append(group)
    return groups


def _decays(name: str, parameter: Tensor) -> bool:
    """Return True for matrices of layers, which torch calls weights.

    A `class_token` or `pos_embedding` of a vision transformer, a `relative_position_bias_table` of
    Swin and a `layer_scale` of ConvNeXt have several axes too, and other names.
    """
    return parameter.ndim > 1 and name.endswith("weight")
