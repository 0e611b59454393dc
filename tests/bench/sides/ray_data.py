"""Ray Data: `read_images`, and faster forms that decode bytes in `map_batches` or `map`."""

from __future__ import annotations

import io
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from PIL import Image, ImageOps


def with_read_images(source: str, out: str, size: int, options: dict[str, Any]) -> None:
    """Convert as documented: one reader that decodes and resizes (it squashes)."""
    pictures = ray.data.read_images(
        source,
        size=(size, size),
        mode="RGB",
        include_paths=True,
        override_num_blocks=options["blocks"],
    )
    pictures.write_parquet(out)


def with_map(source: str, out: str, size: int, options: dict[str, Any]) -> None:
    """Read bytes in blocks of many files; decode and crop in batches, or by row if `batch` is 0."""
    files = ray.data.read_binary_files(
        source, include_paths=True, override_num_blocks=options["blocks"]
    )
    if options["batch"]:
        images = files.map_batches(partial(_decode_batch, size=size), batch_size=options["batch"])
    else:
        images = files.map(partial(_decode_row, size=size))
    images.write_parquet(out)


def _decode_batch(batch: dict[str, Any], size: int) -> dict[str, Any]:
    images = np.empty((len(batch["bytes"]), size, size, 3), dtype=np.uint8)
    for position, data in enumerate(batch["bytes"]):
        images[position] = _decode(data, size)
    return {"path": batch["path"], "image": images}


def _decode_row(row: dict[str, Any], size: int) -> dict[str, Any]:
    return {"path": row["path"], "image": _decode(row["bytes"], size)}


def _decode(data: bytes, size: int) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(
            ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
        )


FORMS = {"read_images": with_read_images, "map": with_map}


def main(request: dict[str, Any]) -> list[float]:
    """Warm up, then return the seconds of a conversion with each of `request["options"]`.

    The output is in `out`/NUMBER.
    """
    ray.init("local", num_cpus=request["cores"], log_to_driver=False)
    form, out = FORMS[request["form"]], Path(request["out"])
    form(request["warm_up"], str(out / "warm"), request["size"], request["options"][0])
    seconds = []
    for number, options in enumerate(request["options"]):
        started = time.monotonic()
        form(request["source"], str(out / str(number)), request["size"], options)
        seconds.append(time.monotonic() - started)
    return seconds


if __name__ == "__main__":
    print(json.dumps({"seconds": main(json.loads(sys.argv[1])), "version": ray.__version__}))
