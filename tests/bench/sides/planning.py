"""Plan a synthetic archive of N pictures and measure time and memory."""

from __future__ import annotations

import json
import math
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afinar.dataset.schema import OUTCOMES
from afinar.ingestion.plan import make_plan
from afinar.pictures.preprocessing import StoredView
from afinar.sources import listing
from afinar.sources.annotations import annotate
from afinar.storage.left_out import LeftOut
from afinar.storage.open import open_store
from afinar.storage.store import Buffer, ObjectInfo, Store
from afinar.units.plans import store_plan

SOURCE = "s3://museum-archive-eu"


class SyntheticStore(Store):
    """A bucket that lists N pictures in shuffled order, without content."""

    def __init__(self, pictures: int) -> None:
        super().__init__(SOURCE)
        self._pictures = pictures

    def walk(self, prefix: str = "", left_out: LeftOut | None = None) -> Iterator[ObjectInfo]:
        """Yield pictures in the order of a full-period linear sequence, not sorted."""
        count = self._pictures
        step = next(
            number
            for number in range(int(count * 0.618) | 1, 2 * count + 2)
            if math.gcd(number, count) == 1
        )
        number = 0
        for _ in range(count):
            number = (number + step) % count
            folder = f"collection-{number % 97:02d}/20{number % 25:02d}/box-{number % 1009:04d}"
            name = f"{folder}/IMG_{number:010d}.jpg"
            etag = f"{(number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128:032x}"
            yield ObjectInfo(
                name=name, uri=f"{SOURCE}/{name}", size=60_000 + number % 40_000, etag=etag
            )

    def exists(self) -> bool:
        return True

    def require_target(self) -> None:
        """Do nothing: no object is written."""

    def get(self, name: str, etag: str | None = None, *, max_bytes: int | None = None) -> bytes:
        raise AssertionError(name)

    def stat(self, name: str) -> ObjectInfo:
        raise AssertionError(name)

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        raise AssertionError(name)

    def delete(self, name: str) -> None:
        raise AssertionError(name)


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Time the walk alone, then listing, planning and storing; return the peak memory too."""
    most = int(request["most_bytes"]) + _status_bytes("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    store = SyntheticStore(request["pictures"])
    started = time.monotonic()
    walked = sum(1 for _ in store.walk())
    listing_s = time.monotonic() - started
    vars(listing)["open_reader"] = lambda uri: store
    started = time.monotonic()
    units = plan(Path(request["out"]))
    seconds = time.monotonic() - started
    assert walked == request["pictures"]
    return {
        "seconds": seconds,
        "listing_s": listing_s,
        "units": units,
        "peak_bytes": _status_bytes("VmHWM"),
    }


def plan(out: Path) -> int:
    """Plan as an ingest does and return the number of units."""
    view = StoredView(size=256, fit="crop")
    annotated = listing.list_pictures(SOURCE, (".jpg",))
    annotate(annotated, SOURCE, labels="folder", split_by_folder=False, group="")
    table = annotated.listing
    stored = store_plan(
        open_store(str(out)),
        "plans/00000001.parquet",
        make_plan(table, OUTCOMES.empty_table(), view, 1),
    )
    assert len(stored.table) == len(table)
    return len(stored.units)


def _status_bytes(field: str) -> int:
    """Return a field of /proc/self/status; the peak of getrusage includes the parent process."""
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
