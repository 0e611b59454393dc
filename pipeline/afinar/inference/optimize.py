"""Optimisation of a published network for one device, checked against its golden samples."""

from __future__ import annotations

import copy
import logging
import os
from typing import Final

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

from afinar.config.base import Precision
from afinar.inference.openvino import OpenVinoNetwork, is_installed
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

MIN_OPENVINO_PICTURES: Final = 2000
"""Pictures per core from which OpenVINO is used. Import, conversion and a replay of the golden
samples take about a second, and it saves 0.5 ms per picture of MobileNet V3."""

_CONVERSION_ERRORS: Final = (
    ImportError,
    OSError,
    RuntimeError,
    AssertionError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
)
"""Exceptions of OpenVINO and of torch's tracing for an operator that they do not support."""


def optimize_for_inference(
    network: Network, golden: Golden, view: InputView, precision: Precision, pictures: int = 0
) -> Network:
    """Fold BatchNorm into convolutions, and use bfloat16 and OpenVINO if `precision` allows it.

    The network is folded if its golden logits stay within FLOAT32_TOLERANCE. It is converted if its
    golden probabilities stay within REDUCED_TOLERANCE; otherwise it stays float32, with a log line.
    With `auto` OpenVINO computes it if that is installed, if the device is a CPU, and if there are
    enough `pictures`, those of the whole job; the same tolerances hold.
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
    has_enough = pictures >= MIN_OPENVINO_PICTURES * (os.cpu_count() or 1)
    if precision == "auto" and device.type == "cpu" and has_enough and is_installed():
        converted = _openvino(network, golden, view)
        if converted is not None:
            return converted

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


def _openvino(network: Network, golden: Golden, view: InputView) -> Network | None:
    """Return the network in OpenVINO, in bfloat16 if the processor multiplies it.

    Return None, with a log line, if it cannot be converted or has other predictions there.
    """
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    try:
        if has_bfloat16:
            reduced = OpenVinoNetwork(network, view.input_size, "bf16")
            if matches_within_tolerance(golden, compute_logits(reduced, golden.images, view)):
                return reduced
        converted = OpenVinoNetwork(network, view.input_size, "f32")
        logits = compute_logits(converted, golden.images, view)
    except _CONVERSION_ERRORS as error:
        kind = type(error).__name__
        logger.info("note: OpenVINO cannot compute this network: torch does (%s)", kind)
        logger.debug("OpenVINO's error", exc_info=True)
        return None

    if relative_difference(golden, logits) <= FLOAT32_TOLERANCE:
        return converted
    logger.info(
        "note: OpenVINO changes the predictions of the golden samples: torch computes this model"
    )
    return None


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
