"""The networks that compute features: one backbone with pooled activations at several cuts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from afinar.config.features import StoredType
from afinar.config.train import Pool
from afinar.errors import IntegrityError, RequestError
from afinar.features.key import ComputePrecision, FeatureSpec
from afinar.models.networks.backbones import build_backbone
from afinar.models.networks.catalogue import require_backbone
from afinar.models.networks.cuts import TRACING, cut_at_several, cut_backbone
from afinar.models.networks.network import apply_input_view
from afinar.models.networks.precision import autocast, tf32_disabled
from afinar.models.networks.weights import (
    find_weights,
    interpolation,
    load_weights,
    normalisation,
)
from afinar.pictures.preprocessing import InputView, StoredView

_TYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_COUNTERS: Final = "num_batches_tracked"  # of BatchNorm: no result depends on them


def weights_hash(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors; their names, types, shapes and bytes are in it."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith(_COUNTERS):
            continue
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class FeatureRequest:
    """One backbone and the cuts that are wanted of it, as a user names them."""

    backbone: str
    weights: str
    cuts: tuple[tuple[str, Pool], ...]
    input_size: int
    stored_view: StoredView
    precision: ComputePrecision
    stored_as: StoredType


class FeatureNetwork:
    """Computes the features of several specs of one backbone in one pass."""

    def __init__(
        self, module: fx.GraphModule, specs: Sequence[FeatureSpec], device: torch.device
    ) -> None:
        self.specs, self.device = list(specs), device
        # Each BatchNorm is folded into the convolution before it, unless a cut lies between.
        folded = fuse(module.eval(), no_trace=True)
        self._module = folded.to(device).to(memory_format=torch.channels_last)
        self._precision = _TYPES[specs[0].precision]

    def __call__(self, images: NDArray[np.uint8]) -> list[NDArray[np.floating]]:
        """Return float [n, width] for each spec, of stored views uint8 [n, size, size, 3].

        Raises RequestError if a value does not fit the type in which it is to be stored.
        """
        with torch.inference_mode(), tf32_disabled(self.device):
            tensors = self.compute(torch.from_numpy(images).to(self.device))
            return self.finish([tensor.cpu().numpy() for tensor in tensors])

    def compute(self, pixels: Tensor) -> list[Tensor]:
        """Return features as they are stored, of pixels that are on the device.

        For each spec float [n, width], and a boolean: whether all are finite before they are
        stored. The caller disables gradients, and TF32.
        """
        with autocast(self.device, self._precision):
            outputs = self._module(apply_input_view(pixels, self.specs[0].input_view))
        tensors: list[Tensor] = []
        for values, spec in zip(outputs, self.specs, strict=True):
            tensors += [values.to(_TYPES[spec.stored_as]), values.isfinite().all()]
        return tensors

    def finish(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[np.floating]]:
        """Return the features among what `compute` gave, as arrays of the host.

        Raises RequestError if a value does not fit the type in which it is to be stored.
        """
        for stored, was_finite in zip(arrays[::2], arrays[1::2], strict=True):
            _require_finite(stored, bool(was_finite))
        return list(arrays[::2])


def to_stored(values: Tensor, stored_as: StoredType) -> NDArray[np.floating]:
    """Return features as they are stored. Raises RequestError for those that do not fit."""
    stored: NDArray[np.floating] = values.to(_TYPES[stored_as]).cpu().numpy()
    _require_finite(stored, bool(values.isfinite().all()))
    return stored


def _require_finite(stored: NDArray[np.floating], was_finite: bool) -> None:
    if not np.isfinite(stored).all():
        raise RequestError(
            "features of this backbone are not finite numbers in float16, whose largest is 65,504: "
            "give --stored-as float32"
            if was_finite
            else "the features of this backbone are not finite numbers"
        )


@dataclass(frozen=True)
class ResolvedFeatures:
    """Specs of a request, and the number of features that each gives for one picture."""

    specs: list[FeatureSpec]
    widths: list[int]


def resolve_features(request: FeatureRequest) -> ResolvedFeatures:
    """Load the weights and return the specs of a request.

    Raises RequestError for a request that cannot be carried out.
    """
    info = require_backbone(request.backbone)
    size = request.input_size or info.input_size
    mean, std = normalisation(request.backbone)
    view = InputView(
        input_size=size, mean=mean, std=std, interpolation=interpolation(request.backbone)
    )
    whole, module = _load(request.backbone, request.weights, request.cuts, size)
    tensors = module.state_dict()
    specs, widths = [], []
    for (cut, pool), width in zip(request.cuts, _widths(module, size, request), strict=True):
        part = cut_backbone(whole, cut)
        own = {name: tensors[name] for name in part.module.state_dict()}
        specs.append(
            FeatureSpec(
                backbone=request.backbone,
                weights=weights_hash(own),
                cut=part.cut,
                pool=pool,
                stored_view=request.stored_view,
                input_view=view,
                precision=request.precision,
                stored_as=request.stored_as,
            )
        )
        widths.append(width)
    return _without_repeats(specs, widths)


def _without_repeats(specs: list[FeatureSpec], widths: list[int]) -> ResolvedFeatures:
    """Leave out cuts that name the same node, such as `auto` and `flatten`."""
    unique = {spec.key: (spec, width) for spec, width in zip(specs, widths, strict=True)}
    return ResolvedFeatures(
        [spec for spec, _ in unique.values()], [width for _, width in unique.values()]
    )


def _widths(module: fx.GraphModule, size: int, request: FeatureRequest) -> list[int]:
    """Return the number of features of each cut, from one black picture."""
    try:
        with TRACING, torch.inference_mode():
            outputs = module.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RequestError(
            f"--input-size {size}: {request.backbone} cannot take {size} x {size} pixels "
            f"({str(error).splitlines()[0]}); give another size or an earlier cut"
        ) from error
    for (cut, _), values in zip(request.cuts, outputs, strict=True):
        if values.ndim != 2 or values.shape[0] != 1:
            raise RequestError(f"--cut {cut}: it gives no activations for each picture")
    return [values.shape[1] for values in outputs]


def _load(
    backbone: str, weights: str, cuts: Sequence[tuple[str, Pool]], size: int
) -> tuple[nn.Module, fx.GraphModule]:
    """Return a whole backbone, and its part up to all cuts with weights."""
    source = find_weights(weights, backbone)
    if source is None:
        raise RequestError("--weights none: features of random weights say little; give weights")
    whole = build_backbone(backbone, size)
    module = cut_at_several(whole, cuts).module
    load_weights(source, whole, module)
    return whole, module


def load_feature_network(
    specs: Sequence[FeatureSpec], weights: str, device: torch.device
) -> FeatureNetwork:
    """Build the network that computes these specs, which have one backbone and one input view.

    Raises IntegrityError if `weights` are not those of the specs.
    """
    first = specs[0]
    cuts = [(spec.cut, spec.pool) for spec in specs]
    whole, module = _load(first.backbone, weights, cuts, first.input_view.input_size)
    tensors = module.state_dict()
    for spec in specs:
        own = {name: tensors[name] for name in cut_backbone(whole, spec.cut).module.state_dict()}
        if weights_hash(own) != spec.weights:
            raise IntegrityError(
                f"--weights {weights}: this machine has other weights of {spec.backbone} than the "
                "machine that planned the job"
            )
    return FeatureNetwork(module, specs, device)
