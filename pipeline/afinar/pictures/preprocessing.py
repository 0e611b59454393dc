"""The preprocessing contract: how the bytes of a picture become the input of a network.

It has two views. The *stored view* describes what shards contain (decoded, upright, sRGB, square),
the *input view* what the network takes (size, normalisation). Ingest, training, labelling and the
golden replay use the same two objects. So labelling a picture from its file equals labelling it
from its shard.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

from afinar.config.base import fingerprint
from afinar.config.ingest import FitMode, StoreKind
from afinar.config.strict import UPDATE, between

DECODER = "pillow/3"
"""Version of the decoder. It changes whenever the same bytes would give other pixels.

Earlier versions are kept: models and datasets that were made with one go on with it.

- pillow/1, pillow/2: embedded colour profiles are ignored; the resize became another.
- pillow/3: embedded colour profiles are converted to sRGB.
"""

EARLIER_DECODERS: Final = ("pillow/2", "pillow/1")  # none of them applies colour profiles


def _known_decoder(name: str) -> str:
    if name not in {DECODER, *EARLIER_DECODERS}:
        raise ValueError(
            f"its pictures were decoded by {name[:40]!r}, and this afinar has {DECODER}: {UPDATE}"
        )
    return name


Decoder = Annotated[str, _known_decoder]
Interpolation = Literal["bilinear", "bicubic"]
Channel = Annotated[int, between(0, 255)]
Deviation = Annotated[float, between(1e-6, 1e6)]


@dataclass(frozen=True, kw_only=True)
class StoredView:
    """Conversion of a file's bytes to a square, uint8 [size, size, 3].

    Alpha is composited over `background` (RGB, 0 to 255), which also fills the borders of `pad`.
    With `store="jpeg"` the shard contains a JPEG of the square, and the stored pixels are what
    that JPEG decodes to.
    """

    EXACT_KEYS = True  # see config/strict.py

    size: Annotated[int, between(1, 4096)]
    fit: FitMode
    background: tuple[Channel, Channel, Channel] = (255, 255, 255)
    decoder: Decoder = DECODER
    store: StoreKind = "pixels"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "background": list(self.background)}

    @property
    def applies_profiles(self) -> bool:
        """True if embedded colour profiles are converted to sRGB."""
        return self.decoder not in EARLIER_DECODERS

    def key(self) -> str:
        """Return a digest of everything that determines the stored pixels."""
        return fingerprint(self.as_dict())


@dataclass(frozen=True, kw_only=True)
class InputView:
    """Conversion of uint8 [n, size, size, 3] to float32 [n, 3, input_size, input_size].

    The whole stored square is resized with `interpolation`, antialiased. Then each channel becomes
    (x / 255 - mean) / std. A record without `interpolation` means bilinear.
    """

    EXACT_KEYS = True  # see config/strict.py

    input_size: Annotated[int, between(1, 4096)]
    mean: tuple[float, float, float]
    std: tuple[Deviation, Deviation, Deviation]
    interpolation: Interpolation = "bilinear"

    def as_dict(self) -> dict[str, Any]:
        record = {"input_size": self.input_size, "mean": list(self.mean), "std": list(self.std)}
        # Left out at its default, so that older versions of afinar read the record.
        is_default = self.interpolation == "bilinear"
        return record if is_default else {**record, "interpolation": self.interpolation}
