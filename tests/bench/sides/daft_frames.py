"""Daft's native runner on all cores: download, decode, resize (it squashes), write Parquet."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import daft  # type: ignore[import-not-found]  # lives in the peers' environment
from daft import col


def convert(source: str, out: str, size: int, options: dict[str, Any]) -> None:
    """Convert as its guide to images describes, `batch` rows at a time unless that is 0."""
    files = daft.from_glob_path(f"{source}/**/*.jpg")
    if options["batch"]:
        files = files.into_batches(options["batch"])
    image = col("path").download().decode_image(mode="RGB").resize(size, size)
    files.select(col("path"), image.alias("image")).write_parquet(out)


def main(request: dict[str, Any]) -> list[float]:
    """Warm up, then return the seconds of a conversion with each of `request["options"]`.

    The output is in `out`/NUMBER.
    """
    daft.set_runner_native()
    out = Path(request["out"])
    convert(request["warm_up"], str(out / "warm"), request["size"], request["options"][0])
    seconds = []
    for number, options in enumerate(request["options"]):
        started = time.monotonic()
        convert(request["source"], str(out / str(number)), request["size"], options)
        seconds.append(time.monotonic() - started)
    return seconds


if __name__ == "__main__":
    print(json.dumps({"seconds": main(json.loads(sys.argv[1])), "version": daft.__version__}))
