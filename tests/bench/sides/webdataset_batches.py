"""WebDataset: shuffled tar shards, shuffled again in a buffer, batched in the workers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import webdataset  # type: ignore[import-not-found]  # lives in the peers' environment

from tests.bench.epochs import Epoch, measure_each

BUFFER = 1000  # samples, as in its examples


def reader(request: dict[str, Any], options: dict[str, Any]) -> Epoch:
    """Return a reader of tars of `kind` with `workers` processes that prepare `ahead` batches."""
    tars = sorted(
        str(path) for path in Path(request["stores"], f"tar-{options['kind']}").glob("*.tar")
    )
    pictures = (
        webdataset.WebDataset(tars, shardshuffle=len(tars))
        .shuffle(BUFFER)
        .decode("rgb8")
        .to_tuple("__key__", options["kind"])
        .batched(request["batch"])
    )
    ahead = (
        {"prefetch_factor": options["ahead"], "persistent_workers": True}
        if options["workers"]
        else {}
    )
    loader = webdataset.WebLoader(
        pictures, batch_size=None, num_workers=options["workers"], **ahead
    )

    def epoch() -> Iterator[tuple[list[int], Any]]:
        for keys, images in loader:
            yield [int(key) for key in keys], images

    return epoch


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure each of the options."""
    return measure_each(reader, request)


if __name__ == "__main__":
    print(json.dumps({"runs": main(json.loads(sys.argv[1])), "version": webdataset.__version__}))
