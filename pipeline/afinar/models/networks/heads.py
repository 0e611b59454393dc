"""Heads: pooling of the activations at the cut, and the classifier on the pooled features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from afinar.config.train import Pool
from afinar.errors import RequestError
from afinar.models.networks.architecture import Architecture


class BinaryLogits(nn.Module):
    """Logits of two classes from one output z: [n, 1] → [n, 2], z → [0, z].

    Softmax over [0, z] gives the second class e^z / (1 + e^z), which is sigmoid(z). So the
    cross-entropy of these logits is the binary cross-entropy of z, and code that reads class logits
    needs no special case for a network with one output. Example: z = 2 gives logits [0, 2] and
    probabilities [0.12, 0.88]; sigmoid(2) = 0.88.
    """

    def forward(self, outputs: Tensor) -> Tensor:
        """Return float [n, 2] for float [n, 1]."""
        return torch.cat([torch.zeros_like(outputs), outputs], dim=1)


def build_head(architecture: Architecture, width: int) -> nn.Module:
    """Return the classifier for features of `width` columns: one linear layer, or an MLP."""
    binary = architecture.output == "sigmoid"
    outputs = 1 if binary else architecture.classes

    layers: list[nn.Module] = [nn.Linear(width, outputs)]
    if architecture.head == "mlp":
        layers = [
            nn.Linear(width, architecture.hidden),
            nn.ReLU(),
            nn.Dropout(architecture.dropout),
            nn.Linear(architecture.hidden, outputs),
        ]
    if binary:
        layers.append(BinaryLogits())

    # A linear head is not wrapped: published weights are named `classifier.weight`.
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]


class ClassRows(NamedTuple):
    """Weight [classes, width] and bias [classes] of the last layer of a classifier."""

    weight: Tensor
    bias: Tensor


def class_rows(classifier: nn.Module) -> ClassRows:
    """Return a copy of the rows of a classifier, one per class.

    A sigmoid output z stands for the logits (0, z), so its first class has a row of zeros.
    """
    linear = _last_layer(classifier)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    if _is_binary(classifier):
        weight = torch.cat([torch.zeros_like(weight), weight])
        bias = torch.cat([torch.zeros_like(bias), bias])
    return ClassRows(weight, bias)


@torch.no_grad()
def set_class_rows(classifier: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Copy weight [classes, width] and bias [classes] into the last layer of a classifier.

    A sigmoid output gets the difference of the two classes.
    """
    if _is_binary(classifier):
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    linear = _last_layer(classifier)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def linear_layers(classifier: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of a classifier, in forward order."""
    return [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)]


def _last_layer(classifier: nn.Module) -> nn.Linear:
    return linear_layers(classifier)[-1]


def _is_binary(classifier: nn.Module) -> bool:
    return any(isinstance(layer, BinaryLogits) for layer in classifier.modules())


def pool_activations(activations: Tensor, pool: Pool) -> Tensor:
    """Return one row per picture: [n, width].

    `flatten` keeps all activations, in the order [channels, h, w] whatever the memory format.
    `average` takes the mean over positions, `average+std` appends the standard deviation over
    positions, `token` takes the first token. The input is one of

        [n, channels, h, w]     most networks
        [n, h, w, channels]     Swin and ConvNeXt inside a block; recognised by h == w != channels
        [n, tokens, channels]   vision transformers
        [n, width]              pooled already

    Raises RequestError for a `token` of activations that have none, and for `average+std` of
    activations that are pooled already.
    """
    if pool == "flatten":
        return activations.flatten(1)
    if pool == "token":
        if activations.ndim != 3:
            raise RequestError(
                "--pool token takes the class token of a vision transformer: cut it inside of its "
                "encoder, or give --pool average"
            )
        return activations[:, 0]

    positions = _position_axes(activations)
    if pool == "average":
        return activations.mean(dim=positions) if positions else activations
    if not positions:
        raise RequestError(
            "--pool average+std: the activations at this cut are pooled already; give an earlier "
            "cut, or --pool average"
        )
    # Squares of 16-bit activations may overflow.
    values = activations.float()
    mean, std = values.mean(dim=positions), values.std(dim=positions, correction=0)
    return torch.cat([mean, std], dim=1).to(activations.dtype)


def _position_axes(activations: Tensor) -> tuple[int, ...]:
    """Return the axes of positions; none for activations that are pooled already."""
    if activations.ndim == 4:
        _, first, second, third = activations.shape
        return (1, 2) if first == second != third else (2, 3)
    return (1,) if activations.ndim == 3 else ()
