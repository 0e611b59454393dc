"""Objects of a published model: weights as safetensors, named by their hash."""

from __future__ import annotations

import safetensors.torch
import torch

from afinar.models.networks.network import Network, build_network
from afinar.models.registry.versions import ModelVersion
from afinar.storage.cache import Cache, open_verified
from afinar.storage.objects import ObjectRef, put_object, sha256
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


def load_network(store: Store, version: ModelVersion) -> Network:
    """Build a version's network and load its verified weights; eval mode, channels last.

    Weights in a bucket are fetched once per machine and shared by its processes. Raises
    IntegrityError for weights that do not have their hash.
    """
    network = build_network(version.architecture).network
    with open_verified(store, version.weights, Cache()) as file:
        # safetensors maps a file by its path. The path of the open descriptor makes sure that the
        # loaded file is the verified one, even if another process replaces it in the meantime.
        network.load_state_dict(safetensors.torch.load_file(f"/proc/self/fd/{file.fileno()}"))
    return network.eval().to(memory_format=torch.channels_last)
