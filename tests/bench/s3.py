"""Ingest from an S3 server on this machine against ingest from files, and with delayed GETs.

Server and client share the two cores, so the CPU time of the server is subtracted: in `wall`
seconds the cores have `2 · wall` seconds of CPU time, part of which the server uses. Time in which
the client only waits is not subtracted, so that poor overlap counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.outputs import RowNumbers, read_afinar, require_same
from tests.bench.pictures import SMALL, make_pictures
from tests.bench.proxy import Proxy, proxy
from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.world import (
    CORES,
    Record,
    WrongBenchError,
    in_memory,
    ingests_of,
    require_cores,
    round_folder,
    run_side,
    scaled,
)
from tests.servers import S3Server, seaweedfs

SIZE = 256
COUNT = 3000
DELAY_S = 0.03
OF_LOCAL = 0.7
OF_UNDELAYED = 0.9
SIDES = ("files", "S3", "S3 through a proxy", "the same, GETs delayed by 30 ms")


def s3() -> bool:
    """Require 0.7 of the rate from files without the server's CPU time.

    With 30 ms added to each GET, 0.9 of the rate without the delay is required.
    """
    require_cores()
    with in_memory() as folder, bucket_of(folder) as (server, relay, bucket):
        source = make_pictures(folder / "pictures", SMALL, scaled(COUNT), distinct=scaled(1000))
        upload(source, bucket)
        warm_up = make_pictures(folder / "warm", SMALL, 200, seed=10**6)
        upload(warm_up, f"{bucket}-warm")
        records: dict[str, list[Record]] = {side: [] for side in SIDES}
        for number in range(PAIRS):
            for side in SIDES:
                relay.reset(DELAY_S if side == SIDES[3] else 0.0)
                with round_folder(folder, f"out-{number}") as out, endpoint(server, relay, side):
                    places = (
                        (str(source), str(warm_up))
                        if side == SIDES[0]
                        else (bucket, f"{bucket}-warm")
                    )
                    records[side].append(_ingest(places, out, server, relay))
                    require_same(
                        "afinar", local_rows(out / "timed", bucket, source), source, SIZE, "crop"
                    )
                if side in SIDES[2:] and relay.picture_gets.value < scaled(COUNT):
                    raise WrongBenchError(
                        f"only {relay.picture_gets.value} pictures were read through the proxy"
                    )
        return _report(records)


@contextmanager
def bucket_of(folder: Path) -> Iterator[tuple[S3Server, Proxy, str]]:
    """Run a server with its data in memory and a proxy; yield them and a prefix in a bucket."""
    import s3fs

    data = folder / "seaweedfs"
    data.mkdir()
    with seaweedfs(data) as server, proxy(server.port) as relay:
        os.environ.update(server.environment)
        s3fs.S3FileSystem().mkdir("archive")
        yield server, relay, "s3://archive/pictures"


def upload(source: Path, bucket: str) -> None:
    """Copy a folder of pictures to the server, not through the proxy."""
    import s3fs

    s3fs.S3FileSystem().put(f"{source}/", f"{bucket}/", recursive=True)


@contextmanager
def endpoint(server: S3Server, relay: Proxy, side: str) -> Iterator[None]:
    """Set AWS_ENDPOINT_URL to the proxy or the server, for processes that are started."""
    os.environ["AWS_ENDPOINT_URL"] = server.endpoint if side in SIDES[:2] else relay.endpoint
    try:
        yield
    finally:
        os.environ["AWS_ENDPOINT_URL"] = server.endpoint


def local_rows(dataset: Path, bucket: str, source: Path) -> RowNumbers:
    """Yield the pictures of a dataset under the paths of the files that were uploaded."""
    for uri, pixels in read_afinar(dataset, SIZE):
        yield uri.replace(bucket, str(source)), pixels


def _ingest(places: tuple[str, str], out: Path, server: S3Server, relay: Proxy) -> Record:
    request = {
        "cores": CORES,
        "watched": [server.pid, relay.pid],
        "warm_up": {"source": places[1], "dataset": str(out / "warm"), "size": SIZE},
        "ingests": [{"source": places[0], "dataset": str(out / "timed"), "size": SIZE}],
    }
    return ingests_of(run_side("afinar_ingest", request))[0]


def _report(records: dict[str, list[Record]]) -> bool:
    local, remote, near, far = (records[side] for side in SIDES)
    rates = {side: [scaled(COUNT) / run["seconds"] for run in records[side]] for side in SIDES}
    corrected = {
        side: [scaled(COUNT) / _without_server_s(run) for run in records[side]] for side in SIDES
    }
    table = Table(
        (
            "source",
            "pictures/s",
            "without the server's CPU time",
            "client CPU per picture, ms",
            "server CPU, ms",
        )
    )
    for side in SIDES:
        table.add(
            side,
            spread(rates[side]),
            spread(corrected[side]),
            spread([1000 * run["cpu_s"] / scaled(COUNT) for run in records[side]], "{:.2f}"),
            spread(
                [1000 * run["watched_cpu_s"] / scaled(COUNT) for run in records[side]], "{:.2f}"
            ),
        )
    table.show(
        f"s3: {scaled(COUNT)} pictures of {SMALL[0]}×{SMALL[1]}, a SeaweedFS on the same two cores"
    )
    extra = [
        1000 * (on_s3["cpu_s"] - on_files["cpu_s"]) / scaled(COUNT)
        for on_s3, on_files in zip(remote, local, strict=True)
    ]
    limits = Table(("what", "measured", "limit", "met"))
    share = Ratio.of(corrected[SIDES[1]], corrected[SIDES[0]])
    limits.limit(
        "S3 : files, without the server's CPU time",
        share,
        f"≥ {OF_LOCAL}",
        holds=share.median >= OF_LOCAL,
    )
    limits.add("the same with the server's CPU time", Ratio.of(rates[SIDES[1]], rates[SIDES[0]]))
    limits.add("client CPU per GET over reading a file, ms", spread(extra, "{:.2f}"))
    kept = Ratio.of([run["seconds"] for run in near], [run["seconds"] for run in far])
    limits.limit(
        "GETs delayed by 30 ms : not delayed",
        kept,
        f"≥ {OF_UNDELAYED}",
        holds=kept.median >= OF_UNDELAYED,
    )
    return limits.show("s3: limits")


def _without_server_s(record: Record) -> float:
    return float(record["seconds"]) - float(record["watched_cpu_s"]) / CORES
