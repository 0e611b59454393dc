"""The parts of torchvision that networks are built with, imported without torch's compiler."""

from __future__ import annotations

# torch comes first: only what torchvision imports beyond it is deferred.
import torch  # noqa: F401

from afinar.models.networks.deferred_compiler import without_compiler

with without_compiler():
    from torchvision.models import efficientnet, get_model, get_model_weights
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig
    from torchvision.models.feature_extraction import NodePathTracer
    from torchvision.ops import StochasticDepth

__all__ = [
    "EfficientNet",
    "MBConvConfig",
    "NodePathTracer",
    "StochasticDepth",
    "efficientnet",
    "get_model",
    "get_model_weights",
]
