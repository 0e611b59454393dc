"""The preprocessing contract: how bytes become the array a network sees, written down once.

Two views: the *stored view* is what shards hold (decoded, upright, RGB, square); the *input view* is what
the network takes (its size, its normalisation). Ingest, training, labelling and the golden replay execute
the same object, so labelling a picture from its file equals labelling it from its shard.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from afinar.config.base import fingerprint
from afinar.config.ingest import Fit, StoreKind

DECODER = "pillow/2"
"""Changes whenever the same bytes would give other pixels, so that datasets of the old and new differ."""


@dataclass(frozen=True, kw_only=True)
class StoredView:
    """From bytes to uint8 [size, size, 3].

    Alpha is composited over `background` (RGB, 0 to 255), which also fills `pad`. With `store="jpeg"` the
    shard holds a JPEG of the square, and the stored pixels are what that JPEG decodes to.
    """

    size: int
    fit: Fit
    background: tuple[int, int, int] = (255, 255, 255)
    decoder: str = DECODER
    store: StoreKind = "pixels"

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "background": list(self.background)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> StoredView:
        """Inverse of `as_dict`."""
        return cls(**{**record, "background": tuple(record["background"])})

    def key(self) -> str:
        """Digest of everything that determines the stored pixels."""
        return fingerprint(self.as_dict())


@dataclass(frozen=True, kw_only=True)
class InputView:
    """From uint8 [n, size, size, 3] to float32 [n, 3, input_size, input_size].

    The whole stored square is resized (bilinear, antialiased), then (x / 255 - mean) / std per channel.
    """

    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"input_size": self.input_size, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> InputView:
        """Inverse of `as_dict`."""
        return cls(
            input_size=record["input_size"], mean=tuple(record["mean"]), std=tuple(record["std"])
        )
