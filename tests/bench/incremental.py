"""Cost of a second ingest: after changes of labels, and after changes of pictures."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

from afinar.dataset.reader import open_dataset
from afinar.sources.listing import list_pictures
from tests.bench.outputs import facts_of_shards, off, reference, require_same
from tests.bench.pictures import SMALL, make_pictures, photograph, picture_path
from tests.bench.proxy import Proxy
from tests.bench.s3 import bucket_of, local_rows, upload
from tests.bench.table import Table
from tests.bench.world import (
    CORES,
    Record,
    WrongBenchError,
    in_memory,
    ingests_of,
    require_cores,
    run_side,
    scaled,
)

SIZE = 256
ON_S3 = 3000
ON_DISK = 20_000
SHARE = 0.05
FRESH = 5 * 10**6  # first seed of changed pictures


def incremental() -> bool:
    """Require that only changed pictures are read, in 5 % of the time, and none for labels."""
    require_cores()
    table = Table(("what", "measured", "limit", "met"))
    with in_memory() as folder:
        _on_s3(folder, table)
    with in_memory() as folder:
        _on_disk(folder, table)
    return table.show("incremental: 1 % of the labels changed, then 1 % of the pictures")


def _on_s3(folder: Path, table: Table) -> None:
    """Count reads with a proxy, and shards written."""
    count, changed = scaled(ON_S3), scaled(ON_S3) // 100
    source = make_pictures(folder / "pictures", SMALL, count, distinct=scaled(1000))
    warm_up = make_pictures(folder / "warm", SMALL, 200, seed=10**6)
    dataset, labels = folder / "dataset", folder / "labels.csv"
    with bucket_of(folder) as (_, relay, bucket):
        upload(source, bucket)
        os.environ["AWS_ENDPOINT_URL"] = relay.endpoint
        fields = {"source": bucket, "dataset": str(dataset), "size": SIZE, "labels": str(labels)}
        before = write_labels(labels, source, count, changed=0)
        _, gets = _counted(relay, fields, warm_up, folder / "warm-1")
        _expect(gets == count, f"the first run read {gets} pictures of {count}")
        _expect(labels_of(dataset, bucket) == before, "the first run's labels are not the table's")

        shards = facts_of_shards(dataset)
        after = write_labels(labels, source, count, changed=changed)
        _, gets = _counted(relay, fields, warm_up, folder / "warm-2")
        _expect(
            labels_of(dataset, bucket) == after,
            "the second run's labels are not the changed table's",
        )
        written = len(facts_of_shards(dataset).keys() - shards.keys())
        table.limit(
            f"{changed} of {count} labels changed: pictures read", gets, "0", holds=gets == 0
        )
        table.limit("shards written", written, "0", holds=written == 0)

        _change_pictures(source, changed)
        upload_changed(source, bucket, changed)
        record, gets = _counted(relay, fields, warm_up, folder / "warm-3")
        table.limit(
            f"{changed} of {count} pictures changed, on S3: pictures read", gets, changed,
            holds=gets == changed == record["summary"]["changed"],
        )  # fmt: skip
        _require_current(dataset, bucket, source)


def _on_disk(folder: Path, table: Table) -> None:
    """Time an archive that takes so long that 5 % of it can be measured."""
    count, changed = scaled(ON_DISK), scaled(ON_DISK) // 100
    source = make_pictures(folder / "pictures", SMALL, count, distinct=scaled(1000))
    warm_up = make_pictures(folder / "warm", SMALL, 200, seed=10**6)
    dataset = folder / "dataset"
    fields = {"source": str(source), "dataset": str(dataset), "size": SIZE}
    first = _ingest(fields, warm_up, folder / "warm-1")
    _change_pictures(source, changed)
    listing_s = _listing_s(source)
    second = _ingest(fields, warm_up, folder / "warm-2")
    _expect(
        second["summary"]["changed"] == changed,
        f"the second run saw {second['summary']['changed']} changes",
    )
    most = SHARE * first["seconds"] + listing_s
    table.add(f"first run of {count} pictures, s", f"{first['seconds']:.1f}")
    table.add("listing alone, s", f"{listing_s:.2f}")
    table.limit(
        f"second run, {changed} pictures changed, s", f"{second['seconds']:.2f}",
        f"≤ {most:.2f} ({100 * SHARE:.0f} % and the listing)", holds=second["seconds"] <= most,
    )  # fmt: skip
    table.add("the second run's units", second["summary"]["units_run"])
    _require_current(dataset, str(source), source)


def _ingest(fields: Record, warm_up: Path, warmed: Path) -> Record:
    first = {"source": str(warm_up), "dataset": str(warmed), "size": SIZE}
    return ingests_of(
        run_side("afinar_ingest", {"cores": CORES, "warm_up": first, "ingests": [fields]})
    )[0]


def _counted(relay: Proxy, fields: Record, warm_up: Path, warmed: Path) -> tuple[Record, int]:
    """Ingest and return the number of pictures that were read through the proxy."""
    relay.reset()
    record = _ingest(fields, warm_up, warmed)
    _expect(
        relay.gets.value > 0, "the source was not listed through the proxy, so nothing was counted"
    )
    return record, int(relay.picture_gets.value)


def _listing_s(source: Path) -> float:
    started = time.monotonic()
    list_pictures(str(source), (".jpg",))
    return time.monotonic() - started


def write_labels(file: Path, source: Path, count: int, changed: int) -> dict[str, str]:
    """Write a table of uri (below the source) and label; `changed` rows have a new label."""
    labels = {}
    for number in range(count):
        name = str(picture_path(source, number).relative_to(source))
        labels[name] = "swapped" if number < changed else f"class-{number % 3}"
    with file.open("w", newline="", encoding="utf-8") as sink:
        csv.writer(sink).writerows([("uri", "label"), *labels.items()])
    return labels


def labels_of(dataset: Path, bucket: str) -> dict[str, str]:
    """Return the labels of the current version by name below the source."""
    index = open_dataset(str(dataset)).index
    names = (uri.removeprefix(f"{bucket}/") for uri in index.column("uri").to_pylist())
    return dict(zip(names, index.column("label").to_pylist(), strict=True))


def _change_pictures(source: Path, changed: int) -> None:
    for number in range(changed):
        picture_path(source, 7 * number).write_bytes(photograph(SMALL, FRESH + number))


def upload_changed(source: Path, bucket: str, changed: int) -> None:
    """Replace the changed pictures in the bucket."""
    import s3fs

    store = s3fs.S3FileSystem()
    for number in range(changed):
        path = picture_path(source, 7 * number)
        store.pipe_file(f"{bucket}/{path.relative_to(source)}", path.read_bytes())


def _require_current(dataset: Path, at: str, source: Path) -> None:
    """Require every picture once, and new pixels of the first of the changed ones."""
    require_same("afinar", local_rows(dataset, at, source), source, SIZE, "crop")
    first = str(picture_path(source, 0))
    stored = next(pixels for path, pixels in local_rows(dataset, at, source) if path == first)
    _expect(
        off(stored, reference(Path(first).read_bytes(), SIZE, "crop")) < 1,
        "a changed picture has its old pixels",
    )


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise WrongBenchError(otherwise)
