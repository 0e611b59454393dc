"""Backbones that torchvision lacks."""

from __future__ import annotations

from afinar.models.networks.backbones import build_backbone


def test_small_cnn_has_the_parameter_count_of_the_courses() -> None:
    network = build_backbone("small_cnn", 224)
    convolutions = 3 * 32 * 9 + 32 + 3 * (32 * 32 * 9 + 32)
    assert sum(parameter.numel() for parameter in network.parameters()) == (
        convolutions + (12 * 12 * 32 + 1) * 256 + 257 * 1000
    )
