"""The network of a bundle without afinar: torchvision's, with weights of the safetensors file.

Sides in the peers' environment import this module. It has torch and torchvision in the same
versions, but not afinar.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LAST = {"resnet18": "fc", "mobilenet_v3_small": "classifier.3"}


def load(model: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of MODELS@1 in eval mode, and its record."""
    models = Path(model.rpartition("@")[0])
    (file,) = models.glob("versions/*.json")
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    architecture, view = record["architecture"], record["input_view"]
    assert (tuple(view["mean"]), tuple(view["std"])) == (MEAN, STD)
    network: nn.Module = get_model(
        architecture["backbone"], weights=None, num_classes=architecture["classes"]
    )
    last = _LAST[architecture["backbone"]]
    state = load_file(models / record["weights"]["path"])
    network.load_state_dict({_full_name(name, last): tensor for name, tensor in state.items()})
    return network.eval(), record


def _full_name(name: str, last: str) -> str:
    """Return a tensor's name in the full network, whose last layer is called `last`."""
    part, _, rest = name.partition(".")
    return rest if part == "backbone" else f"{last}.{rest}"


class Classifier:
    """Classifier of batches; one in each process."""

    def __init__(self, model: str, layout: str = "default") -> None:
        self.network, record = load(model)
        self.classes: list[str] = record["classes"]
        self._format = torch.channels_last if layout == "channels last" else torch.contiguous_format
        self.network.to(memory_format=self._format)
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    def __call__(self, inputs: Tensor) -> tuple[list[str], list[float]]:
        """Return labels and probabilities of normalized pictures, float32 [n, 3, size, size]."""
        with torch.inference_mode():
            best = (
                self.network(inputs.contiguous(memory_format=self._format))
                .softmax(dim=1)
                .max(dim=1)
            )
        return [self.classes[number] for number in best.indices.tolist()], best.values.tolist()

    def normalize(self, images: Tensor) -> Tensor:
        """Return normalized pictures; `images` are uint8 [n, 3, size, size], in any layout."""
        return (images.float() / 255 - self._mean) / self._std


Infer = Callable[[str, str, dict[str, Any], dict[str, Any]], None]
"""Function that labels a folder (source, out, request, one of its options)."""


def measure_each(infer: Infer, request: dict[str, Any]) -> list[list[float]]:
    """Warm up; return the seconds of each of `request["sources"]` with each of the options.

    Answers are written to `out`/<number of the options>-<number of the source>.
    """
    out = Path(request["out"])
    infer(request["warm_up"], str(out / "warm"), request, request["options"][0])
    return [
        [
            _seconds(infer, source, out / f"{number}-{position}", request, options)
            for position, source in enumerate(request["sources"])
        ]
        for number, options in enumerate(request["options"])
    ]


def _seconds(
    infer: Infer, source: str, out: Path, request: dict[str, Any], options: dict[str, Any]
) -> float:
    started = time.monotonic()
    infer(source, str(out), request, options)
    return time.monotonic() - started
