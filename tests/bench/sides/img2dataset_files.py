"""img2dataset over file:// addresses: one process per core, centre crop, JPEGs.

`download` starts its processes anew each time, so a warm-up before it would warm nothing: the time is taken from
its own statistics, first shard's start to last shard's end, which leaves starting and importing out.
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
    """Convert with each of `request["options"]`: seconds, and its output in `out`/number."""
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
    """One call of its main entry point."""
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
        extract_exif=False,  # what it does besides is left out …
        compute_hash=None,  # … although ingest does hash each file
        enable_wandb=False,
    )


def _own_seconds(out: Path) -> float:
    statistics = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
    return float(
        max(one["end_time"] for one in statistics) - min(one["start_time"] for one in statistics)
    )


if __name__ == "__main__":
    print(json.dumps({"seconds": main(json.loads(sys.argv[1])), "version": version("img2dataset")}))
