"""Objects of a published model: weights as safetensors, named by their hash."""

from __future__ import annotations

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError

from afinar.errors import RecordError, RequestError
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.catalogue import require_backbone
from afinar.models.networks.network import Network, build_network
from afinar.models.networks.timm_networks import is_timm, require_timm
from afinar.models.registry.versions import ModelVersion
from afinar.storage.cache import Cache, open_verified
from afinar.storage.objects import ObjectRef, put_object, sha256
from afinar.storage.records import REMEDY
from afinar.storage.store import Store


def put_weights(store: Store, network: Network) -> ObjectRef:
    """Write a network's weights as safetensors."""
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    return put_by_hash(store, "weights/{}.safetensors", safetensors.torch.save(state), len(state))


def put_by_hash(store: Store, template: str, data: bytes | memoryview, rows: int) -> ObjectRef:
    """Write an object whose name is `template` with its whole SHA-256 inserted."""
    return put_object(store, template.format(sha256(data)), data, rows)


def _require_head(path: str, architecture: Architecture) -> None:
    """Raise ValueError unless a file of weights has the head of an architecture.

    The record of a model states the sizes of the head. They are compared with the file's before
    memory is taken for them.
    """
    with safetensors.safe_open(path, "pt") as weights:
        shapes = [
            weights.get_slice(name).get_shape()
            for name in sorted(weights.keys())
            if name.startswith("classifier.") and name.endswith("weight")
        ]
    outputs = 1 if architecture.output == "sigmoid" else architecture.classes
    sizes = [architecture.hidden, outputs] if architecture.head == "mlp" else [outputs]
    if [shape[0] if len(shape) == 2 else None for shape in shapes] != sizes:
        raise ValueError(f"its head has other sizes than {sizes}")


def load_network(store: Store, version: ModelVersion) -> Network:
    """Build a version's network and load its verified weights; eval mode, channels last.

    Weights in a bucket are fetched once per machine and shared by its processes. Raises
    IntegrityError for weights that do not have their hash, RecordError for weights of another
    network or an architecture that cannot be built, RequestError if the backbone needs timm and it
    is not installed.
    """
    if is_timm(version.architecture.backbone):
        require_timm(version.architecture.backbone)
    uri = store.uri(version.weights.path)
    with open_verified(store, version.weights, Cache()) as file:
        # safetensors maps a file by its path. The path of the open descriptor makes sure that the
        # loaded file is the verified one, even if another process replaces it in the meantime.
        path = f"/proc/self/fd/{file.fileno()}"
        try:
            _require_head(path, version.architecture)
            require_backbone(version.architecture.backbone)
            network = build_network(version.architecture).network
            network.load_state_dict(safetensors.torch.load_file(path))
        except (SafetensorError, RequestError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise RecordError(
                f"{uri} holds no weights of the network that the record of model {version.id} "
                f"describes: {reason}; {REMEDY}"
            ) from error
    return network.eval().to(memory_format=torch.channels_last)
