"""What is made of a partition once it is published: derived objects, named after the list that they were made from.

They say nothing that the parts do not say, so that a run that is killed before them loses nothing: the next one sees
that they are missing and makes them. Superseded ones are removed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import pyarrow as pa

from afinar.predictions.manifest import Part, get_parts
from afinar.storage.arrow import from_parquet
from afinar.storage.commit import Record
from afinar.storage.objects import get_object
from afinar.storage.store import Store

_AHEAD: Final = 8  # parts in flight where reading is waiting; with features one takes 4 MB


def list_digest(partition: Record) -> str:
    """Sixteen digits that tell which rows a partition's entry in the manifest stands for: the name of its list."""
    path: str = partition["objects"]["path"]
    return path.rsplit("/", 1)[-1].removesuffix(".parquet")


def part_tables(
    store: Store, partition: Record, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """The partition's labelled rows, part by part, verified; a few parts are read ahead, never all of them."""
    parts = [part for part in get_parts(store, partition) if part.kind == "part"]

    def read(part: Part) -> pa.Table:
        return from_parquet(get_object(store, part.ref), columns)

    if store.parallel_reads == 1:
        yield from map(read, parts)
        return
    with ThreadPoolExecutor(_AHEAD) as pool:
        under_way: deque[Future[pa.Table]] = deque()
        for part in parts:
            under_way.append(pool.submit(read, part))
            if len(under_way) >= _AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
