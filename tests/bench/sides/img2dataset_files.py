"""img2dataset on file:// URLs: one process per core, centre crop, JPEGs.

`download` starts new processes each time, so that a warm-up has no effect. The time is taken from
its statistics, from the start of the first shard to the end of the last, without starts and
imports.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from img2dataset import download  # type: ignore[import-not-found]  # lives in the peers' environment

SHARDS_PER_CORE = 4


def main(request: dict[str, Any]) -> list[float]:
    """Convert with each of `request["options"]` into `out`/NUMBER and return the seconds."""
    addresses = sorted(f"file://{path}" for path in Path(request["source"]).rglob("*.jpg"))
    urls = Path(request["out"], "urls.txt")
    urls.write_text("\n".join(addresses))
    seconds = []
    for number, options in enumerate(request["options"]):
        out = Path(request["out"], str(number))
        convert(
            urls, out, request, -(-len(addresses) // (request["cores"] * SHARDS_PER_CORE)), options
        )
        seconds.append(_own_seconds(out))
    return seconds


def convert(
    urls: Path, out: Path, request: dict[str, Any], per_shard: int, options: dict[str, Any]
) -> None:
    """Call the main entry point of img2dataset."""
    download(
        url_list=str(urls),
        output_folder=str(out),
        image_size=request["size"],
        resize_mode="center_crop",
        output_format=options["format"],
        input_format="txt",
        processes_count=request["cores"],
        thread_count=options["threads"],
        number_sample_per_shard=per_shard,
        # Other work is switched off, although an ingest does hash each file.
        extract_exif=False,
        compute_hash=None,
        enable_wandb=False,
    )


def _own_seconds(out: Path) -> float:
    statistics = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
    ends, starts = ([shard[key] for shard in statistics] for key in ("end_time", "start_time"))
    return float(max(ends) - min(starts))


if __name__ == "__main__":
    print(json.dumps({"seconds": main(json.loads(sys.argv[1])), "version": version("img2dataset")}))
