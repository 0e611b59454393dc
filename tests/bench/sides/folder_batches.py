"""torch's DataLoader on torchvision's ImageFolder: files are decoded in every epoch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torchvision
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tests.bench.epochs import Epoch, measure_each


class Numbered(ImageFolder):  # type: ignore[misc]  # its package has no types
    """ImageFolder with the number of the file instead of the label."""

    def __getitem__(self, index: int) -> tuple[int, Any]:
        image, _ = super().__getitem__(index)
        return int(Path(self.samples[index][0]).stem), image


def reader(request: dict[str, Any], options: dict[str, Any]) -> Epoch:
    """Return a reader with `workers` processes that prepare `ahead` batches each."""
    size = request["size"]
    view = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    ahead = (
        {"prefetch_factor": options["ahead"], "persistent_workers": True}
        if options["workers"]
        else {}
    )
    loader: DataLoader[Any] = DataLoader(
        Numbered(request["source"], transform=view),
        batch_size=request["batch"],
        shuffle=True,
        num_workers=options["workers"],
        **ahead,
    )

    def epoch() -> Iterator[tuple[list[int], Any]]:
        for numbers, images in loader:
            yield numbers.tolist(), images.numpy()

    return epoch


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure each of the options."""
    return measure_each(reader, request)


if __name__ == "__main__":
    print(json.dumps({"runs": main(json.loads(sys.argv[1])), "version": torchvision.__version__}))
