"""Plans a synthetic archive of N pictures, and says how long it took and how much memory."""

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
from afinar.ingest.plan import make_plan
from afinar.pictures.preprocessing import StoredView
from afinar.sources import listing
from afinar.sources.annotations import annotate
from afinar.storage.open import open_store
from afinar.storage.store import Buffer, ObjectInfo, Store
from afinar.units.plans import store_plan

SOURCE = "s3://museum-archive-eu"


class SyntheticStore(Store):
    """A bucket of N pictures that lists them in shuffled order and holds none."""

    def __init__(self, pictures: int) -> None:
        super().__init__(SOURCE)
        self._pictures = pictures

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Numbers in the order of a full-period linear sequence, so that nothing arrives sorted."""
        count = self._pictures
        step = next(
            number
            for number in range(int(count * 0.618) | 1, 2 * count + 2)
            if math.gcd(number, count) == 1
        )
        number = 0
        for _ in range(count):
            number = (number + step) % count
            name = f"collection-{number % 97:02d}/20{number % 25:02d}/box-{number % 1009:04d}/IMG_{number:010d}.jpg"
            mark = f"{(number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128:032x}"
            yield ObjectInfo(
                name=name, uri=f"{SOURCE}/{name}", size=60_000 + number % 40_000, etag=mark
            )

    def exists(self) -> bool:
        """It does."""
        return True

    def require_target(self) -> None:
        """Nothing is written here."""

    def get(self, name: str, etag: str | None = None) -> bytes:
        """No picture is read by planning."""
        raise AssertionError(name)

    def stat(self, name: str) -> ObjectInfo:
        """Planning lists."""
        raise AssertionError(name)

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """Nothing is written here."""
        raise AssertionError(name)

    def delete(self, name: str) -> None:
        """Nothing is written here."""
        raise AssertionError(name)


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Time the walk alone, then listing, planning and storing; the peak is this process's own."""
    most = int(request["most_bytes"]) + _now_bytes("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    store = SyntheticStore(request["pictures"])
    started = time.monotonic()
    walked = sum(1 for _ in store.walk())
    listing_s = time.monotonic() - started
    vars(listing)["open_store"] = lambda uri: store
    started = time.monotonic()
    units = plan(Path(request["out"]))
    seconds = time.monotonic() - started
    assert walked == request["pictures"]
    return {
        "seconds": seconds,
        "listing_s": listing_s,
        "units": units,
        "peak_bytes": _now_bytes("VmHWM"),
    }


def plan(out: Path) -> int:
    """As the ingest job does it; how many units there are."""
    view = StoredView(size=256, fit="crop")
    found = listing.list_pictures(SOURCE, (".jpg",))
    found = annotate(found, SOURCE, labels="folder", split_by_folder=False, group="").listing
    stored = store_plan(
        open_store(str(out)),
        "plans/00000001.parquet",
        make_plan(found, OUTCOMES.empty_table(), view, 1),
    )
    assert len(stored.table) == len(found)
    return len(stored.units)


def _now_bytes(field: str) -> int:
    """A field of /proc/self/status. Not getrusage's peak, which a process inherits from whoever started it."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
