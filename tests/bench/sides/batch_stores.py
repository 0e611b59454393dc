"""Write the stores of the peers for `batches`, each as its documentation describes.

Inputs are `pixels.npy`, uint8 [count, size, size, 3], and `jpegs/NUMBER.jpg`, the same pictures
with quality 95.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import webdataset  # type: ignore[import-not-found]  # lives in the peers' environment
from numpy.typing import NDArray
from PIL import Image
from streaming import MDSWriter  # type: ignore[import-not-found]  # lives in the peers' environment

FILES = 16  # of WebDataset and Parquet: eight for each of two readers
Pixels = NDArray[np.uint8]


def write_mds(stores: Path, pixels: Pixels) -> None:
    """Write MDS of MosaicML Streaming: arrays of a fixed shape, and JPEGs, in default shards."""
    shape = ",".join(str(side) for side in pixels.shape[1:])
    with MDSWriter(
        out=str(stores / "mds-pixels"), columns={"image": f"ndarray:uint8:{shape}", "id": "int"}
    ) as out:
        for number, image in enumerate(pixels):
            out.write({"image": np.asarray(image), "id": number})
    with MDSWriter(out=str(stores / "mds-jpeg"), columns={"image": "jpeg", "id": "int"}) as out:
        for number in range(len(pixels)):
            out.write({"image": Image.open(jpeg_path(stores, number)), "id": number})


def write_tars(stores: Path, pixels: Pixels) -> None:
    """Write tar shards of WebDataset: JPEGs, and arrays."""
    for kind in ("jpg", "npy"):
        folder = stores / f"tar-{kind}"
        folder.mkdir()
        for part, numbers in enumerate(np.array_split(np.arange(len(pixels)), FILES)):
            with webdataset.TarWriter(str(folder / f"{part:04d}.tar")) as out:
                for number in numbers:
                    data = (
                        jpeg_path(stores, number).read_bytes()
                        if kind == "jpg"
                        else np.asarray(pixels[number])
                    )
                    out.write({"__key__": f"{number:06d}", kind: data})


def write_parquet(stores: Path, pixels: Pixels) -> None:
    """Write Parquet with a tensor column by Ray Data."""
    path = str(stores / "pixels.npy")

    def read(batch: dict[str, Any]) -> dict[str, Any]:
        return {"id": batch["id"], "image": np.load(path, mmap_mode="r")[batch["id"]]}

    ray.init("local", num_cpus=2, log_to_driver=False)
    numbers = ray.data.range(len(pixels), override_num_blocks=FILES)
    numbers.map_batches(read, batch_size=None).write_parquet(str(stores / "parquet"))
    ray.shutdown()


def jpeg_path(stores: Path, number: int) -> Path:
    """Return the path of a picture's JPEG."""
    return stores / "jpegs" / f"{number:06d}.jpg"


def main(request: dict[str, Any]) -> list[str]:
    """Write all stores and return their names."""
    stores = Path(request["stores"])
    pixels = np.load(stores / "pixels.npy", mmap_mode="r")
    for write in (write_mds, write_tars, write_parquet):
        write(stores, pixels)
    return sorted(path.name for path in stores.iterdir())


if __name__ == "__main__":
    print(json.dumps({"stores": main(json.loads(sys.argv[1]))}))
