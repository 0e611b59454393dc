"""MosaicML Streaming: a shuffled StreamingDataset of arrays or JPEGs behind torch's DataLoader."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import streaming  # type: ignore[import-not-found]  # lives in the peers' environment
from torch.utils.data import DataLoader

from tests.bench.epochs import Epoch, measure_each


class Pictures(streaming.StreamingDataset):  # type: ignore[misc]
    """Samples as arrays; the worker that reads a JPEG decodes it."""

    def __getitem__(self, at: int) -> Any:
        sample = super().__getitem__(at)
        return {"image": np.asarray(sample["image"]), "id": sample["id"]}


def reader(request: dict[str, Any], options: dict[str, Any]) -> Epoch:
    """Return a reader of `store` with `workers` processes that prepare `ahead` batches each."""
    pictures = Pictures(
        local=f"{request['stores']}/{options['store']}", shuffle=True, batch_size=request["batch"]
    )
    ahead = (
        {"prefetch_factor": options["ahead"], "persistent_workers": True}
        if options["workers"]
        else {}
    )
    loader: DataLoader[Any] = DataLoader(
        pictures, batch_size=request["batch"], num_workers=options["workers"], **ahead
    )

    def epoch() -> Iterator[tuple[list[int], Any]]:
        for batch in loader:
            yield batch["id"].tolist(), batch["image"].numpy()

    return epoch


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure each of the options."""
    # torch copies the array at once.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    return measure_each(reader, request)


if __name__ == "__main__":
    print(json.dumps({"runs": main(json.loads(sys.argv[1])), "version": streaming.__version__}))
