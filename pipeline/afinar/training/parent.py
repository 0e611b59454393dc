"""A published model as the start of a training: `--weights MODELS@VERSION`.

The backbone begins with the model's weights. The head begins with the rows of those classes that
both have, by their names; rows of other classes are solved or random (`training.head_start`).
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from afinar.config.train import TrainConfig
from afinar.errors import RequestError
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.heads import class_rows, linear_layers, set_class_rows
from afinar.models.networks.network import Network
from afinar.models.networks.weight_files import select_tensors
from afinar.models.networks.weights import WeightsSource
from afinar.models.registry.bundle import load_network
from afinar.models.registry.versions import VERSIONS, StoredModel, find_model, get_model
from afinar.storage.open import open_store
from afinar.storage.versions import versions

_OBJECT: Final = re.compile(r"(.+)/(weights/[0-9a-f]{64}\.safetensors)")


def find_parent(config: TrainConfig) -> StoredModel | None:
    """Return the published model that `--weights` names; None if it names something else.

    Raises RequestError if there is no such model, if its backbone is another one, and for the file
    of a published model, which does not say what its inputs and classes are.
    """
    if config.has_weights_file:
        _refuse_object(config.weights.partition("#")[0])
    if not config.has_weights_model:
        return None

    try:
        parent = find_model(config.weights)
    except RequestError as error:
        raise RequestError(f"--weights {config.weights}: {error}") from error
    backbone = parent.version.architecture.backbone
    if backbone != config.backbone:
        raise RequestError(
            f"--weights {config.weights} is a model with the backbone {backbone}, and this "
            f"training has {config.backbone}: give --backbone {backbone}"
        )
    return parent


def _refuse_object(location: str) -> None:
    """Raise RequestError if a file is the object of a published model; the message names it."""
    match = _OBJECT.fullmatch(location)
    if match is None:
        return
    store = open_store(match[1])
    for number in versions(store, VERSIONS):
        if get_model(store, number).weights.path == match[2]:
            raise RequestError(
                f"--weights {location} is the file of a published model, whose record has its "
                f"normalisation and classes: give --weights {store.root}@{number}"
            )


def parent_name(parent: StoredModel) -> str:
    """Return MODELS@ID, which stands for the same model for ever."""
    return f"{parent.store.root}@{parent.version.id}"


def parent_source(parent: StoredModel, cut: str) -> WeightsSource:
    """Return the model as a source of weights for a backbone with this cut.

    Raises RequestError if the model is cut elsewhere.
    """
    expected = parent.version.architecture.cut
    if cut != expected:
        raise RequestError(
            f"--weights {parent_name(parent)} is cut at {expected}, and this training at {cut}: "
            f"give --cut {expected}"
        )
    return WeightsSource(
        name=parent_name(parent),
        description=f"the model {parent_name(parent)}",
        licence="that of the weights it was trained from",
        load=lambda _: load_network(*parent).backbone.state_dict(),
    )


def rows_of_parent(
    parent: StoredModel, architecture: Architecture, classes: list[str]
) -> NDArray[np.int64]:
    """Return the row of each class in the parent's head, int64 [classes]; -1 for a new class.

    All are -1 if the heads have different inputs. One sigmoid output cannot keep one class only.
    """
    old = parent.version.architecture
    has_same_inputs = (
        (old.head, old.pool) == (architecture.head, architecture.pool)
        and (old.head == "linear" or old.hidden == architecture.hidden)
        and (old.pool == "average" or old.input_size == architecture.input_size)
    )
    rows = {name: row for row, name in enumerate(parent.version.classes)}
    found = np.array([rows.get(name, -1) for name in classes], dtype=np.int64)
    is_partial = architecture.output == "sigmoid" and bool((found < 0).any())
    return found if has_same_inputs and not is_partial else np.full_like(found, -1)


def load_parent(parent: StoredModel, network: Network, rows: NDArray[np.int64]) -> None:
    """Load the parent's weights into `network`, and `rows` of its head (`rows_of_parent`).

    The network lies on the CPU.
    """
    begun = load_network(*parent)
    body, needed = begun.backbone.state_dict(), network.backbone.state_dict()
    # The driver has checked that they fit; position embeddings may be of another input size.
    network.backbone.load_state_dict(select_tensors(body, needed, parent_name(parent)))
    kept = rows >= 0
    if not kept.any():
        return

    hidden = zip(linear_layers(network.classifier), linear_layers(begun.classifier), strict=True)
    for layer, old_layer in list(hidden)[:-1]:
        layer.load_state_dict(old_layer.state_dict())
    (weight, bias), old = class_rows(network.classifier), class_rows(begun.classifier)
    positions, chosen = torch.from_numpy(np.flatnonzero(kept)), torch.from_numpy(rows[kept])
    weight[positions], bias[positions] = old.weight[chosen], old.bias[chosen]
    set_class_rows(network.classifier, weight, bias)
