"""Graphs of networks for explanation: no layer in place, inner activations as further outputs.

Activations are outputs of a copied graph, not values that a hook stores: nothing is registered on a
module, so nothing can be left behind, and an activation keeps its gradient.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_OUT_OF_PLACE: Final = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_RECTIFIERS: Final = (F.relu, F.relu6, torch.relu)


def disable_in_place(module: fx.GraphModule) -> None:
    """Make all layers and functions of a graph return new tensors.

    In ResNets a ReLU in place, or `out += identity`, overwrites the activation before it: a
    captured activation would have the values of a later layer.
    """
    for child in module.modules():
        if getattr(child, "inplace", None) is True:
            child.inplace = False  # type: ignore[assignment]  # a flag of nn.ReLU and others

    for node in module.graph.nodes:
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.op == "call_function":
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
        elif node.op == "call_method" and str(node.target).endswith("_"):
            node.target = str(node.target).rstrip("_")  # `x.add_(y)` becomes `x.add(y)`
    module.recompile()


def with_outputs(module: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """Return a module that returns (output, [value of each node]); it shares the weights."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(module.graph, copies)
    graph.output((output, [copies[node] for node in nodes]))
    return fx.GraphModule(module, graph)


def node_shapes(module: fx.GraphModule, image: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shape of each graph node's value for an image [1, 3, h, w], by `node.name`.

    Nodes whose value is no tensor are left out.
    """
    recorder = _ShapeRecorder(module)
    with torch.no_grad():
        recorder.run(image)
    return recorder.shapes


def dependent_nodes(module: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose value depends on the input."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or found.intersection(node.all_input_nodes):
            found.add(node)
    return found


class _ShapeRecorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value


class _LeakyGradient(torch.autograd.Function):
    """ReLU whose gradient passes unchanged where it would be zero for a whole picture.

    The picture of noise at which an optimisation starts may not activate a channel anywhere: ReLU
    then has no gradient and the picture never changes. The values are those of ReLU.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.limit = limit
        return values.clamp(0, limit)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (values,), (gradient,) = ctx.saved_tensors, gradients
        is_open = (values > 0) & (values < ctx.limit)
        rectified = gradient * is_open
        is_dead = rectified.flatten(1).abs().amax(dim=1) == 0
        is_dead = is_dead.view(-1, *[1] * (values.ndim - 1))
        return torch.where(is_dead, gradient, rectified), None


class _LeakyReLU(nn.Module):
    """ReLU, or ReLU6 for `limit` 6, with the gradient of `_LeakyGradient`."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, values: Tensor) -> Tensor:
        return cast(Tensor, _LeakyGradient.apply(values, self.limit))


@contextmanager
def leaky_gradients(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let gradients pass dead ReLUs inside this context. Other activation functions have no need.

    ReLUs that a graph calls as functions are first made modules: see `rectifiers_as_modules`.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for module in modules:
            for parent in list(module.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.ReLU | nn.ReLU6):
                        limit = 6.0 if isinstance(child, nn.ReLU6) else float("inf")
                        setattr(parent, name, _LeakyReLU(limit))
                        replaced.append((parent, name, child))
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def rectifiers_as_modules(module: fx.GraphModule, names: Mapping[str, str]) -> dict[str, str]:
    """Replace calls of F.relu and F.relu6 by modules.

    `names` are what users call nodes, by `node.name`. Returns the names of the new nodes, which are
    those of the calls.
    """
    renamed = {}
    for number, node in enumerate(list(module.graph.nodes)):
        if node.op != "call_function" or node.target not in _RECTIFIERS:
            continue
        target = f"rectifier_{number}"
        module.add_submodule(target, nn.ReLU6() if node.target is F.relu6 else nn.ReLU())
        argument = node.args[0] if node.args else node.kwargs["input"]
        with module.graph.inserting_after(node):
            call = module.graph.call_module(target, (argument,))
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
        if node.name in names:
            renamed[call.name] = names[node.name]
    module.recompile()
    return renamed
