"""Static table of backbones. A request is checked against it without importing torch.

A test compares it with torchvision's registry and with the networks. Backbones of timm are not in
it; they are checked against timm's own registry, which imports torch.
"""

from __future__ import annotations

import difflib
from typing import Final

from afinar.errors import RequestError
from afinar.models.networks.backbone_info import BackboneInfo, Family

# fmt: off
_TORCHVISION: Final = (
    "alexnet", "convnext_base", "convnext_large", "convnext_small", "convnext_tiny", "densenet121",
    "densenet161", "densenet169", "densenet201", "efficientnet_b0", "efficientnet_b1",
    "efficientnet_b2", "efficientnet_b3", "efficientnet_b4", "efficientnet_b5", "efficientnet_b6",
    "efficientnet_b7", "efficientnet_v2_l", "efficientnet_v2_m", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3",
    "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_16gf", "regnet_x_1_6gf",
    "regnet_x_32gf", "regnet_x_3_2gf", "regnet_x_400mf", "regnet_x_800mf", "regnet_x_8gf",
    "regnet_y_128gf", "regnet_y_16gf", "regnet_y_1_6gf", "regnet_y_32gf", "regnet_y_3_2gf",
    "regnet_y_400mf", "regnet_y_800mf", "regnet_y_8gf", "resnet101", "resnet152", "resnet18",
    "resnet34", "resnet50", "resnext101_32x8d", "resnext101_64x4d", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0",
    "squeezenet1_0", "squeezenet1_1", "swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s",
    "swin_v2_t", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
    "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32", "wide_resnet101_2",
    "wide_resnet50_2",
)
# fmt: on

# Input size in pixels at which torchvision evaluated its default weights, if not 224.
_INPUT_SIZE: Final = {
    "inception_v3": 299,
    "efficientnet_b1": 240,
    "efficientnet_b2": 288,
    "efficientnet_b3": 300,
    "efficientnet_b4": 380,
    "efficientnet_b5": 456,
    "efficientnet_b6": 528,
    "efficientnet_b7": 600,
    "efficientnet_v2_s": 384,
    "efficientnet_v2_m": 480,
    "efficientnet_v2_l": 480,
    "regnet_y_128gf": 384,
    "swin_v2_t": 256,
    "swin_v2_s": 256,
    "swin_v2_b": 256,
    "vit_h_14": 518,
}

# Prefixes of the names of families that do not train like convolutions with BatchNorm.
_PLAIN: Final = ("alexnet", "squeezenet", "vgg", "small_cnn")
_TRANSFORMERS: Final = ("convnext", "maxvit", "swin", "vit")


def _family(name: str) -> Family:
    if name.startswith(_TRANSFORMERS):
        return "transformer"
    is_plain = name.startswith(_PLAIN) and not name.endswith("_bn")
    return "plain" if is_plain else "batchnorm"


CATALOGUE: Final[dict[str, BackboneInfo]] = {
    **{
        name: BackboneInfo(name, _INPUT_SIZE.get(name, 224), "torchvision", _family(name))
        for name in _TORCHVISION
    },
    "efficientnet_lite0": BackboneInfo(
        "efficientnet_lite0", 224, "afinar", _family("efficientnet_lite0"), revision=2
    ),
    "small_cnn": BackboneInfo("small_cnn", 224, "afinar", _family("small_cnn")),
}


def require_backbone(name: str) -> BackboneInfo:
    """Return the facts about a backbone of the catalogue, or about `timm:NAME`.

    Raises RequestError for an unknown name, with similar names.
    """
    if name.startswith("timm:"):
        from afinar.models.networks.timm_networks import timm_info

        return timm_info(name)
    if name not in CATALOGUE:
        # Of the variants of a family the small ones: `efficientnet` may mean any of them.
        variants = sorted(other for other in CATALOGUE if other.startswith(name))
        bundled = [variant for variant in variants if variant == "efficientnet_lite0"]
        similar = [*bundled, *variants][:3] or difflib.get_close_matches(
            name, CATALOGUE, n=3, cutoff=0.5
        )
        similar = list(dict.fromkeys(similar))
        hint = (
            f"did you mean {', '.join(similar)}?" if similar else "the README lists the backbones"
        )
        raise RequestError(f"--backbone {name!r} is unknown; {hint}")
    return CATALOGUE[name]
