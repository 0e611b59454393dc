"""Optimisation of a published network for one device, checked against its golden samples."""

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
    compute_logits,
    matches_within_tolerance,
    relative_difference,
)
from afinar.pictures.preprocessing import InputView

logger = logging.getLogger(__name__)


def optimize_for_inference(
    network: Network, golden: Golden, view: InputView, precision: Precision
) -> Network:
    """Fold BatchNorm into convolutions, and use bfloat16 if `precision` allows it.

    The network is folded if its golden logits stay within FLOAT32_TOLERANCE. It is converted if its
    golden probabilities stay within REDUCED_TOLERANCE; otherwise it stays float32, with a log line.
    Does not modify `network`. Raises ModelError if the unfolded network has other logits, too.
    """
    # A forward pass of the golden samples is most of what loading costs: the published network gets
    # one only if the folded network has other logits.
    folded = Network(_fold_batch_norm(network), network.classifier, network.pool).eval()
    folded_logits = compute_logits(folded, golden.images, view)
    if relative_difference(golden, folded_logits) <= FLOAT32_TOLERANCE:
        network = folded
    else:
        assert_matches_golden(golden, network, view)

    device = next(network.parameters()).device
    wants_bfloat16 = use_bfloat16(precision, device) or (
        precision == "auto" and _bf16_pays_on_avx512(network, device)
    )
    if not wants_bfloat16:
        return network

    reduced = copy.deepcopy(network).to(torch.bfloat16)
    if matches_within_tolerance(golden, compute_logits(reduced, golden.images, view)):
        return reduced
    logger.info(
        "note: bfloat16 changes the predictions of the golden samples: this model labels in float32"
    )
    return network


def _bf16_pays_on_avx512(network: Network, device: torch.device) -> bool:
    """Return True if AVX-512 runs the network faster in bfloat16 than in float32.

    It doubles the rate of dense convolutions and does not speed up depthwise ones.
    """
    if device.type != "cpu" or not torch.cpu._is_avx512_bf16_supported():
        return False
    return not any(
        isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules()
    )


def _fold_batch_norm(network: Network) -> fx.GraphModule:
    """Return a copy of the backbone with each BatchNorm folded into the convolution before it."""
    # Another trace would go into modules that are single nodes of this graph.
    folded = fuse(network.backbone, no_trace=True)
    assert isinstance(folded, fx.GraphModule)
    return folded.to(memory_format=torch.channels_last)
