"""12-megapixel photographs: decoding at a reduced DCT scale against a full decode and a resize."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.resize import Pixels
from tests.bench.outputs import off, reference
from tests.bench.pictures import LARGE, make_pictures
from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.world import in_memory, scaled

FASTER = 2.5
APART = 1.0
SIZE = 256
COUNT = 24


def large() -> bool:
    """Require 2.5 times the rate on one core, and pictures at most one level of 255 off."""
    view = StoredView(size=SIZE, fit="crop")
    with in_memory() as folder:
        source = make_pictures(folder / "large", LARGE, scaled(COUNT))
        pictures = [path.read_bytes() for path in sorted(source.rglob("*.jpg"))]
    apart = [off(decode(data, view).image, reference(data, SIZE, "crop")) for data in pictures]
    ours, whole = [], []
    for _ in range(PAIRS):
        ours.append(_rate(lambda data: decode(data, view).image, pictures))
        whole.append(_rate(lambda data: reference(data, SIZE, "crop"), pictures))
    ratio = Ratio.of(ours, whole)
    table = Table(("what", "measured", "limit", "met"))
    table.add("decode, pictures/s on one core", spread(ours, "{:.1f}"))
    table.add("whole decode then bicubic resize", spread(whole, "{:.1f}"))
    table.limit("ratio", ratio, f"≥ {FASTER}", holds=ratio.median >= FASTER)
    table.limit(
        "worst picture's mean difference, levels",
        f"{max(apart):.2f}",
        f"≤ {APART:g}",
        holds=max(apart) <= APART,
    )
    return table.show(
        f"large: {len(pictures)} photographs of {LARGE[0]}×{LARGE[1]} to {SIZE}×{SIZE}"
    )


def _rate(make: Callable[[bytes], Pixels], pictures: Sequence[bytes]) -> float:
    started = time.perf_counter()
    for data in pictures:
        make(data)
    return len(pictures) / (time.perf_counter() - started)
