"""torch's DataLoader and the model in one process; worker processes decode the files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tests.bench.sides.label_network import Classifier, measure_each


class Paths(ImageFolder):  # type: ignore[misc]  # its package has no types
    """ImageFolder with the path of the file instead of the label."""

    def __getitem__(self, index: int) -> tuple[str, Any]:
        image, _ = super().__getitem__(index)
        return self.samples[index][0], image


def infer(source: str, out: str, request: dict[str, Any], options: dict[str, Any]) -> None:
    """Label a folder with `workers` processes, batches of `batch`, `layout` and `threads`."""
    torch.set_num_threads(options["threads"])
    view = v2.Compose([v2.Resize((request["size"],) * 2), v2.PILToTensor()])
    loader: DataLoader[Any] = DataLoader(
        Paths(source, transform=view), batch_size=options["batch"], num_workers=options["workers"]
    )
    classify = Classifier(request["model"], options["layout"])
    answers: dict[str, list[Any]] = {"path": [], "label": [], "score": []}
    for paths, images in loader:
        labels, scores = classify(classify.normalize(images))
        answers["path"] += paths
        answers["label"] += labels
        answers["score"] += scores
    Path(out).mkdir()
    pq.write_table(pa.table(answers), Path(out, "answers.parquet"))


def main(request: dict[str, Any]) -> list[list[float]]:
    """Measure each of the options."""
    return measure_each(infer, request)


if __name__ == "__main__":
    print(
        json.dumps({"seconds": main(json.loads(sys.argv[1])), "version": torchvision.__version__})
    )
