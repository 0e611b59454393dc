"""What a published model consists of besides its record: weights as safetensors, objects under their hash."""

from __future__ import annotations

import safetensors.torch
import torch

from afinar.models.networks.network import Network, build_network
from afinar.models.registry.versions import ModelVersion
from afinar.storage.cache import Cache, open_verified
from afinar.storage.objects import ObjectRef, put_object, sha256
from afinar.storage.store import Store


def put_weights(store: Store, network: Network) -> ObjectRef:
    """Write a network's weights as safetensors, named by their hash."""
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    return put_by_hash(store, "weights/{}.safetensors", safetensors.torch.save(state), len(state))


def put_by_hash(store: Store, template: str, data: bytes | memoryview, rows: int) -> ObjectRef:
    """Write an object under its whole hash."""
    return put_object(store, template.format(sha256(data)), data, rows)


def load_network(store: Store, version: ModelVersion) -> Network:
    """Build the network and load its verified weights; eval mode, channels last.

    Weights in a bucket are fetched once per machine, however many of its processes ask.
    """
    network, _ = build_network(version.architecture)
    with open_verified(store, version.weights, Cache()) as file:
        # The library maps a path: this one is of the descriptor, so that what is loaded is what was verified.
        network.load_state_dict(safetensors.torch.load_file(f"/proc/self/fd/{file.fileno()}"))
    return network.eval().to(memory_format=torch.channels_last)
