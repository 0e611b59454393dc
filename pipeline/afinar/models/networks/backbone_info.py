"""Facts about a backbone that need no network. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["batchnorm", "plain", "transformer"]
"""Kind of a backbone, which decides the default learning rates.

`batchnorm`: convolutions with BatchNorm. `plain`: convolutions without normalisation.
`transformer`: transformers and ConvNeXt, which trains like them.
"""


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """Usual input size in pixels, origin (torchvision, timm, afinar) and family of a backbone.

    `revision` rises when afinar builds the network in another way, which gives other activations
    with the same weights. A published model is built as the revision in its record says.
    """

    name: str
    input_size: int
    origin: str
    family: Family
    revision: int = 1
