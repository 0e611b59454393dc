"""Backbones: whole networks of the catalogue or of timm, built with random weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from afinar.errors import RequestError
from afinar.models.networks.catalogue import CATALOGUE
from afinar.models.networks.custom_networks import efficientnet_lite0, small_cnn
from afinar.models.networks.deferred_compiler import without_compiler
from afinar.models.networks.timm_networks import build_timm, is_timm
from afinar.models.networks.vision import get_model


def build_backbone(name: str, input_size: int, revision: int | None = None) -> nn.Module:
    """Return a network with random weights, for pictures of `input_size` pixels.

    Networks of the catalogue have their 1000-class classifier; those of timm have none and return
    pooled features. `revision` is that of a model's record; None is the newest. Raises RequestError
    if the network cannot be built for this size, or if its revision is unknown.
    """
    newest = CATALOGUE[name].revision if name in CATALOGUE else 1
    if revision is not None and revision > newest:
        raise RequestError(
            f"the model needs revision {revision} of {name}, and this version of afinar builds "
            f"{newest} at most: use the version of afinar that trained it, or a later one"
        )
    try:
        return _build(name, input_size, revision or newest)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RequestError(
            f"--input-size {input_size}: {name} cannot be built for {input_size} x {input_size} "
            f"pixels ({(str(error).splitlines() or [type(error).__name__])[0]}); give another size"
        ) from error


def _build(name: str, input_size: int, revision: int) -> nn.Module:
    if is_timm(name):
        return build_timm(name, input_size)
    if name == "small_cnn":
        return small_cnn(input_size)
    if name == "efficientnet_lite0":
        return efficientnet_lite0(input_size, pads_symmetrically=revision == 1)

    options: dict[str, Any] = {}
    if name in {"inception_v3", "googlenet"}:
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        # The number of position embeddings follows from this size.
        options = {"image_size": input_size}
    network: nn.Module = get_model(name, weights=None, **options)
    return network


@contextlib.contextmanager
def meta_device_context(name: str) -> Iterator[None]:
    """Build and run a backbone without memory for its weights.

    RegNets are built on the CPU, with memory: their constructor reads values of tensors, and
    tensors on the meta device have none.
    """
    device = torch.device("cpu" if name.startswith("regnet_") else "meta")
    with without_compiler(), device:
        yield
