"""What a published model consists of besides its record: weights as safetensors, objects under their hash."""

from __future__ import annotations

import safetensors.torch
import torch

from pipeline.models.network import Network, build_network
from pipeline.models.versions import ModelVersion
from pipeline.storage.cache import Cache, local_copy
from pipeline.storage.objects import ObjectRef, get_object, put_object, sha256
from pipeline.storage.store import Store


def put_weights(store: Store, network: Network) -> ObjectRef:
    """Write a network's weights as safetensors, named by their hash."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return put_by_hash(store, "weights/{}.safetensors", safetensors.torch.save(state), len(state))


def put_by_hash(store: Store, template: str, data: bytes | memoryview, rows: int) -> ObjectRef:
    """Write an object under its whole hash."""
    return put_object(store, template.format(sha256(data)), data, rows)


def load_network(store: Store, version: ModelVersion) -> Network:
    """Build the network and load its verified weights; eval mode, channels last.

    Weights in a bucket are fetched once per machine, however many of its processes ask.
    """
    network, _ = build_network(version.architecture)
    try:
        state = safetensors.torch.load_file(local_copy(store, version.weights, Cache()))
    except FileNotFoundError:  # shards have just taken its room in the cache
        state = safetensors.torch.load(get_object(store, version.weights))
    network.load_state_dict(state)
    return network.eval().to(memory_format=torch.channels_last)
