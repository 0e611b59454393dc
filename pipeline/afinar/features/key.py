"""Key of cached features: a hash of everything that determines them. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from afinar.config.base import fingerprint
from afinar.config.features import StoredType
from afinar.config.train import Pool
from afinar.pictures.preprocessing import InputView, StoredView
from afinar.storage.names import check_sha256

FOLDER: Final = "features"
"""Folder of a dataset that has one folder of features for each key."""

ComputePrecision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """Everything that determines the features of a picture, except its bytes.

    `weights` is the hash of the tensors of the backbone up to the cut, wherever they came from.
    `cut` is the name of a graph node. `precision` is that of the forward pass, `stored_as` the type
    in which the features are stored. Names of files, splits and labels are not part of it.
    `augmented` describes the random changes of an augmented view, with their seed and the number of
    the view; "" is the picture as it is.
    """

    EXACT_KEYS = True  # see config/strict.py

    backbone: str
    weights: Annotated[str, check_sha256]
    cut: str
    pool: Pool
    stored_view: StoredView
    input_view: InputView
    precision: ComputePrecision
    stored_as: StoredType
    augmented: str = ""

    @cached_property
    def key(self) -> str:
        """Name of the folder of these features: 16 hex digits."""
        return fingerprint(self.as_dict())[:16]

    @property
    def cut_name(self) -> str:
        """Cut and pooling, for people."""
        return self.cut if self.pool == "average" else f"{self.cut} ({self.pool})"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        fields = asdict(self)
        if not self.augmented:
            del fields["augmented"]  # as before there were augmented views: the key is the same
        return {
            **fields,
            "stored_view": self.stored_view.as_dict(),
            "input_view": self.input_view.as_dict(),
        }
