"""Catalogue of backbones, compared with torchvision's."""

from __future__ import annotations

import pytest
import torchvision.models

from afinar.errors import RequestError
from afinar.models.networks.catalogue import CATALOGUE, require_backbone


def test_catalogue_torchvision_part_equals_torchvisions_registry() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    catalogue = {name for name, info in CATALOGUE.items() if info.origin == "torchvision"}
    assert catalogue == set(names)
    for name in names:
        (*_, default) = [torchvision.models.get_model_weights(name)["DEFAULT"]]
        assert CATALOGUE[name].input_size == default.transforms().crop_size[0], name


def test_require_backbone_unknown_name_suggests_similar_names() -> None:
    with pytest.raises(RequestError, match="resnet18"):
        require_backbone("resnet81")
