"""Backbones: whole networks of the catalogue, built with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.models import get_model

from afinar.models.networks.catalogue import CATALOGUE
from afinar.models.networks.custom_networks import efficientnet_lite0, small_cnn


def build_backbone(name: str, input_size: int) -> nn.Module:
    """Return a network of the catalogue with random weights and its 1000-class classifier."""
    if name == "small_cnn":
        return small_cnn(input_size)
    if name == "efficientnet_lite0":
        return efficientnet_lite0()

    options: dict[str, Any] = {}
    if name in {"inception_v3", "googlenet"}:
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        # The number of position embeddings follows from this size; pretrained weights fix it.
        options = {"image_size": CATALOGUE[name].input_size}
    network: nn.Module = get_model(name, weights=None, **options)
    return network


def meta_device_context(name: str) -> torch.device:
    """Return a context that builds and runs a backbone without memory for its weights.

    RegNets are built on the CPU, with memory: their constructor reads values of tensors, and
    tensors on the meta device have none.
    """
    return torch.device("cpu" if name.startswith("regnet_") else "meta")
