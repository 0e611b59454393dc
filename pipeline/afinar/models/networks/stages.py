"""A backbone's stages: what `last:N` trains, what is frozen, and at which rate each part learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from torch import fx

from afinar.errors import RequestError
from afinar.models.networks.network import Network

Path = tuple[str, ...]
MIN_STAGES: Final = 4  # parts: fewer would make `last:1` a third of the network or more


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of layers that is frozen or trained as one.

    `modules` are the paths of all leaf modules it calls, those without parameters too; `parameters` the
    names of its parameters. Both are relative to the backbone. Every parameter is in exactly one stage.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class _Unit:
    """What one node of the graph brings along: the module it calls, or the parameter that it reads."""

    path: Path
    parameters: tuple[str, ...]
    matrix: bool  # whether any parameter has two axes or more


def stages(backbone: fx.GraphModule) -> list[Stage]:
    """The stages of a cut backbone, in forward order.

    Layers belong together that share the first d components of their path, where d is the smallest depth
    that gives at least four stages, else the deepest. No stage of its own are: a part whose parameters
    are all vectors (normalisation), and parameters that hang on a container directly (class tokens,
    position embeddings). They join the part before them, the first ones the part behind.
    """
    units = dict(_units(backbone))
    modules: dict[str, str] = {}
    parameters: dict[str, str] = {}
    for node, stage in node_stages(backbone).items():
        if node.op == "call_module":
            modules.setdefault(str(node.target), stage)
        for name in units[node].parameters if node in units else ():
            parameters.setdefault(name, stage)
    return [
        Stage(
            name=stage,
            modules=tuple(module for module, owner in modules.items() if owner == stage),
            parameters=tuple(name for name, owner in parameters.items() if owner == stage),
        )
        for stage in dict.fromkeys(parameters.values())
    ]


def node_stages(backbone: fx.GraphModule) -> dict[fx.Node, str]:
    """The stage of each node. One without parameters is in the last stage of its inputs; before all, in the first."""
    units = dict(_units(backbone))
    owners = _owners(list(units.values()))
    order = {stage: position for position, stage in enumerate(dict.fromkeys(owners.values()))}
    found: dict[fx.Node, str] = {}
    for node in backbone.graph.nodes:
        before = [found[one] for one in node.all_input_nodes if one in found]
        if node in units:
            found[node] = owners[units[node].path]
        elif before:
            found[node] = max(before, key=order.__getitem__)
        elif node.op != "placeholder" and order:
            found[node] = next(iter(order))
    return found


def _units(backbone: fx.GraphModule) -> Iterator[tuple[fx.Node, _Unit]]:
    everything = dict(backbone.named_parameters())
    for node in backbone.graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            owned = tuple(
                f"{target}.{name}" for name, _ in backbone.get_submodule(target).named_parameters()
            )
        else:
            owned = (target,) if node.op == "get_attr" and target in everything else ()
        if owned:
            module = target if node.op == "call_module" else target.rpartition(".")[0]
            path = tuple(module.split(".")) if module else ()
            yield node, _Unit(path, owned, any(everything[name].ndim > 1 for name in owned))


def _owners(units: list[_Unit]) -> dict[Path, str]:
    """Path of each unit → name of its stage, both in forward order."""
    owners: dict[Path, str] = {unit.path: "" for unit in units}
    for depth in range(1, max(map(len, owners), default=0) + 1):
        stage_of = _joined(units, depth)
        owners = {path: stage_of[path[:depth]] for path in owners}
        if len(set(owners.values())) >= MIN_STAGES:
            break
    return owners


def _joined(units: list[_Unit], depth: int) -> dict[Path, str]:
    """Each part at this depth → the name of the part it belongs to."""
    parts: dict[Path, bool] = {}  # whether it holds a matrix
    for unit in units:
        part = unit.path[:depth]
        parts[part] = parts.get(part, False) or unit.matrix
    containers = {part[:length] for part in parts for length in range(len(part))}
    alone = [part for part, matrix in parts.items() if matrix and part not in containers] or list(
        parts
    )
    current = alone[0]
    concat_columns = {}
    for part in parts:
        current = part if part in alone else current
        concat_columns[part] = ".".join(current)
    return concat_columns


def freeze(network: Network, trainable: int | None) -> None:
    """Let the classifier and the backbone's last `trainable` stages train, None: everything; fix the rest.

    Raises RequestError naming the stages when there are fewer.
    """
    found = stages(network.backbone)
    if trainable is not None and trainable > len(found):
        raise RequestError(
            f"--regime last:{trainable}: the cut backbone has {len(found)} stages "
            f"({', '.join(stage.name for stage in found)}); give at most last:{len(found)}, or full"
        )
    network.requires_grad_(True)
    fixed = [] if trainable is None else found[: len(found) - trainable]
    for stage in fixed:
        for name in stage.parameters:
            network.backbone.get_parameter(name).requires_grad_(False)


def set_training(network: Network) -> None:
    """Train mode for what trains; stages whose parameters are all fixed stay in eval mode.

    There, running statistics of BatchNorm must not move and dropout must not act: a frozen stage
    computes in training what it computes when the model is used. Call it where `train()` would be.
    """
    network.train()
    for stage in stages(network.backbone):
        if not any(network.backbone.get_parameter(name).requires_grad for name in stage.parameters):
            for path in stage.modules:
                network.backbone.get_submodule(path).eval()


def parameter_groups(
    network: Network, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """What trains, as groups for an optimiser: `params`, `weight_decay`, `factor` (of the rate), `name`.

    The classifier's rate has factor 1, the backbone's last stage `layer_decay`, the one before it its
    square, and so on: layers near the pictures are the most general and move the least (Howard and Ruder
    2018, arXiv 1801.06146; Bao et al. 2021, arXiv 2106.08254). Biases and normalisation, which are
    vectors, take no weight decay. With `layer_decay` 1 there are at most two groups. The order is that of
    the network, so an optimiser's state fits the groups of the same request again.
    """
    backbone = network.backbone
    parts = [
        (stage.name, [backbone.get_parameter(name) for name in stage.parameters])
        for stage in stages(backbone)
    ]
    parts.append(("classifier", list(network.classifier.parameters())))
    if layer_decay == 1:
        parts = [("network", [parameter for _, parameters in parts for parameter in parameters])]
    groups: list[dict[str, Any]] = []
    for position, (name, parameters) in enumerate(parts):
        for decays in (True, False):
            chosen = [one for one in parameters if one.requires_grad and (one.ndim > 1) == decays]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "weight_decay": weight_decay if decays else 0.0,
                        "factor": float(layer_decay ** (len(parts) - 1 - position)),
                        "name": name if decays else f"{name} (no decay)",
                    }
                )
    return groups
