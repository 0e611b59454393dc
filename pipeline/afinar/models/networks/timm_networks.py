"""Networks of timm (PyTorch Image Models) as backbones `timm:NAME`; an optional dependency.

A name may come from the record of somebody else's model. It is compared with timm's registry, so
that only constructors of timm run: `timm.create_model` itself would also load a configuration from
a hub or a folder. They run with `pretrained=False`, which downloads nothing.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import fx, nn

from afinar.errors import RequestError
from afinar.models.networks.backbone_info import BackboneInfo, Family
from afinar.models.networks.vision import NodePathTracer

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

PREFIX: Final = "timm:"

_CONTAINERS: Final = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Of the normalisation layers. Convolutions with global context have up to 0.23 (gcresnet50t), mixed
# networks with attention in half of their stages have 0.26 or more (maxvit_tiny_pm_256).
_LAYER_NORM_SHARE: Final = 0.25


def is_timm(backbone: str) -> bool:
    """Return True if a backbone is named `timm:NAME`."""
    return backbone.startswith(PREFIX)


def is_of_timm(module: nn.Module) -> bool:
    """Return True if timm defines the module's class."""
    return type(module).__module__.startswith("timm.")


def require_timm(backbone: str) -> None:
    """Raise RequestError, which names the extra to install, if timm cannot be imported."""
    try:
        import timm  # noqa: F401
    except ModuleNotFoundError as error:
        raise RequestError(
            f"the backbone {backbone!r} is a network of timm, which is not installed ({error}): "
            "pip install 'afinar[timm]', on each machine of a cluster"
        ) from error


def pretrained_config(backbone: str) -> PretrainedCfg:
    """Return timm's configuration of `timm:NAME`: input size, mean, std, interpolation.

    NAME is an architecture (`resnet18`), or one with the tag of its weights (`resnet18.a1_in1k`),
    whose configuration may differ. Raises RequestError if timm is not installed or has no such
    network, or if its inputs are not square RGB pictures.
    """
    require_timm(backbone)
    import timm
    from timm.models import get_pretrained_cfg

    name = backbone.removeprefix(PREFIX)
    architecture, dot, _ = name.partition(".")
    known = timm.list_models()
    if architecture in known and dot:
        known = timm.list_models(f"{architecture}.*", include_tags=True)
    config = get_pretrained_cfg(name) if name in known else None
    if config is None:
        similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(PREFIX + other for other in similar)}?"
        raise RequestError(
            f"--backbone {backbone!r} is unknown to timm {timm.__version__}; "
            f"{hint if similar else 'timm.list_models() lists its networks'}"
        )

    channels, height, width = config.input_size
    if channels != 3 or height != width:
        raise RequestError(
            f"--backbone {backbone} takes inputs of {channels} x {height} x {width}, not square "
            "RGB pictures; choose another network"
        )
    return config


def timm_info(backbone: str) -> BackboneInfo:
    """Return the facts about `timm:NAME`. Raises RequestError as `pretrained_config` does."""
    size = pretrained_config(backbone).input_size[1]
    return BackboneInfo(backbone, size, "timm", _family(backbone))


@functools.cache
def _family(backbone: str) -> Family:
    with torch.device("meta"):
        return find_family(build_timm(backbone, pretrained_config(backbone).input_size[1]))


def find_family(network: nn.Module) -> Family:
    """Return the family of a network by its normalisation layers.

    A network with at least one LayerNorm or RMSNorm to three BatchNorms is a `transformer`, any
    other with BatchNorm or GroupNorm is `batchnorm`; one without normalisation is `plain`.

        resnet18     20 BatchNorm                    batchnorm
        vit_b_16     25 LayerNorm                    transformer
        maxvit_t     34 BatchNorm, 45 LayerNorm      transformer
        vgg16        none                            plain
    """
    layers, batches = 0, 0
    for module in network.modules():
        is_rms = "rmsnorm" in type(module).__name__.lower()  # timm has its own
        if isinstance(module, nn.GroupNorm):  # of one group it is LayerNorm over channels
            layers += module.num_groups == 1
            batches += module.num_groups > 1
        elif isinstance(module, nn.LayerNorm) or is_rms:
            layers += 1
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            batches += 1

    if not layers + batches:
        return "plain"
    is_transformer = layers / (layers + batches) >= _LAYER_NORM_SHARE
    return "transformer" if is_transformer else "batchnorm"


def build_timm(backbone: str, input_size: int, classes: int = 0) -> nn.Module:
    """Return `timm:NAME` with random weights, for inputs of `input_size` pixels.

    With `classes` 0 it has no classifier and returns pooled features. Networks whose weights
    depend on the input size, such as vision transformers, are built for `input_size`.
    """
    config = pretrained_config(backbone)
    import timm

    options: dict[str, Any] = {"img_size": input_size} if config.fixed_input_size else {}
    name = backbone.removeprefix(PREFIX)
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **options)
    return network


class TimmTracer(NodePathTracer):  # type: ignore[misc]
    """Tracer of timm's networks, in whose graphs these modules are single nodes:

    - those that timm registers as such, because they cannot be traced;
    - subclasses of torch's layers (BatchNormAct2d, LayerNorm2d);
    - those that read their `training` flag, whose value would become part of the graph.
    """

    def __init__(self) -> None:
        from timm.layers import get_notrace_functions, get_notrace_modules

        super().__init__(
            leaf_modules=get_notrace_modules(), autowrap_functions=tuple(get_notrace_functions())
        )

    def is_leaf_module(self, m: nn.Module, module_qualname: str) -> bool:
        bases = (base for base in type(m).__mro__ if base not in _CONTAINERS)
        is_layer = any(base.__module__.startswith("torch.nn.") for base in bases)
        code = getattr(type(m).forward, "__code__", None)
        reads_training = code is not None and "training" in code.co_names
        return is_layer or reads_training or bool(super().is_leaf_module(m, module_qualname))


def trace_timm(network: nn.Module, tracer: TimmTracer) -> fx.Graph:
    """Trace a network of timm with its optional arguments, such as masks, at their defaults.

    Raises RequestError if its computation depends on the values of its inputs.
    """
    _, *optional = inspect.signature(network.forward).parameters.values()
    defaults = {argument.name: argument.default for argument in optional}
    try:
        graph: fx.Graph = tracer.trace(network, defaults or None)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, ValueError) as error:
        raise RequestError(
            f"--backbone: {type(network).__name__} of timm cannot be traced as a graph "
            f"({str(error).splitlines()[0]}); choose another network"
        ) from error
    return graph


def sync_batch_norm(module: nn.Module) -> nn.Module:
    """Return the module with each BatchNorm replaced by SyncBatchNorm, in place.

    timm's BatchNorm layers may include an activation, which torch's own conversion drops.
    """
    if any(is_of_timm(layer) for layer in module.modules()):
        from timm.layers import convert_sync_batchnorm

        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-any-return,no-untyped-call]
