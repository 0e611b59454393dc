"""Networks for explanation: float32, not folded, of a bundle or of a plain backbone."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from afinar.config.base import fingerprint
from afinar.config.explain import PLAIN
from afinar.errors import RequestError
from afinar.explain.graphs import (
    dependent_nodes,
    disable_in_place,
    node_shapes,
    rectifiers_as_modules,
    with_outputs,
)
from afinar.models.networks.backbones import build_backbone, meta_device_context
from afinar.models.networks.catalogue import require_backbone
from afinar.models.networks.cuts import TRACING, trace_backbone
from afinar.models.networks.heads import pool_activations
from afinar.models.networks.network import Network, apply_input_view
from afinar.models.networks.timm_networks import build_timm, is_timm
from afinar.models.networks.vision import get_model_weights
from afinar.models.networks.weights import (
    find_weights,
    interpolation,
    load_weights,
    normalisation,
    with_sha256,
)
from afinar.models.registry.bundle import load_network
from afinar.models.registry.versions import ModelVersion, StoredModel, find_model
from afinar.pictures.preprocessing import InputView, StoredView

Pixels = NDArray[np.uint8]
_IMAGENET_CLASSES: Final = 1000


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model to explain: MODELS@VERSION-HASH, or `imagenet:BACKBONE` with its weights.

    `weights` and `input_size` are those of a plain backbone. A spec is resolved: workers that get
    it load the same network.
    """

    model: str
    weights: str = "imagenet"
    input_size: int = 0

    @property
    def is_plain(self) -> bool:
        return self.model.startswith(PLAIN)

    @property
    def backbone(self) -> str:
        """Name of a plain backbone."""
        return self.model.removeprefix(PLAIN)

    @property
    def identity(self) -> str:
        """Digest of what determines the network; names of units contain it."""
        if not self.is_plain:
            return fingerprint(self.model.rsplit("@", 1)[1])
        source = find_weights(self.weights, self.backbone)
        name = source.name if source else "random"
        return fingerprint([self.model, self.weights, name, self.input_size])


class ModelFacts(NamedTuple):
    """Classes and stored view of a model, known without loading its weights."""

    spec: ModelSpec
    classes: list[str]
    stored_view: StoredView
    version: ModelVersion | None


def describe_model(spec: ModelSpec) -> ModelFacts:
    """Resolve a reference to a model. Raises RequestError if there is none."""
    if spec.is_plain:
        info = require_backbone(spec.backbone)
        size = spec.input_size or info.input_size
        find_weights(spec.weights, spec.backbone)
        resolved = ModelSpec(model=spec.model, weights=with_sha256(spec.weights), input_size=size)
        return ModelFacts(resolved, imagenet_classes(), StoredView(size=size, fit="crop"), None)
    store, version = find_model(spec.model)
    resolved = ModelSpec(model=f"{store.root}@{version.id}")
    return ModelFacts(resolved, version.classes, version.stored_view, version)


def imagenet_classes() -> list[str]:
    """Return the names of ImageNet's 1,000 classes, as torchvision has them."""
    weights = get_model_weights("resnet18")["DEFAULT"]
    classes: list[str] = list(weights.meta["categories"])
    seen: dict[str, int] = {}
    for number, name in enumerate(classes):
        if name in seen:  # "crane" and "maillot" are two classes each
            classes[number] = f"{name} ({number})"
        seen[name] = number
    return classes


def find_class(name: str, classes: list[str]) -> int:
    """Return the number of a class, given by name or by number.

    Raises RequestError for an unknown class; its message lists similar names.
    """
    folded = [other.casefold() for other in classes]
    if name.casefold() in folded:
        return folded.index(name.casefold())
    if name.isdigit() and int(name) < len(classes):
        return int(name)
    similar = [other for other in classes if name.casefold() in other.casefold()][:6]
    similar = similar or difflib.get_close_matches(name, classes, n=6, cutoff=0.5)
    hint = f"did you mean {', '.join(similar)}?" if similar else f"it has {len(classes)} classes"
    raise RequestError(f"the model has no class {name!r}; {hint}")


class Explained(NamedTuple):
    """Logits [n, classes] and the activations of the nodes that were asked for."""

    logits: Tensor
    activations: list[Tensor]


class ExplainedNetwork:
    """A network whose inner activations can be read and differentiated. It has no hooks.

    Weights are frozen; gradients are those of pixels. Pixels are stored views, float
    [n, size, size, 3] of 0 to 255: resize and normalisation are inside the differentiated function.
    """

    def __init__(
        self,
        facts: ModelFacts,
        module: fx.GraphModule,
        names: dict[str, str],
        input_view: InputView,
        head: Network | None,
    ) -> None:
        """Take a graph, what users call its nodes by `node.name`, and the network of a head."""
        self.spec, self.classes, self.stored_view, self.version = facts
        self.input_view = input_view
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._pool = head.pool if head else None
        self._classifier = head.classifier if head else nn.Identity()
        names = names | rectifiers_as_modules(module, names)
        disable_in_place(module)
        module.to(self.device).to(memory_format=torch.channels_last)
        self.module = module.eval().requires_grad_(False)
        self._classifier = self._classifier.eval().requires_grad_(False).to(self.device)
        for child in self._classifier.modules():
            if getattr(child, "inplace", None) is True:
                child.inplace = False  # type: ignore[assignment]
        self.nodes = {
            names[node.name]: node for node in self.module.graph.nodes if node.name in names
        }
        self._capturing: dict[tuple[str, ...], fx.GraphModule] = {}

    @property
    def modules(self) -> list[nn.Module]:
        """All parts of the network."""
        return [self.module, self._classifier, *self._capturing.values()]

    @property
    def temperature(self) -> float:
        """Divisor of the logits before they become probabilities."""
        return self.version.temperature if self.version else 1.0

    @property
    def batch_size(self) -> int:
        """Pictures in one pass with gradients: bounds the memory."""
        return 8 if self.device.type == "cpu" else 64

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each node's activations for one picture, by the node's name.

        Nodes that do not depend on the picture, such as position biases, are left out.
        """
        size = self.input_view.input_size
        with TRACING:
            shapes = node_shapes(self.module, torch.zeros(1, 3, size, size, device=self.device))
        depends = dependent_nodes(self.module)
        return {
            name: shapes[node.name]
            for name, node in self.nodes.items()
            if node.name in shapes and node in depends and node.op != "placeholder"
        }

    def find_node(self, name: str) -> str:
        """Return the node that a name means: a node, or a module, whose last node is taken.

        Raises RequestError for an unknown name.
        """
        if name not in self.nodes:
            inside = [node for node in self.nodes if node.startswith(f"{name}.")]
            name = inside[-1] if inside else name
        if name not in self.shapes:
            similar = difflib.get_close_matches(name, self.nodes, n=4, cutoff=0.3)
            raise RequestError(
                f"--node {name!r} is no node of this network; near it: "
                f"{', '.join(similar) or ', '.join(list(self.nodes)[-8:])}"
            )
        return name

    def prepare(self, nodes: tuple[str, ...]) -> fx.GraphModule:
        """Return the module that also returns the activations of nodes; `run` makes it when needed.

        It has modules of its own that share the weights.
        """
        if nodes not in self._capturing:
            captured = [self.nodes[name] for name in nodes]
            self._capturing[nodes] = with_outputs(self.module, captured)
        return self._capturing[nodes]

    def logits(self, pixels: Tensor) -> Tensor:
        """Return logits [n, classes] of stored views, float [n, size, size, 3] of 0 to 255."""
        return self.run(pixels, ()).logits

    def run(self, pixels: Tensor, nodes: tuple[str, ...]) -> Explained:
        """Return logits and the activations of nodes, which share one graph of gradients."""
        module = self.prepare(nodes)
        output, activations = module(apply_input_view(pixels, self.input_view))
        if self._pool is not None:
            output = self._classifier(pool_activations(output, self._pool))
        return Explained(output.float(), activations)

    def score(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return what is explained, float [n]: the logit of each row's target.

        Of two classes it is the difference of the logits: with one sigmoid output, the first class
        has the logit 0 for every picture.
        """
        own = logits.gather(1, target[:, None])[:, 0]
        return own if logits.shape[1] != 2 else own - logits.gather(1, 1 - target[:, None])[:, 0]

    def probabilities(self, images: Pixels) -> NDArray[np.float32]:
        """Return probabilities float32 [n, classes] of stored views uint8 [n, size, size, 3]."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), self.batch_size):
                batch = torch.from_numpy(images[start : start + self.batch_size]).to(self.device)
                logits = self.logits(batch) / self.temperature
                parts.append(logits.softmax(dim=1).cpu().numpy())
        probabilities: NDArray[np.float32] = np.concatenate(parts)
        return probabilities

    def pixels(self, images: Pixels) -> Tensor:
        """Return uint8 images as float pixels on the device."""
        return torch.from_numpy(np.ascontiguousarray(images)).to(self.device).float()

    def randomize_head(self, seed: int = 0) -> None:
        """Replace the weights of the last layer by random ones (Adebayo et al. 2018)."""
        layers = [
            layer
            for part in (self.module, self._classifier)
            for layer in part.modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        ]
        generator = torch.Generator().manual_seed(seed)
        weight = layers[-1].weight
        noise = torch.randn(weight.shape, generator=generator) * float(weight.std())
        with torch.no_grad():
            weight.copy_(noise.to(weight.device))


def load_explained(spec: ModelSpec) -> ExplainedNetwork:
    """Load a float32 copy of a model: not folded, nothing in place, gradients of pixels enabled.

    Raises RequestError if there is no such model, or no weights for a plain backbone.
    """
    facts = describe_model(spec)
    if facts.version is None:
        return _load_plain(facts)
    network = load_network(find_store(spec).store, facts.version)
    architecture = facts.version.architecture
    with meta_device_context(architecture.backbone):
        whole = build_backbone(
            architecture.backbone, architecture.input_size, architecture.revision
        )
    names = {node.name: name for name, node in trace_backbone(whole).nodes.items()}
    return ExplainedNetwork(facts, network.backbone, names, facts.version.input_view, network)


def find_store(spec: ModelSpec) -> StoredModel:
    """Return the store of a bundle."""
    return find_model(spec.model)


def _load_plain(facts: ModelFacts) -> ExplainedNetwork:
    name, size = facts.spec.backbone, facts.spec.input_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # with --weights none, all workers have the same network
        if is_timm(name):
            whole = build_timm(name, size, classes=_IMAGENET_CLASSES)
        else:
            whole = build_backbone(name, size)
    source = find_weights(facts.spec.weights, name)
    if source is not None:
        load_weights(source, whole, whole)
    graph, nodes = trace_backbone(whole)
    module = fx.GraphModule(whole, graph)
    names = {node.name: label for label, node in nodes.items()}
    mean, std = normalisation(name)
    view = InputView(input_size=size, mean=mean, std=std, interpolation=interpolation(name))
    return ExplainedNetwork(facts, module, names, view, None)
