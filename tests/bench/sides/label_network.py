"""The bundle's network as anybody would have it: torchvision's own, its weights from the safetensors file.

Imported by sides of the peers' environment, which has torch and torchvision at our versions and nothing of ours.
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
    """The network of MODELS@1 in eval mode, and its record."""
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
    network.load_state_dict({_theirs(name, last): tensor for name, tensor in state.items()})
    return network.eval(), record


def _theirs(name: str, last: str) -> str:
    """A tensor's name in the uncut network, whose classifier's last layer is called `last`."""
    part, _, rest = name.partition(".")
    return rest if part == "backbone" else f"{last}.{rest}"


class Classifier:
    """Labels and probabilities of a batch; made once in each process that scores."""

    def __init__(self, model: str, layout: str = "default") -> None:
        self.network, record = load(model)
        self.classes: list[str] = record["classes"]
        self._format = torch.channels_last if layout == "channels last" else torch.contiguous_format
        self.network.to(memory_format=self._format)
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    def __call__(self, inputs: Tensor) -> tuple[list[str], list[float]]:
        """Of normalised pictures float32 [n, 3, size, size]."""
        with torch.inference_mode():
            best = (
                self.network(inputs.contiguous(memory_format=self._format))
                .softmax(dim=1)
                .max(dim=1)
            )
        return [self.classes[number] for number in best.indices.tolist()], best.values.tolist()

    def normalised(self, images: Tensor) -> Tensor:
        """Of uint8 [n, 3, size, size], in any layout."""
        return (images.float() / 255 - self._mean) / self._std


Infer = Callable[[str, str, dict[str, Any], dict[str, Any]], None]
"""One labelling of a folder into another, for a request, with one of its options."""


def measure_each(infer: Infer, request: dict[str, Any]) -> list[list[float]]:
    """Warm up; seconds for each of `request["sources"]` with each of `request["options"]`.

    Answers go to `out`/<number of the options>-<number of the source>.
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
