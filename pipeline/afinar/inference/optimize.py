"""A published network made fast for one device, as far as its golden samples allow."""

from __future__ import annotations

import copy
import logging

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

from afinar.config.base import Precision
from afinar.models.networks.network import Network
from afinar.models.networks.precision import use_bfloat16
from afinar.models.registry.golden import (
    FLOAT32_TOLERANCE,
    Golden,
    assert_matches_golden,
    difference,
    matches_within_tolerance,
    score,
)
from afinar.pictures.preprocessing import InputView

logger = logging.getLogger(__name__)


def fast(network: Network, golden: Golden, view: InputView, precision: Precision) -> Network:
    """The network with BatchNorm folded into its convolutions, in bfloat16 where `precision` says so.

    A shortcut that answers the golden samples otherwise than it may is not taken: folding by the tolerance of float32,
    bfloat16 by that of reduced precision, which is said. `network` stays as it is; it is asked itself only where its
    folded self gives other answers, since a forward pass of all golden samples is most of what a start costs. Raises
    ModelError when it does not answer as it did on the day of publication either.
    """
    folded = Network(_folded(network), network.classifier, network.pool).eval()
    if difference(golden, score(folded, golden.images, view)) <= FLOAT32_TOLERANCE:
        network = folded
    else:
        assert_matches_golden(golden, network, view)
    device = next(network.parameters()).device
    if not (
        use_bfloat16(precision, device)
        or (precision == "auto" and _bf16_pays_on_avx512(network, device))
    ):
        return network
    half = copy.deepcopy(network).to(torch.bfloat16)
    if matches_within_tolerance(golden, score(half, golden.images, view)):
        return half
    logger.info(
        "note: in bfloat16 the golden samples get other answers: this model labels in float32"
    )
    return network


def _bf16_pays_on_avx512(network: Network, device: torch.device) -> bool:
    """Whether AVX-512's bfloat16 is faster: twice for dense convolutions, not at all for depthwise ones."""
    if device.type != "cpu" or not torch.cpu._is_avx512_bf16_supported():
        return False
    return not any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in network.modules())


def _folded(network: Network) -> fx.GraphModule:
    folded = fuse(network.backbone)
    assert isinstance(folded, fx.GraphModule)
    return folded.to(memory_format=torch.channels_last)
