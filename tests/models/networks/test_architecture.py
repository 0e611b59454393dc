"""Architectures: checks, and records of older versions."""

from __future__ import annotations

import dataclasses

import pytest

from afinar.errors import RequestError
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.network import build_network
from tests.models.networks.helpers import (
    architecture,
    head_layers,
)


def test_sigmoid_output_with_three_classes_is_refused() -> None:
    with pytest.raises(RequestError, match="--output sigmoid"):
        architecture(output="sigmoid", classes=3)


def test_record_without_newer_fields_builds_the_same_network() -> None:
    record = {"backbone": "small_cnn", "cut": "16", "head": "mlp", "input_size": 64, "classes": 3}
    older = Architecture(**record)  # type: ignore[arg-type]
    network, _ = build_network(older)
    assert set(network.state_dict()) == {
        *(
            f"backbone.{layer}.{parameter}"
            for layer in (0, 3, 7, 10, 15)
            for parameter in ("weight", "bias")
        ),
        *(
            f"classifier.{layer}.{parameter}"
            for layer in (0, 3)
            for parameter in ("weight", "bias")
        ),
    }
    assert head_layers(network)[0].out_features == 256
    assert Architecture(**older.as_dict()) == older
    linear, _ = build_network(dataclasses.replace(older, head="linear"))
    assert {"classifier.weight", "classifier.bias"} < set(linear.state_dict())
